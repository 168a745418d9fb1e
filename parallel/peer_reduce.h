// Reduce-scatter by copy engines: every rank pulls its shard of each rank's values, and adds them up in the
// order of ranks: the same bits on every run.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/base/stream.h"
#include "core/base/view.h"
#include "parallel/peer_memory.h"

namespace ridge::parallel {

class PeerReduceScatter {
 public:
  /// One region of every rank that values are pulled from: size() shards.
  class Staging {
   public:
    Staging(PeerGroup& peers, PeerBuffer buffer)
        : buffer_(std::move(buffer)), full_(peers.add_flag()), free_(peers.add_flag()) {}
    void* data(int rank) const { return buffer_.of[static_cast<std::size_t>(rank)]; }

   private:
    friend class PeerReduceScatter;
    PeerBuffer buffer_;
    int full_, free_;         // flags: uses that may be pulled, uses that have been
    std::uint32_t uses_ = 0;  // of start()
  };

  /// The group must outlive it. Collective.
  explicit PeerReduceScatter(PeerGroup& peers);

  /// Collective, on the host; null as PeerGroup::share. `bytes` are size() whole shards.
  std::unique_ptr<Staging> share(void* data, std::int64_t bytes);

  /// What is queued on the compute stream from now on may write to it: it waits until the other ranks have
  /// pulled what was there.
  void before_write(Staging& staging);
  /// The compute stream's work so far has filled it: pulls this rank's shard of the others' into `landing`,
  /// size() - 1 shards of this rank's memory. Every rank starts the same ones, in the same order.
  std::unique_ptr<Pending> start(Staging& staging, void* landing);
  /// y = the sum over ranks, or y += it: once start()'s Pending was waited for, and before before_write().
  /// y [elements of a shard], which may be this rank's shard in `staging`.
  template <class T>
  void sum(Stream& stream, const Staging& staging, const void* landing, View<float> y, bool adds) const;

 private:
  std::int64_t shard_bytes(const Staging& staging) const { return staging.buffer_.bytes / peers_.size(); }
  // Of rank r's shard in `landing`, which has none of this rank's.
  std::int64_t place(int r) const { return r < peers_.rank() ? r : r - 1; }

  PeerGroup& peers_;
  std::vector<std::unique_ptr<PeerQueue>> queues_;  // by rank that is pulled from; null for this one
};

}  // namespace ridge::parallel
