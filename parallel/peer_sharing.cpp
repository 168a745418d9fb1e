#include "parallel/peer_sharing.h"

namespace ridge::parallel {

PeerSharing::PeerSharing(std::unique_ptr<PeerGroup> peers)
    : peers_(std::move(peers)), gather_(*peers_), reduce_(*peers_) {}

PeerSharing::Buffer* PeerSharing::take(std::int64_t elements, DType dtype, Device device) {
  std::deque<Buffer*>& free = free_[{dtype, elements}];
  if (!free.empty()) {
    Buffer* buffer = free.front();
    free.pop_front();
    reduce_.before_write(*buffer->staging);
    return buffer;
  }
  if (refused_) return nullptr;
  auto made = std::make_unique<Buffer>();
  const PurposeScope purpose(Purpose::gradients);
  made->memory = Tensor::empty({elements}, dtype, device);
  made->staging = reduce_.share(made->memory.data(), made->memory.bytes());
  refused_ = made->staging == nullptr;
  if (refused_) return nullptr;
  buffers_.push_back(std::move(made));
  return buffers_.back().get();
}

void PeerSharing::give_back(Buffer* buffer) {
  free_[{buffer->memory.dtype(), buffer->memory.numel()}].push_back(buffer);
}

}  // namespace ridge::parallel
