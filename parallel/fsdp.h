// Fully sharded data parallelism (ZeRO: Rajbhandari et al., 2020; FSDP: Zhao et al., 2023), with plain data
// parallelism as its case of one shard and hybrid sharding as its case of several replicas.
//
// Parameters of a unit are gathered before the model uses it, the next unit's while it computes; gradients of
// a unit are summed and scattered as soon as its backward pass is done, while the next one runs.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/nn/module.h"
#include "parallel/sharded_unit.h"

namespace ridge::parallel {

class Fsdp final : public nn::UnitObserver {
 public:
  /// Units in the order of their use. Parameters get their memory on `device`, uninitialised: write() fills
  /// them. Both communicators must outlive this; every rank of them makes one at once. `peers`, of the ranks
  /// of `shard`, carry what they can instead of it; then its ranks also end together.
  Fsdp(std::vector<std::vector<HeldParameter>> units, Communicator& shard, Communicator& replicas,
       const FsdpOptions& options, Device device, std::unique_ptr<PeerGroup> peers = nullptr);
  ~Fsdp() override;

  Tensor enter(std::size_t unit, const Tensor& x) override;
  Tensor leave(std::size_t unit, const Tensor& y) override;

  /// Local values of a held parameter, of any dtype and device.
  void write(const std::string& name, const Tensor& local);
  const std::vector<OwnedPiece*>& pieces() const { return pieces_; }

  /// By name.
  std::map<std::string, Placement> placements() const;

  /// Before a micro-batch: whether it is the step's last.
  void begin(bool last);
  /// After it, or after all of a pipeline's: the gradients of owned pieces are sums over all ranks of both
  /// groups; on a GPU for what is queued from now on.
  void finish();
  /// Gradients of pieces that count in the norm.
  std::vector<Tensor> counted_gradients() const;
  /// After the owned pieces have changed.
  void publish();

 private:
  struct UnitState;

  bool reduces_now() const;
  void gather(std::size_t unit);
  void prefetch(std::size_t unit, bool forward);
  void before_backward(std::size_t unit);
  void after_backward(std::size_t unit);
  void arrived(std::size_t unit);
  void reduce(std::size_t unit);
  void settle();
  bool freed_after_forward(std::size_t unit) const;

  Communicator& shard_;
  Communicator& replicas_;
  FsdpOptions options_;
  std::vector<std::unique_ptr<UnitState>> units_;
  std::vector<OwnedPiece*> pieces_;
  std::vector<std::size_t> reducing_;  // units whose sums are under way
  bool last_ = false;                  // the micro-batch is the step's last
  bool finishing_ = false;
  std::unique_ptr<PeerSharing> sharing_;  // ends before what it shares does
};

}  // namespace ridge::parallel
