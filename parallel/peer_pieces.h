// The ranks' pieces of a sequence, from memory to memory by copy engines, beside products of those that are
// there (async tensor parallelism, as of PyTorch's symmetric memory). B samples, T tokens, t = T / ranks of
// them on each rank, C channels.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "core/tensor.h"
#include "parallel/peer_memory.h"
#include "parallel/staged_collectives.h"

namespace ridge::parallel {

/// Two buffers of every rank, which uses take turns in: the others pull from one while the next use fills the
/// other. No rank says what it has pulled: that it announces use n + 1 means that its use n has ended, and
/// this rank has seen that before its own use n + 2.
class PeerRing {
 public:
  explicit PeerRing(PeerGroup& peers) : peers_(peers), ready_(peers.add_flag()) {}

  /// Begins a use of so many elements. False where memory cannot be shared, on all ranks. Collective on the
  /// host where a use is larger than those before; else the host does not wait.
  bool next(std::int64_t elements, DType dtype, Device device);
  const PeerBuffer& buffer() const { return now().buffer; }
  /// Elements first .. of this rank's buffer.
  Tensor memory(std::int64_t first, const Shape& shape) const;
  /// On `queue`: what is before it has filled what `peer` pulls.
  void announce(PeerQueue& queue, int peer) { queue.signal(peer, ready_, use_); }
  /// On `queue`: what is after it may pull from `peer`.
  void await(PeerQueue& queue, int peer) { queue.await(peer, ready_, use_); }

 private:
  struct Slot {
    Tensor memory;  // [capacity]
    PeerBuffer buffer;
  };
  const Slot& now() const { return slots_[use_ % slots_.size()]; }
  bool grow(std::int64_t elements, DType dtype, Device device);

  PeerGroup& peers_;
  const int ready_;                          // flag: the use that may be pulled
  std::uint32_t use_ = 0;                    // counts them
  std::int64_t capacity_ = 0, refused_ = 0;  // elements; 0: none was
  std::array<Slot, 2> slots_;
  std::vector<Tensor> told_;  // all memory that was ever to be shared
};

/// Takes some rows [B, m, C] of a whole tensor: those of `where`.
using UseRows = std::function<void(const Tensor& rows, const RowSelection& where)>;

/// What the layers of a model share. Every rank makes the same gathers and sums in the same order; one of
/// each at most is under way.
class PeerPieces {
 public:
  /// Collective, as its end: nobody else keeps `peers` longer.
  explicit PeerPieces(std::shared_ptr<PeerGroup> peers);

  int rank() const { return peers_->rank(); }
  int size() const { return peers_->size(); }

 private:
  friend class PeerPull;
  friend class PeerSum;
  using Rings = std::map<DType, std::unique_ptr<PeerRing>>;
  PeerRing& ring(Rings& rings, DType dtype) const;

  Rings pulled_, summed_;  // their memory outlives the group
  std::shared_ptr<PeerGroup> peers_;
  std::unique_ptr<PeerQueue> pulls_, sums_;
  bool pulling_ = false, summing_ = false;
};

/// All ranks' pieces [B, t, C] into the whole sequence [B, T, C]. The first stage is this rank's own piece,
/// where it is; the others are some ranks' each, those of the next ranks first.
class PeerPull {
 public:
  /// Null where memory cannot be shared, on all ranks. `stages` from 2 to the number of ranks; others become
  /// those. `own`: this rank's piece comes into `whole` too, last of all.
  static std::unique_ptr<PeerPull> start(PeerPieces& pieces, const Tensor& piece_BtC, const Tensor& whole_BTC,
                                         int stages, bool own);
  ~PeerPull() { pieces_.pulling_ = false; }
  PeerPull(const PeerPull&) = delete;
  PeerPull& operator=(const PeerPull&) = delete;

  int stages() const { return static_cast<int>(stages_.size()); }
  /// Waits until a stage's rows [B, m, C] are there, of which one rank's or several neighbours' come
  /// together.
  void wait(int stage, const UseRows& use);
  /// Waits for all of `whole`.
  void wait();

 private:
  struct Stage {
    std::vector<RowRange> tokens;
    std::unique_ptr<Pending> there;  // null: from the start
  };
  PeerPull(PeerPieces& pieces, const Tensor& piece, const Tensor& whole);
  void queue(PeerRing& ring, int stages, bool own);
  void copy(int rank, const void* from);
  RowRange tokens_of(int rank) const { return {rank * piece_.dim(1), (rank + 1) * piece_.dim(1)}; }

  PeerPieces& pieces_;
  Tensor piece_, whole_;
  std::vector<Stage> stages_;
  std::unique_ptr<Pending> own_;
};

/// This rank's part [B, t, C] of the sum over ranks, in their order, of what `make` makes of [B, T, C]: the
/// other ranks' rows first, which they pull beside the products that follow. In f32 (f64), rounded once.
class PeerSum final : public Pending {
 public:
  /// Null, and nothing made, where memory cannot be shared, on all ranks.
  static std::unique_ptr<PeerSum> start(PeerPieces& pieces, const Tensor& piece_BtC, const MakeRows& make);
  ~PeerSum() override { pieces_.summing_ = false; }
  PeerSum(const PeerSum&) = delete;
  PeerSum& operator=(const PeerSum&) = delete;

  void wait() override;
  void wait_for_parts();
  /// What is added up, by rank; they last as long as the next use but one.
  std::vector<Tensor> parts() const;

 private:
  PeerSum(PeerPieces& pieces, const Tensor& piece);
  void queue(PeerRing& ring, const MakeRows& make);
  Tensor part_of(int rank) const;

  PeerPieces& pieces_;
  Tensor piece_, landing_, own_;  // landing [ranks - 1, B, t, C]
  std::unique_ptr<Pending> pulled_;
};

}  // namespace ridge::parallel
