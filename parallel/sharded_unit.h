// Parameters that are used together, in flat buffers that ranks share: the unit of FSDP (Zhao et al., 2023).
//
// Parameters of one dtype that are all trained, or all frozen, lie side by side in one buffer, matrices
// first, each at a multiple of 16 bytes: neighbours are one block of memory. The buffer is cut into equal
// shards, one a rank. So is the buffer of their gradients.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/autograd.h"
#include "core/tensor.h"
#include "parallel/communicator.h"
#include "parallel/peer_sharing.h"
#include "parallel/placement.h"

namespace ridge::parallel {

struct FsdpOptions {
  int stage = 3;               // what is sharded: 1 optimizer state, 2 also gradients, 3 also parameters
  bool keep_gathered = false;  // stage 3: parameters stay gathered from forward to backward
  bool no_sync = false;        // stages 2 and 3: whole gradients are kept until the last micro-batch
  DType reduce = DType::f32;   // what gradients are summed over ranks in: f32 or bf16
  bool reduce_at_end = false;  // only in finish(): for pipelines, whose micro-batches interleave
};

/// A parameter as this rank holds it before sharding.
struct HeldParameter {
  std::string name;
  Tensor* value;  // of the local shape; what it holds is lost
  bool trains = true;
  Placement placement;  // of the local shape in the logical one
  Shape logical;
  Communicator* parts = nullptr;  // ranks whose gradients of it are parts of a sum; null: none
  bool counts = true;  // whether this rank's elements count in norms and are written to checkpoints
};

/// What this rank owns of a parameter: elements [begin, end) of its local piece, row-major.
struct OwnedPiece {
  const HeldParameter* parameter;
  std::int64_t begin, end;
  Tensor value;  // [end - begin], a leaf where the parameter trains; its gradient is there after finish()
};

/// One flat buffer and its gradients.
class FlatGroup {
 public:
  /// Gives every parameter its place in memory on `device`. `sharing`: null, or of the ranks of `shard`; it
  /// ends first.
  FlatGroup(std::vector<HeldParameter*> parameters, Communicator& shard, const FsdpOptions& options,
            Device device, PeerSharing* sharing = nullptr);
  FlatGroup(const FlatGroup&) = delete;
  FlatGroup& operator=(const FlatGroup&) = delete;

  bool trains() const { return trains_; }
  bool holds(const HeldParameter& parameter) const;
  std::vector<OwnedPiece>& pieces() { return pieces_; }
  const std::vector<autograd::Leaf*>& leaves() const { return leaves_; }

  /// Gives a parameter its local values, of any dtype and device.
  void write(const HeldParameter& parameter, const Tensor& local);

  /// Starts gathering the parameters where they are not all here; then waits.
  void start_gather();
  void wait_gather();
  /// Frees what other ranks hold too.
  void drop_parameters();
  /// After the owned pieces have changed: starts to tell the others, where all keep all.
  void start_publish();

  /// Makes room for whole gradients.
  void prepare_gradients();
  /// All of a pass's gradients are there: starts to sum them over ranks.
  void start_reduce();
  /// Waits for that, and adds the result to the owned gradient; `last`: all-reduces that over `replicas`.
  void settle_reduce(bool last, Communicator& replicas);
  /// Owned gradients are whole: hands them to the pieces.
  void hand_over();

 private:
  struct Slot {
    HeldParameter* parameter;
    std::int64_t begin, end;  // elements of the buffer
  };

  std::int64_t lay_out(std::vector<HeldParameter*> parameters);
  void allocate(std::int64_t elements, Device device);
  void sum_parts();
  void fill_missing();
  bool shards_parameters() const { return shard_.size() > 1 && options_.stage >= 3; }
  bool shards_gradients() const { return shard_.size() > 1 && options_.stage >= 2; }
  Tensor shard_of(const Tensor& whole) const;

  std::unique_ptr<Pending> gathering();
  bool pulls_gradients() const;
  bool rounds() const { return options_.reduce == DType::bf16 && grad_whole_.dtype() == DType::f32; }
  void add_pulled();

  Communicator& shard_;
  FsdpOptions options_;
  PeerSharing* sharing_;
  bool trains_;
  bool flat_ = true;  // false: frozen tensors of their own
  std::vector<Slot> slots_;
  std::vector<OwnedPiece> pieces_;
  std::vector<autograd::Leaf*> leaves_;  // of the slots
  std::int64_t shard_elements_ = 0;
  Tensor whole_;                           // [elements]; without memory while dropped
  Tensor owned_;                           // [shard elements]
  Tensor grad_whole_;                      // [elements], f32 (f64 for f64)
  Tensor grad_owned_;                      // [shard elements]
  Tensor sent_, received_;                 // of a reduction under way: what it reads and writes
  std::optional<PeerBuffer> source_;       // owned_ of all ranks, where peers can read it
  PeerSharing::Buffer* pulled_ = nullptr;  // what gradients are pulled out of, from prepare to settle
  bool owned_has_gradient_ = false;
  std::unique_ptr<Pending> gather_, reduce_, replicate_;
};

}  // namespace ridge::parallel
