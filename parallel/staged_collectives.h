// Collectives over the pieces of a sequence, cut into stages that run beside products of their rows. B
// samples, T tokens, t = T / tp of them on each rank, C channels.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "parallel/tensor_collectives.h"

namespace ridge::parallel {

/// Rows begin .. end - 1 of a tensor seen as [B T, C].
struct RowRange {
  std::int64_t begin = 0, end = 0;
};

/// All ranks' pieces into the whole sequence. A stage is some samples; or, where there are more chunks than
/// samples, this rank's own rows and then those of some ranks, nearest first.
class StagedGather {
 public:
  /// Starts all of it.
  StagedGather(Communicator& tp, const Tensor& piece_BtC, const Tensor& whole_BTC, int chunks);

  std::size_t stages() const { return stages_.size(); }
  /// Waits until the rows that it returns are there.
  const std::vector<RowRange>& wait(std::size_t stage);
  void wait() { flight_.wait(); }

 private:
  struct Stage {
    std::vector<RowRange> rows;
    std::size_t waits_for = 0;  // collectives
  };
  void gather_samples(std::int64_t begin, std::int64_t end);
  void gather_ranks(std::int64_t sample, int first, int end);
  void add_rank(Stage& stage, std::int64_t sample, int rank) const;

  Communicator& tp_;
  Tensor piece_, whole_;
  InFlight flight_;
  std::vector<Stage> stages_;
};

/// Some rows of contiguous tensors [B, T, C], whatever C: consecutive ones, the same of every rank's piece of
/// a sample, or the same tokens of every sample.
class RowSelection {
 public:
  explicit RowSelection(RowRange rows) : rows_(rows) {}
  RowSelection(std::int64_t sample, int ranks, RowRange of_each)
      : rows_(of_each), sample_(sample), ranks_(ranks) {}
  static RowSelection of_tokens(RowRange tokens) { return {0, kEverySample, tokens}; }
  /// [M, C], or [ranks, M, C], or [B, M, C]
  Tensor of(const Tensor& x) const;

 private:
  RowRange rows_;
  std::int64_t sample_ = 0;
  static constexpr int kEverySample = -1;
  int ranks_ = 0;  // 0: consecutive rows
};
/// Fills `to`, [M, C], [tp, M, C] or [B, M, C], for those rows.
using MakeRows = std::function<void(const RowSelection& rows, const Tensor& to)>;

/// `piece` [B, t, C] becomes this rank's part of the sum over ranks of what `make` makes of [B, T, C]. A
/// stage's sum runs beside the product of the next one.
void start_staged_scatter(Communicator& tp, int chunks, const Tensor& piece_BtC, const MakeRows& make,
                          InFlight& flight);

/// `sum` [M, C] becomes the sum over ranks of what `make` makes of it.
void start_staged_reduce(Communicator& tp, int chunks, const Tensor& sum_MC, const MakeRows& make,
                         InFlight& flight);

}  // namespace ridge::parallel
