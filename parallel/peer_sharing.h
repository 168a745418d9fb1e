// What the flat buffers of one Fsdp share of copies between GPUs: one version of all shards, and buffers that
// gradients are pulled out of.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "parallel/peer_gather.h"
#include "parallel/peer_reduce.h"

namespace ridge::parallel {

class PeerSharing {
 public:
  /// Memory that all ranks see.
  struct Buffer {
    Tensor memory;  // [elements]; whoever has taken the buffer may keep it elsewhere meanwhile
    std::unique_ptr<PeerReduceScatter::Staging> staging;
  };

  /// Collective, as its end: that waits until no rank reads any more, so tensors must outlive this.
  explicit PeerSharing(std::unique_ptr<PeerGroup> peers);

  PeerGather& gather() { return gather_; }
  PeerReduceScatter& reduce() { return reduce_; }
  /// As PeerGroup::share.
  std::optional<PeerBuffer> share(const Tensor& t) { return peers_->share(t.data(), t.bytes()); }

  /// A buffer that the compute stream may write to. Registering one is slow, so they are kept; every rank
  /// takes and gives back in the same order. Null where one cannot be had, on all ranks.
  Buffer* take(std::int64_t elements, DType dtype, Device device);
  void give_back(Buffer* buffer);

 private:
  std::vector<std::unique_ptr<Buffer>> buffers_;                        // outlive the group
  std::map<std::pair<DType, std::int64_t>, std::deque<Buffer*>> free_;  // the longest unused first
  bool refused_ = false;
  std::unique_ptr<PeerGroup> peers_;
  PeerGather gather_;
  PeerReduceScatter reduce_;
};

}  // namespace ridge::parallel
