#include <cuda.h>
#include <cudaTypedefs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <fstream>
#include <map>

#include "core/base/cuda_check.h"
#include "core/base/launch.h"
#include "parallel/end_notice.h"
#include "parallel/peer_memory.h"
#include "parallel/watchdog.h"

namespace ridge::parallel {
namespace {

constexpr int kBug = 2;  // exit code
constexpr int kMostRanks = 64;
constexpr unsigned kDriver = 12000;  // CUDA 12.0: flags in streams need no module parameter
constexpr std::int64_t kMapped = std::int64_t{2} << 20;  // bytes of flags: what the driver maps at the least

/// Calls of the driver that the runtime lacks; null: the driver does not have it.
struct Driver {
  PFN_cuStreamWriteValue32_v11070 write = nullptr;
  PFN_cuStreamWaitValue32_v11070 wait = nullptr;
  PFN_cuMemGetAddressRange_v3020 range = nullptr;

  Driver() {
    find("cuStreamWriteValue32", write);
    find("cuStreamWaitValue32", wait);
    find("cuMemGetAddressRange", range);
  }
  bool whole() const { return write != nullptr && wait != nullptr && range != nullptr; }

 private:
  template <class F>
  static void find(const char* name, F& function) {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    if (cudaGetDriverEntryPointByVersion(name, &found, kDriver, cudaEnableDefault, &result) != cudaSuccess)
      cudaGetLastError();
    if (result == cudaDriverEntryPointSuccess) function = reinterpret_cast<F>(found);
  }
};

const Driver& driver() {
  static const Driver kDriverCalls;
  return kDriverCalls;
}

void check_driver(CUresult code, const char* call) {
  if (code != CUDA_SUCCESS) fail("{}: CUDA driver error {}", call, static_cast<int>(code));
}

CUdeviceptr address(const void* data) { return reinterpret_cast<CUdeviceptr>(data); }

/// Where the kernel runs that shares the memory: of two hosts either part differs.
std::string host_identity() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return std::string(name.data()) + " " + boot;
}

/// What a rank tells of a region.
struct Offer {
  cudaIpcMemHandle_t handle{};
  std::int64_t offset = 0;  // in the allocation
  std::int64_t bytes = 0;
  std::int32_t ok = 0;
};

template <class T>
std::vector<T> gathered(Communicator& ranks, const T& mine) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<std::uint8_t> all(sizeof(T) * static_cast<std::size_t>(ranks.size())), own(sizeof(T));
  std::memcpy(own.data(), &mine, sizeof(T));
  ranks.all_gather(std::span<const std::uint8_t>(own), std::span<std::uint8_t>(all));
  std::vector<T> values(static_cast<std::size_t>(ranks.size()));
  std::memcpy(values.data(), all.data(), all.size());
  return values;
}

bool all_agree(Communicator& ranks, bool yes) {
  std::array<std::int32_t, 1> no{yes ? 0 : 1};
  ranks.all_reduce(std::span<std::int32_t>(no), Reduce::max);
  return no[0] == 0;
}

std::string text_of(cudaError_t code) {
  cudaGetLastError();
  return fmt::format("{} ({})", cudaGetErrorString(code), cudaGetErrorName(code));
}

/// Other processes' allocations, each mapped once, and closed together.
class Mappings {
 public:
  ~Mappings() { close(); }

  /// Null: `trouble` says why.
  std::byte* open(int rank, const cudaIpcMemHandle_t& handle, std::string& trouble) {
    const std::pair key(rank, std::string(handle.reserved, sizeof(handle.reserved)));
    const auto known = open_.find(key);
    if (known != open_.end()) return known->second;
    void* data = nullptr;
    const cudaError_t code = cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess);
    if (code != cudaSuccess) {
      trouble = fmt::format("memory of rank {} cannot be mapped: {}", rank, text_of(code));
      return nullptr;
    }
    return open_[key] = static_cast<std::byte*>(data);
  }

  void close() noexcept {
    for (const auto& [key, data] : open_) cudaIpcCloseMemHandle(data);
    open_.clear();
    cudaGetLastError();
  }

 private:
  std::map<std::pair<int, std::string>, std::byte*> open_;
};

/// This rank's flags and everyone else's: [flag, rank that counts].
struct Flags {
  PeerBuffer words;
  int rank, size;

  CUdeviceptr at(int owner, int flag, int counter) const {
    return address(words.of.at(static_cast<std::size_t>(owner))) +
           sizeof(std::uint32_t) * static_cast<std::size_t>(flag * size + counter);
  }
};

class CudaMark final : public Pending {
 public:
  CudaMark(std::shared_ptr<cuda::Event> end, const char* op) : end_(std::move(end)), op_(op) {}
  ~CudaMark() override {
    if (waited_) return;
    try {
      end_->hold(current_stream(Device::cuda));
    } catch (const std::exception&) {  // the device is broken: whoever waits for it next is told why
    }
  }
  void wait() override {
    Stream& compute = current_stream(Device::cuda);
    launch(
        compute, op_, Work{}, [] {}, [&] { end_->hold(compute); });
    waited_ = true;
  }

