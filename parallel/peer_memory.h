// GPU memory of other processes of this host, mapped into this one (CUDA IPC), so that copy engines move it
// over NVLink while the multiprocessors compute.
//
// Ranks tell each other how far they are by flags: counters in GPU memory that a rank's stream writes on
// another rank and that the other's streams wait for. They only grow. If every rank queues a signal before it
// queues whatever waits for the other ranks' signals of the same count, no order in which the GPUs run their
// streams can lock.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace ridge::parallel {

/// A region of one size in each rank's memory; its owner keeps it until the group has ended.
struct PeerBuffer {
  std::vector<std::byte*> of;  // by rank, as addresses of this process
  std::int64_t bytes = 0;
};

/// Work that runs in order; beside the compute stream, or on it.
class PeerQueue {
 public:
  virtual ~PeerQueue() = default;
  /// What is queued from now on waits for all that is on the compute stream now.
  virtual void follow_compute() = 0;
  virtual void copy(void* to, const void* from, std::int64_t bytes) = 0;
  /// Sets this rank's count of `flag` on `peer`, once all before it in this queue is done.
  virtual void signal(int peer, int flag, std::uint32_t count) = 0;
  /// Waits until `peer` has set its count of `flag` here to `count` or more.
  virtual void await(int peer, int flag, std::uint32_t count) = 0;
  /// This point: wait() makes the compute stream wait for it, and so does the end of the Pending.
  virtual std::unique_ptr<Pending> mark(const char* op) = 0;
};

/// Ranks that see each other's memory. Every rank makes the same collective calls in the same order; ranks
/// end it together, when what they have queued may still be under way.
class PeerGroup {
 public:
  static constexpr int kFlags = 1024;

  virtual ~PeerGroup() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Collective, on the host. Null where a rank's memory cannot be mapped, on all ranks; trouble() says why.
  virtual std::optional<PeerBuffer> share(void* data, std::int64_t bytes) = 0;
  /// A new one, whose counts are 0; the n-th of every rank is the same flag.
  int add_flag();
  virtual PeerQueue& compute() = 0;
  /// Beside the compute stream. Not to be used once the group has ended.
  virtual std::unique_ptr<PeerQueue> make_queue() = 0;
  const std::string& trouble() const { return trouble_; }

 protected:
  std::string trouble_;

 private:
  int flags_ = 0;
};

/// Of the ranks of `ranks`, which stays and carries what they tell each other; cuda::select_device has been
/// called. Null on every rank where one has another host, or a GPU that another cannot reach, or no CUDA;
/// then `why` is told. A queue that stands still for `timeout` ends all ranks, as in nccl_communicator.h.
std::unique_ptr<PeerGroup> peer_group(Communicator& ranks, std::string* why = nullptr,
                                      std::chrono::milliseconds timeout = std::chrono::minutes(10));

}  // namespace ridge::parallel
