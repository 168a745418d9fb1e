// An ncclComm_t whose calls never wait in NCCL, so that another thread can abort it. For sources of a CUDA
// build.
#pragma once

#include <nccl.h>

#include <chrono>
#include <functional>
#include <mutex>
#include <string>

namespace ridge::parallel {

class NcclHandle {
 public:
  using Duration = std::chrono::milliseconds;

  /// Every rank together; an Error where they do not meet within `timeout`. Uses this thread's GPU.
  NcclHandle(const ncclUniqueId& id, int rank, int size, Duration timeout);
  /// Aborts what has not been finalized.
  ~NcclHandle();
  NcclHandle(const NcclHandle&) = delete;
  NcclHandle& operator=(const NcclHandle&) = delete;

  /// Asks NCCL for something, and returns when that is queued on its stream. Errors: NCCL's, and that another
  /// thread has aborted. The first collective waits here for the other ranks to come.
  void call(const std::function<ncclResult_t(ncclComm_t)>& what);
  /// What went wrong beside the calls, such as the network; empty: nothing.
  std::string error();
  /// An Error once it was aborted: results are not to be trusted.
  void check_open() const;
  /// Stops NCCL's kernels on this GPU. From any thread; returns in bounded time whatever the driver does.
  void abort() noexcept;
  /// Waits for all ranks to do the same, at the most for `limit`, and then aborts.
  void finalize(Duration limit) noexcept;

 private:
  ncclResult_t settled(Duration limit);

  mutable std::timed_mutex mutex_;  // NCCL's calls are not to overlap
  ncclComm_t comm_ = nullptr;       // null: ended
};

/// Throws an Error that names the call, unless `code` is a success or in progress.
void check_nccl(ncclResult_t code, const char* call, ncclComm_t comm = nullptr);

}  // namespace ridge::parallel