 private:
  std::shared_ptr<const cuda::Event> end_;
  const char* op_;
  bool waited_ = false;
};

class CudaQueue final : public PeerQueue {
 public:
  // No stream of its own: the compute stream.
  CudaQueue(std::optional<Stream> own, const Flags& flags, Watchdog& watchdog)
      : own_(std::move(own)), flags_(flags), watchdog_(watchdog) {}

  void follow_compute() override {
    ready_.record(current_stream(Device::cuda));
    ready_.hold(stream());
  }
  void copy(void* to, const void* from, std::int64_t bytes) override {
    copied_ += bytes;
    launch(
        stream(), "peer_copy", Work{0, 2.0 * static_cast<double>(bytes)}, [] {},
        [&] { cuda::copy(to, from, bytes, stream()); });
  }
  void signal(int peer, int flag, std::uint32_t count) override {
    launch(
        stream(), "peer_signal", Work{}, [] {},
        [&] {
          const CUdeviceptr word = flags_.at(peer, flag, flags_.rank);
          check_driver(driver().write(native(), word, count, CU_STREAM_WRITE_VALUE_DEFAULT),
                       "cuStreamWriteValue32");
        });
  }
  void await(int peer, int flag, std::uint32_t count) override {
    launch(
        stream(), "peer_await", Work{}, [] {},
        [&] {
          const CUdeviceptr word = flags_.at(flags_.rank, flag, peer);
          check_driver(driver().wait(native(), word, count, CU_STREAM_WAIT_VALUE_GEQ), "cuStreamWaitValue32");
        });
  }
  std::unique_ptr<Pending> mark(const char* op) override {
    const std::shared_ptr<Flight> flight =
        watchdog_.begin(op, static_cast<std::size_t>(std::exchange(copied_, 0)), DType::u8);
    try {
      const auto end = std::make_shared<cuda::Event>();
      end->record(stream());
      watchdog_.queued(*flight, [end] { return end->done(); });
      return std::make_unique<CudaMark>(end, op);
    } catch (const std::exception&) {
      watchdog_.forget(*flight);
      throw;
    }
  }

 private:
  Stream& stream() { return own_ ? *own_ : current_stream(Device::cuda); }
  CUstream native() { return static_cast<CUstream>(stream().native()); }

  std::optional<Stream> own_;
  const Flags& flags_;
  Watchdog& watchdog_;
  cuda::Event ready_;
  std::int64_t copied_ = 0;  // bytes since the last mark
};

class CudaPeers final : public PeerGroup {
 public:
  CudaPeers(Communicator& ranks, std::chrono::milliseconds timeout)
      : ranks_(ranks), memory_(cuda::allocate(kMapped), cuda::release) {
    static_assert(kFlags * sizeof(std::uint32_t) * kMostRanks <= kMapped);
    if (memory_ == nullptr) fail_user("out of memory on cuda: no room for the flags of peers");
    Stream& compute = current_stream(Device::cuda);
    cuda::fill_bytes(memory_.get(), 0, kMapped, compute);
    cuda::synchronize(compute);
    watchdog_.emplace(
        Watchdog::Options{timeout},
        [] {
          cuda::compute_stream();  // binds the thread to this process's GPU
          return std::string();
        },
        [this](const std::string& reason) { give_up(reason); });
    compute_ = std::make_unique<CudaQueue>(std::nullopt, flags_, *watchdog_);
  }
  // Nobody closes what others still read, and nobody frees what others have mapped.
  ~CudaPeers() override {
    watchdog_.reset();
    if (std::uncaught_exceptions() > exceptions_) return;
    try {
      check_cuda(cudaDeviceSynchronize());
      ranks_.barrier();
      mappings_.close();
      ranks_.barrier();
    } catch (const std::exception&) {  // the ranks are ending, for a reason that is told elsewhere
    }
  }

  int rank() const override { return ranks_.rank(); }
  int size() const override { return ranks_.size(); }
  PeerQueue& compute() override { return *compute_; }
  std::unique_ptr<PeerQueue> make_queue() override {
    return std::make_unique<CudaQueue>(Stream(Device::cuda, "peers", cuda::make_stream("peers", true)),
                                       flags_, *watchdog_);
  }

  std::optional<PeerBuffer> share(void* data, std::int64_t bytes) override {
    const std::vector<Offer> offers = gathered(ranks_, offer(data, bytes));
    PeerBuffer buffer;
    buffer.bytes = bytes;
    for (int r = 0; r < size(); ++r) {
      const Offer& theirs = offers[static_cast<std::size_t>(r)];
      check(theirs.bytes == bytes, "every rank shares a region of one size");
      buffer.of.push_back(r == rank() ? static_cast<std::byte*>(data) : mapped(r, theirs));
    }
    const bool whole =
        std::count(buffer.of.begin(), buffer.of.end(), nullptr) == 0 && offers[at_me()].ok != 0;
    if (all_agree(ranks_, whole)) return buffer;
    if (trouble_.empty()) trouble_ = "another rank cannot map this one's memory";
    return std::nullopt;
  }

