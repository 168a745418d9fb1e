// Micro-batches out of a token stream.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "core/text/sample_order.h"
#include "core/text/token_stream.h"

namespace ridge {

struct Batch {
  Tensor ids;      // [B, T] i32
  Tensor targets;  // [B, T] i32, the token after each id
};

class Staging;

class BatchSource {
 public:
  /// A UserError where the stream holds not one sample of sequence_length + 1 tokens.
  BatchSource(std::unique_ptr<TokenStream> stream, std::int64_t sequence_length, bool shuffled,
              std::uint64_t seed);
  ~BatchSource();

  /// From now on only the positions in `ranges` of each sample are read, one range behind the other: a rank's
  /// part of the sequences.
  void take_part(std::vector<std::pair<std::int64_t, std::int64_t>> ranges) { ranges_ = std::move(ranges); }

  /// Samples at positions first .. first + rows - 1 of the run's order, on `device`; a copy to a GPU is
  /// queued.
  Batch read(std::int64_t first, std::int64_t rows, Device device = Device::cpu);
  std::int64_t samples() const { return order_.samples(); }

 private:
  std::unique_ptr<TokenStream> stream_;
  std::int64_t sequence_length_;
  SampleOrder order_;
  std::vector<std::int32_t> sample_;  // T + 1 tokens
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges_;
  std::unique_ptr<Staging> staging_;
};

}  // namespace ridge
