// All-gather by copy engines: every rank pulls the others' shards out of their memory. Shards stay as they
// are from one change to the next, so pulls wait for a version, not for each other.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/peer_memory.h"

namespace ridge::parallel {

/// Of all shards that change together. Every rank calls sources_changed() and before_change() as often as the
/// others and in the same order between its starts, of which it may make any number.
class PeerGather {
 public:
  /// The group must outlive it. Collective.
  explicit PeerGather(PeerGroup& peers);

  /// Shards have their values once the compute stream comes here; nothing changes them before
  /// before_change().
  void sources_changed();
  /// What is queued on the compute stream from now on may change this rank's shards: it waits until all ranks
  /// have pulled what they asked for so far. Both calls do nothing where it is so already.
  void before_change();

  /// Shard r of `whole` becomes rank r's `source`, which PeerGroup::share has made; a shard that lies there
  /// already stays. Sees the compute stream's work so far; calls sources_changed() where that is due.
  std::unique_ptr<Pending> start(const PeerBuffer& source, void* whole);

 private:
  PeerGroup& peers_;
  const int ready_, done_;           // flags: the version that may be read, the last one that was
  std::uint32_t version_ = 0;        // counts changes
  bool open_ = false;                // shards may be read
  std::vector<std::uint32_t> seen_;  // by rank: the version that its queue has waited for
  std::vector<std::unique_ptr<PeerQueue>> queues_;  // by rank that is pulled from; this one's: its own copies
};

}  // namespace ridge::parallel
