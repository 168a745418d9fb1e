#include "kernels/all_reduce_small.h"
#include "kernels/device/launch.cuh"
#include "kernels/device/meet_ranks.cuh"
#include "kernels/device/overlap.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::Pack;
using small_sum::Cut;
using small_sum::kMostRanks;
using small_sum::kThreads;

/// Elements of one pack from x [n], zeros beyond the end.
template <class T>
__device__ __forceinline__ Pack<T> load_input(const T* x, std::int64_t pack, std::int64_t n, bool aligned) {
  constexpr int kSize = Pack<T>::kSize;
  const std::int64_t begin = pack * kSize;
  if (aligned && begin + kSize <= n) return device::load_pack(x + begin);
  acc_t<T> values[kSize];
#pragma unroll
  for (int k = 0; k < kSize; ++k) values[k] = begin + k < n ? device::load(x[begin + k]) : 0;
  return Pack<T>::of(values);
}
template <class T>
__device__ __forceinline__ void store_output(T* y, std::int64_t pack, std::int64_t n, bool aligned,
                                             const acc_t<T> (&sum)[Pack<T>::kSize]) {
  constexpr int kSize = Pack<T>::kSize;
  const std::int64_t begin = pack * kSize;
  if (aligned && begin + kSize <= n) return device::store_pack(y + begin, Pack<T>::of(sum));
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if (begin + k < n) y[begin + k] = device::round_to<T>(sum[k]);
  }
}

/// As values of T, what was there before is added to.
template <class T>
__device__ __forceinline__ void add_to(const Pack<T>& before, acc_t<T> (&sum)[Pack<T>::kSize]) {
  const Pack<T> rounded = Pack<T>::of(sum);
#pragma unroll
  for (int k = 0; k < Pack<T>::kSize; ++k) sum[k] = before[k] + rounded[k];
}

/// In the order of ranks.
template <class T>
__device__ __forceinline__ void add_up(const Pack<T> (&parts)[kMostRanks], int ranks,
                                       acc_t<T> (&sum)[Pack<T>::kSize]) {
#pragma unroll
  for (int k = 0; k < Pack<T>::kSize; ++k) sum[k] = parts[0][k];
#pragma unroll
  for (int r = 1; r < kMostRanks; ++r) {
    if (r >= ranks) break;
#pragma unroll
    for (int k = 0; k < Pack<T>::kSize; ++k) sum[k] += parts[r][k];
  }
}

/// A pack to every other rank's region, at byte `to`.
template <class T>
__device__ __forceinline__ void push(const SmallSumRanks& ranks, std::int64_t to, const Pack<T>& mine,
                                     std::uint32_t mark) {
#pragma unroll
  for (int r = 0; r < kMostRanks; ++r) {
    if (r < ranks.size && r != ranks.rank) device::Marked::store(ranks.region[r] + to, mine.raw, mark);
  }
}
/// The sum of `mine` and the packs that others have pushed, when they have come.
template <class T>
__device__ __forceinline__ void take(const SmallSumRanks& ranks, int channel, std::uint32_t use,
                                     std::int64_t place, const Pack<T>& mine, acc_t<T> (&sum)[Pack<T>::kSize],
                                     std::int64_t limit_ns, ridge::cuda::Fault* fault) {
  const std::uint32_t mark = small_sum::mark_of(use);
  const auto from = [&](int r) {
    return ranks.region[ranks.rank] + ranks.layout.push_byte(channel, use, r) + place;
  };
  device::Marked come[kMostRanks];
#pragma unroll
  for (int r = 0; r < kMostRanks; ++r) {
    if (r < ranks.size && r != ranks.rank) come[r] = device::Marked::load(from(r));
  }
  Pack<T> parts[kMostRanks];
#pragma unroll
  for (int r = 0; r < kMostRanks; ++r) {
    if (r >= ranks.size) continue;
    parts[r] = mine;
    if (r == ranks.rank) continue;
    if (!come[r].has(mark)) {
      device::await([&] { return (come[r] = device::Marked::load(from(r))).has(mark); }, use, r, limit_ns,
                    fault);
    }
    parts[r].raw = come[r].raw();
  }
  add_up(parts, ranks.size, sum);
}

