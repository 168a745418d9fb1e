// What a rank's own queries gather while keys pass by: outputs joined by log-sum-exps, gradients summed, in
// the order of the blocks. bf16 is gathered in f32, and rounded once at the end.
#pragma once

#include <array>
#include <vector>

#include "core/tensor.h"
#include "parallel/ring_attention.h"

namespace ridge::parallel {

/// The two chunks of a rank's tokens: [begin, end) of each, and how many blocks have its queries.
class RingHalves {
 public:
  RingHalves(std::int64_t tokens, const std::vector<RingBlock>& all);
  std::int64_t begin(int half) const { return half * half_; }
  std::int64_t end(int half) const { return (half + 1) * half_; }
  bool in(int half, const RingBlock& block) const {
    return block.q_begin <= begin(half) && end(half) <= block.q_end;
  }
  /// Whether this is the first, or the last, block of the queries that it has: of both halves or of neither.
  bool first(const RingBlock& block) const { return all_of(block, {0, 0}); }
  bool last(const RingBlock& block) const { return all_of(block, {total_[0] - 1, total_[1] - 1}); }
  bool last(int half) const { return done_[at(half)] == total_[at(half)] - 1; }
  void count(const RingBlock& block);

 private:
  static std::size_t at(int half) { return static_cast<std::size_t>(half); }
  bool all_of(const RingBlock& block, const std::array<int, 2>& counts) const;

  std::int64_t half_;  // tokens
  std::array<int, 2> total_{}, done_{};
};

class RingOutputs {
 public:
  /// `all`: every block that attend() will get, in any order.
  RingOutputs(const Tensor& q_BTHD, const std::vector<RingBlock>& all);
  /// Keys and values [B, S, G, D] of the rank that the block is about.
  void attend(const RingBlock& block, const Tensor& k_BSGD, const Tensor& v_BSGD);
  const Tensor& output() const { return o_; }  // [B, T, H, D], once all blocks are done
  const Tensor& lse() const { return lse_; }   // [B, H, T]

 private:
  void join(int half, const Tensor& o, const Tensor& lse);

  Tensor q_, o_, lse_;
  RingHalves halves_;
  std::array<Tensor, 2> sums_;  // of each half: within o_, or wider
};

class RingQueryGradients {
 public:
  struct Saved {
    Tensor dy_BTHD, q_BTHD, o_BTHD, lse_BHT;  // o and lse of all keys
  };
  RingQueryGradients(Saved saved, const Tensor& dq_BTHD, const std::vector<RingBlock>& all);
  /// Writes dk and dv of the block's keys [B, keys, G, D]; dq is there once all blocks are done.
  void attend(const RingBlock& block, const Tensor& k_BSGD, const Tensor& v_BSGD, const Tensor& dk,
              const Tensor& dv);

 private:
  const Tensor& lse_of(const RingBlock& block);
  void add(int half, const Tensor& dq);

  Saved saved_;
  Tensor dq_;
  RingHalves halves_;
  std::array<Tensor, 2> sums_;  // of each half; undefined before its first block
  std::array<Tensor, 2> lse_;   // of each half, contiguous as cuDNN wants it
};

}  // namespace ridge::parallel
