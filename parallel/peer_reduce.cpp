#include "parallel/peer_reduce.h"

#include "core/base/error.h"
#include "kernels/sum_parts.h"
#include "parallel/pending_all.h"

namespace ridge::parallel {

PeerReduceScatter::PeerReduceScatter(PeerGroup& peers) : peers_(peers) {
  for (int r = 0; r < peers.size(); ++r) queues_.push_back(r == peers.rank() ? nullptr : peers.make_queue());
}

std::unique_ptr<PeerReduceScatter::Staging> PeerReduceScatter::share(void* data, std::int64_t bytes) {
  check(bytes % peers_.size() == 0, "a shard for every rank");
  std::optional<PeerBuffer> buffer = peers_.share(data, bytes);
  return buffer ? std::make_unique<Staging>(peers_, std::move(*buffer)) : nullptr;
}

void PeerReduceScatter::before_write(Staging& staging) {
  if (staging.uses_ == 0) return;
  for (int r = 0; r < peers_.size(); ++r) {
    if (r != peers_.rank()) peers_.compute().await(r, staging.free_, staging.uses_);
  }
}

std::unique_ptr<Pending> PeerReduceScatter::start(Staging& staging, void* landing) {
  const std::uint32_t use = ++staging.uses_;
  for (int r = 0; r < peers_.size(); ++r) {
    if (r != peers_.rank()) peers_.compute().signal(r, staging.full_, use);
  }
  const std::int64_t bytes = shard_bytes(staging);
  auto all = std::make_unique<PendingAll>();
  for (int step = 1; step < peers_.size(); ++step) {  // as PeerGather
    const int from = (peers_.rank() + step) % peers_.size();
    PeerQueue& queue = *queues_[static_cast<std::size_t>(from)];
    queue.follow_compute();
    queue.await(from, staging.full_, use);
    queue.copy(static_cast<std::byte*>(landing) + place(from) * bytes,
               static_cast<const std::byte*>(staging.data(from)) + peers_.rank() * bytes, bytes);
    queue.signal(from, staging.free_, use);
    all->add(queue.mark("peer_reduce_wait"));
  }
  return all;
}

template <class T>
void PeerReduceScatter::sum(Stream& stream, const Staging& staging, const void* landing, View<float> y,
                            bool adds) const {
  const std::int64_t shard = shard_bytes(staging) / static_cast<std::int64_t>(sizeof(T));
  check(y.numel() == shard, "a sum of one shard");
  std::vector<View<const T>> parts;
  for (int r = 0; r < peers_.size(); ++r) {
    const bool own = r == peers_.rank();
    const T* from = static_cast<const T*>(own ? staging.data(r) : landing);
    parts.emplace_back(from + (own ? r : place(r)) * shard, Shape{shard});
  }
  kernels::sum_parts<T>(stream, parts, y, adds);
}

template void PeerReduceScatter::sum<float>(Stream&, const Staging&, const void*, View<float>, bool) const;
template void PeerReduceScatter::sum<bf16>(Stream&, const Staging&, const void*, View<float>, bool) const;

}  // namespace ridge::parallel