  /// Shares the flags and tries them; collective. False on all ranks if one of them fails.
  bool start() {
    std::optional<PeerBuffer> words = share(memory_.get(), kMapped);
    if (!words) return false;
    flags_ = {std::move(*words), rank(), size()};
    const int flag = add_flag();
    bool ok = true;
    try {
      for (int r = 0; r < size(); ++r) compute_->signal(r, flag, 1);
      cuda::synchronize(current_stream(Device::cuda));
    } catch (const Error& error) {
      trouble_ = error.what();
      ok = false;
    }
    ranks_.barrier();
    return all_agree(ranks_, ok && arrived(flag));
  }

 private:
  std::size_t at_me() const { return static_cast<std::size_t>(rank()); }

  // Everybody's signals are said to be here: no wait can last.
  bool arrived(int flag) {
    std::vector<std::uint32_t> counts(static_cast<std::size_t>(size()));
    try {
      Stream& compute = current_stream(Device::cuda);
      cuda::copy(counts.data(), reinterpret_cast<void*>(flags_.at(rank(), flag, 0)), size() * 4, compute);
      cuda::synchronize(compute);
      if (std::count(counts.begin(), counts.end(), 1U) != size()) {
        trouble_ = "flags that other ranks set do not arrive";
        return false;
      }
      for (int r = 0; r < size(); ++r) compute_->await(r, flag, 1);
      cuda::synchronize(compute);
      return true;
    } catch (const Error& error) {
      trouble_ = error.what();
      return false;
    }
  }

  Offer offer(void* data, std::int64_t bytes) {
    Offer mine;
    mine.bytes = bytes;
    CUdeviceptr base = 0;
    std::size_t extent = 0;
    const CUresult found = driver().range(&base, &extent, address(data));
    if (found != CUDA_SUCCESS) {
      trouble_ = fmt::format("cuMemGetAddressRange: CUDA driver error {}", static_cast<int>(found));
      return mine;
    }
    mine.offset = static_cast<std::int64_t>(address(data) - base);
    check(mine.offset + bytes <= static_cast<std::int64_t>(extent), "a region within its allocation");
    const cudaError_t code = cudaIpcGetMemHandle(&mine.handle, reinterpret_cast<void*>(base));
    if (code != cudaSuccess) trouble_ = "this rank's memory cannot be shared: " + text_of(code);
    mine.ok = code == cudaSuccess ? 1 : 0;
    return mine;
  }

  std::byte* mapped(int r, const Offer& theirs) {
    if (theirs.ok == 0) return nullptr;
    std::byte* base = mappings_.open(r, theirs.handle, trouble_);
    return base == nullptr ? nullptr : base + theirs.offset;
  }

  // On the watchdog's thread.
  void give_up(const std::string& reason) noexcept {
    EndNotice::say(fmt::format("ridge: [rank {} of {} peers] copies between GPUs: {}", ranks_.rank(),
                               ranks_.size(), reason));
    ranks_.abort(reason, kBug);
  }

  Communicator& ranks_;
  const int exceptions_ = std::uncaught_exceptions();
  std::unique_ptr<void, void (*)(void*)> memory_;  // [flag, rank]
  Mappings mappings_;
  Flags flags_{};
  std::optional<Watchdog> watchdog_;
  std::unique_ptr<CudaQueue> compute_;
};

/// Why this rank cannot do without asking others; empty: it can.
std::string unable(int ranks) {
  if (ranks > kMostRanks) return fmt::format("there are more than {} ranks", kMostRanks);
  if (!driver().whole()) return "the driver is older than CUDA 12.0";
  return {};
}

}  // namespace

std::unique_ptr<PeerGroup> peer_group(Communicator& ranks, std::string* why,
                                      std::chrono::milliseconds timeout) {
  std::string unused;
  std::string& reason = why != nullptr ? *why : unused;
  reason = ranks.size() == 1 ? "there is one rank" : unable(ranks.size());
  if (ranks.size() == 1) return nullptr;
  std::array<char, 512> mine{};
  const std::string here = host_identity();
  std::copy_n(here.begin(), std::min(here.size(), mine.size() - 1), mine.begin());
  for (const auto& theirs : gathered(ranks, mine)) {
    if (theirs != mine) reason = "the ranks are on several hosts";
  }
  if (!all_agree(ranks, reason.empty())) {
    if (reason.empty()) reason = "another rank cannot";
    return nullptr;
  }
  auto group = std::make_unique<CudaPeers>(ranks, timeout);
  if (group->start()) return group;
  reason = group->trouble();
  return nullptr;
}

}  // namespace ridge::parallel
