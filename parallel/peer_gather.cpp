#include "parallel/peer_gather.h"

#include "parallel/pending_all.h"

namespace ridge::parallel {

PeerGather::PeerGather(PeerGroup& peers)
    : peers_(peers),
      ready_(peers.add_flag()),
      done_(peers.add_flag()),
      seen_(static_cast<std::size_t>(peers.size())) {
  for (int r = 0; r < peers.size(); ++r) queues_.push_back(peers.make_queue());
}

void PeerGather::sources_changed() {
  if (open_) return;
  open_ = true;
  ++version_;
  for (int r = 0; r < peers_.size(); ++r) {
    if (r != peers_.rank()) peers_.compute().signal(r, ready_, version_);
  }
}

// All that was pulled from a rank went through one queue, so its end tells of all of it.
void PeerGather::before_change() {
  if (!open_) return;
  open_ = false;
  for (int r = 0; r < peers_.size(); ++r) {
    if (r != peers_.rank()) queues_[static_cast<std::size_t>(r)]->signal(r, done_, version_);
  }
  for (int r = 0; r < peers_.size(); ++r) {
    if (r != peers_.rank()) peers_.compute().await(r, done_, version_);
  }
  queues_[static_cast<std::size_t>(peers_.rank())]->mark("peer_gather_own")->wait();
}

// Ranks begin with the next one each, so that no link has to carry all of them at once.
std::unique_ptr<Pending> PeerGather::start(const PeerBuffer& source, void* whole) {
  sources_changed();
  auto all = std::make_unique<PendingAll>();
  for (int step = 1; step <= peers_.size(); ++step) {
    const int from = (peers_.rank() + step) % peers_.size();
    const auto at = static_cast<std::size_t>(from);
    std::byte* to = static_cast<std::byte*>(whole) + from * source.bytes;
    if (to == source.of[at]) continue;
    PeerQueue& queue = *queues_[at];
    queue.follow_compute();
    if (from != peers_.rank() && seen_[at] != version_) queue.await(from, ready_, version_);
    seen_[at] = version_;
    queue.copy(to, source.of[at], source.bytes);
    all->add(queue.mark("peer_gather_wait"));
  }
  return all;
}

}  // namespace ridge::parallel