/// y [n] = the ranks' sum of x [n], pushed: see all_reduce_small_layout.h. Thread t of block c has pack t of
/// channel c, if there is one. y may be x: a thread writes where it alone has read.
template <class T>
__global__ void __launch_bounds__(kThreads)
    all_reduce_pushed_kernel(const __grid_constant__ SmallSumRanks ranks, const __grid_constant__ Cut cut,
                             const T* x, T* y, std::int64_t n, bool aligned, bool adds, std::int64_t limit_ns,
                             ridge::cuda::Fault* fault) {
  device::let_next_begin();  // what it reads that no kernel writes takes as long as the sum
  device::wait_for_previous();
  const int channel = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const std::uint32_t use = device::next_use(ranks, channel), mark = small_sum::mark_of(use);
  const bool has_pack = thread < cut.count(channel);
  const std::int64_t pack = cut.begin(channel) + thread, place = thread * small_sum::kPushed;
  Pack<T> mine, before;
  if (has_pack) {
    mine = load_input(x, pack, n, aligned);
    if (adds) before = load_input(static_cast<const T*>(y), pack, n, aligned);
    push(ranks, ranks.layout.push_byte(channel, use, ranks.rank) + place, mine, mark);
  }
  // Nobody waits for them here, but flags are not to fall behind by half of what they count. After the pack
  // is taken they would hold up the kernel's end.
  if (thread < ranks.size && thread != ranks.rank) device::count(ranks, channel, use, thread);
  __syncthreads();  // all have read the count
  if (thread == 0) device::end_use(ranks, channel, use);
  if (!has_pack) return;
  acc_t<T> sum[Pack<T>::kSize];
  take(ranks, channel, use, place, mine, sum, limit_ns, fault);
  if (adds) add_to(before, sum);
  store_output(y, pack, n, aligned, sum);
}

/// y [n] = the ranks' sum of x [n]. Block c is channel c: see all_reduce_small_layout.h. y may be x: a thread
/// writes where it alone has read.
template <class T>
__global__ void __launch_bounds__(kThreads)
    all_reduce_small_kernel(const __grid_constant__ SmallSumRanks ranks, const __grid_constant__ Cut cut,
                            const T* x, T* y, std::int64_t n, bool aligned, bool adds, std::int64_t limit_ns,
                            ridge::cuda::Fault* fault) {
  constexpr int kSize = Pack<T>::kSize;
  device::let_next_begin();
  device::wait_for_previous();
  const int channel = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const std::uint32_t use = device::next_use(ranks, channel);
  const std::int64_t slot = ranks.layout.slot_byte(channel, use);
  const std::int64_t first = cut.begin(channel), count = cut.count(channel);

  T* mine = reinterpret_cast<T*>(ranks.region[ranks.rank] + slot);
  for (std::int64_t i = thread; i < count; i += kThreads)
    device::store_pack(mine + i * kSize, load_input(x, first + i, n, aligned));
  device::meet_ranks(ranks, channel, use, limit_ns, fault);

  for (std::int64_t i = thread; i < count; i += kThreads) {
    Pack<T> parts[kMostRanks];
#pragma unroll
    for (int r = 0; r < kMostRanks; ++r) {
      if (r < ranks.size)
        parts[r] = device::load_shared_by_ranks<T>(ranks.region[r] + slot + i * small_sum::kPack);
    }
    acc_t<T> sum[kSize];
    add_up(parts, ranks.size, sum);
    if (adds) add_to(load_input(static_cast<const T*>(y), first + i, n, aligned), sum);
    store_output(y, first + i, n, aligned, sum);
  }
}

}  // namespace

template <class T>
void all_reduce_small(Stream& stream, const SmallSumRanks& ranks, View<const T> x, View<T> y, SmallSumEnd end,
                      std::chrono::nanoseconds limit) {
  const std::int64_t n = x.numel();
  const Cut cut = Cut::of(small_sum::packs_of(n * std::int64_t{sizeof(T)}));
  const bool aligned = device::aligned_rows(x.data, 0) && device::aligned_rows(y.data, 0);
  const auto kernel =
      small_sum::is_pushed(cut.packs) ? all_reduce_pushed_kernel<T> : all_reduce_small_kernel<T>;
  device::launch_overlapped(device::native(stream), kernel, dim3(static_cast<unsigned>(cut.channels)),
                            kThreads, 0, ranks, cut, x.data, y.data, n, aligned, end == SmallSumEnd::add,
                            static_cast<std::int64_t>(limit.count()), ridge::cuda::fault_slot());
}

template void all_reduce_small<float>(Stream&, const SmallSumRanks&, View<const float>, View<float>,
                                      SmallSumEnd, std::chrono::nanoseconds);
template void all_reduce_small<bf16>(Stream&, const SmallSumRanks&, View<const bf16>, View<bf16>, SmallSumEnd,
                                     std::chrono::nanoseconds);

}  // namespace ridge::kernels::cuda
