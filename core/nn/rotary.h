// Tables of rotary angles, made as far as they are needed.
#pragma once

#include "core/tensor.h"
#include "kernels/rotary.h"

namespace ridge::nn {

struct RopeConfig {
  double theta = 10000;
  std::int64_t head_dim = 64;
  std::int64_t max_position = 2048;
  kernels::RopeScaling scaling;
};

/// cos and sin [P, D/2] for positions 0 .. P-1. Not for use by two threads at once.
class RotaryTable {
 public:
  explicit RotaryTable(const RopeConfig& config) : config_(config) {}

  struct Tables {
    Tensor cos, sin;
  };
  /// Tables of at least `positions` rows, for a sequence of that length in all.
  const Tables& get(std::int64_t positions, Device device);

 private:
  RopeConfig config_;
  Tables tables_;
  std::int64_t made_for_ = -1;  // the length that dynamic scaling was made for
};

}  // namespace ridge::nn
