// Sums of a few values over the GPUs of one host, such as the rows of a decoding step, and their logits: a
// kernel that reads all ranks' memory (kernels/all_reduce_small.h, all_gather_small.h) in place of a
// collective.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "core/tensor.h"
#include "kernels/all_gather_small.h"
#include "kernels/all_reduce_small.h"
#include "parallel/peer_memory.h"

namespace ridge::parallel {

struct OneShotOptions {
  std::int64_t largest = std::int64_t{1} << 20;  // bytes of a sum; others are left to collectives
  std::chrono::milliseconds limit = std::chrono::minutes(10);  // how long a rank may be waited for
};

class OneShotReduce {
 public:
  /// Collective, as its end: nobody has sums under way then. Null on all ranks where there are more than 8 of
  /// them, or memory cannot be shared; `why` is told.
  static std::unique_ptr<OneShotReduce> make(std::unique_ptr<PeerGroup> peers, Device device,
                                             OneShotOptions options = {}, std::string* why = nullptr);

  /// Whether all_reduce takes such values. It follows from shape and dtype, which are the same on all ranks.
  bool takes(const Tensor& x) const;
  /// x becomes the sum of the ranks' x, in their order, in f32 and rounded once, on the compute stream; the
  /// host does not wait. x is dense, in f32 or bf16. Every rank makes the same sums in the same order. A step
  /// that is recorded may make sums, which are made anew each time it runs. A rank that is waited for in vain
  /// is an Error; see kernels/all_reduce_small.h.
  void all_reduce(const Tensor& x) const;

  /// y += the sum of the ranks' x, rounded as all_reduce does: one kernel. y is dense, like x, and not x.
  void add_all_reduced(const Tensor& x, const Tensor& y) const;

  /// Whether gather_columns takes y [R, V]: of a row, what one rank holds has room.
  bool gathers(const Tensor& y_RV) const;
  /// y [R, V], dense, in which each rank has its columns as gather_columns (collective_ops.h) cuts them, has
  /// all of them: as all_reduce, among whose sums it is one of the same order.
  void gather_columns(const Tensor& y_RV) const;

 private:
  bool knows(const Tensor& x) const;
  void sum(const Tensor& x, const Tensor& y, kernels::SmallSumEnd end) const;
  std::int64_t row_bytes(const Tensor& y_RV) const;
  OneShotReduce(Tensor memory, std::unique_ptr<PeerGroup> peers, const PeerBuffer& regions,
                kernels::small_sum::Layout layout, OneShotOptions options);

  Tensor memory_;  // this rank's region; outlives the group
  std::unique_ptr<PeerGroup> peers_;
  kernels::SmallSumRanks ranks_;
  OneShotOptions options_;
};

/// Of the GPUs of `ranks`, as peer_group; null on meta and on the CPU.
std::unique_ptr<OneShotReduce> one_shot_reduce(Communicator& ranks, Device device, std::string* why = nullptr,
                                               OneShotOptions options = {});

}  // namespace ridge::parallel
