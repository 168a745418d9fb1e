// Random state of a forward pass: every call of dropout gets a key of its own, and elements count from the
// sample's place in the global batch, so that masks do not depend on micro-batching or ranks.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "core/base/random.h"

namespace ridge {

struct RandomState {
  std::uint64_t seed = 0;
  std::int64_t step = 0;
  std::int64_t first_row = 0;  // place of the micro-batch's first sample in the global batch
  std::uint64_t next_call = 0;
  /// Where a rank holds a part of each sequence: the length of the whole, and the positions that are here, in
  /// the order of the tensors. Empty: all of it.
  std::int64_t tokens = 0;
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges = {};
  /// Where it holds columns of the last dimension: the first of them, and the width of all; 0: it holds all.
  std::int64_t first_column = 0, width = 0;

  /// The key of the next random op of this forward pass.
  RandomKey next_key() { return {mix_seed(seed, static_cast<std::uint64_t>(step)), next_call++}; }
};

/// This thread's state: the train loop sets it before each micro-batch.
RandomState& random_state();

}  // namespace ridge
