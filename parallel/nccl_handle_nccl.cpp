#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "parallel/nccl_handle.h"

namespace ridge::parallel {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPatience = std::chrono::seconds(5);  // for a driver that may be stuck
constexpr int kSpins = 2000;                         // a call that needs no other rank is queued by then
constexpr auto kPoll = std::chrono::microseconds(100);
constexpr auto kForEver = std::chrono::hours(24 * 365);

std::string text_of(ncclResult_t code, ncclComm_t comm) {
  const char* detail = ncclGetLastError(comm);
  if (detail == nullptr || *detail == '\0') return ncclGetErrorString(code);
  return fmt::format("{} ({})", ncclGetErrorString(code), detail);
}

}  // namespace

void check_nccl(ncclResult_t code, const char* call, ncclComm_t comm) {
  if (code == ncclSuccess || code == ncclInProgress) return;
  fail("{}: {}; NCCL_DEBUG=INFO makes NCCL say more", call, text_of(code, comm));
}

NcclHandle::NcclHandle(const ncclUniqueId& id, int rank, int size, Duration timeout) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  check_nccl(ncclCommInitRankConfig(&comm_, size, id, rank, &config), "ncclCommInitRankConfig");
  const ncclResult_t state = settled(timeout);
  if (state == ncclSuccess) return;
  const std::string text = text_of(state, comm_);
  abort();
  if (state == ncclInProgress)
    fail("NCCL: the {} ranks did not meet within {:g} s", size,
         std::chrono::duration<double>(timeout).count());
  fail("NCCL cannot start: {}; NCCL_DEBUG=INFO makes NCCL say more", text);
}

NcclHandle::~NcclHandle() { abort(); }

// NCCL's state once it is no longer in progress, or after `limit`.
ncclResult_t NcclHandle::settled(Duration limit) {
  const auto begin = Clock::now();
  for (int spins = 0;; ++spins) {
    {
      const std::lock_guard lock(mutex_);
      if (comm_ == nullptr) fail("NCCL was aborted");
      ncclResult_t state = ncclSuccess;
      check_nccl(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError", comm_);
      if (state != ncclInProgress) return state;
    }
    if (Clock::now() - begin > limit) return ncclInProgress;
    if (spins < kSpins) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kPoll);
    }
  }
}

void NcclHandle::call(const std::function<ncclResult_t(ncclComm_t)>& what) {
  {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) fail("NCCL was aborted");
    check_nccl(what(comm_), "NCCL", comm_);
  }
  const ncclResult_t state = settled(kForEver);  // a watchdog aborts
  if (state == ncclSuccess) return;
  const std::lock_guard lock(mutex_);
  check_nccl(state, "NCCL", comm_);
}

std::string NcclHandle::error() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock() || comm_ == nullptr) return {};
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
  if (asked != ncclSuccess) return text_of(asked, comm_);
  return state == ncclSuccess || state == ncclInProgress ? "" : text_of(state, comm_);
}

void NcclHandle::check_open() const {
  const std::lock_guard lock(mutex_);
  if (comm_ == nullptr) fail("NCCL was aborted");
}

void NcclHandle::abort() noexcept try {
  ncclComm_t comm = nullptr;
  {
    const std::unique_lock lock(mutex_, kPatience);
    if (!lock.owns_lock()) return;
    comm = std::exchange(comm_, nullptr);
  }
  if (comm == nullptr) return;
  const auto done = std::make_shared<std::promise<void>>();
  const std::future<void> ended = done->get_future();
  std::thread([comm, done] {
    try {
      cuda::compute_stream();          // binds the thread to this process's GPU
    } catch (const std::exception&) {  // the driver is broken: NCCL may still clear up
    }
    ncclCommAbort(comm);
    done->set_value();
  }).detach();
  ended.wait_for(kPatience);
} catch (const std::exception&) {  // no thread to be had: the process ends soon anyway
}

void NcclHandle::finalize(Duration limit) noexcept try {
  {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return;
    check_nccl(ncclCommFinalize(comm_), "ncclCommFinalize", comm_);
  }
  if (settled(limit) == ncclSuccess) {
    const std::lock_guard lock(mutex_);
    ncclCommDestroy(std::exchange(comm_, nullptr));
  }
  abort();
} catch (const std::exception&) {
  abort();
}

}  // namespace ridge::parallel
