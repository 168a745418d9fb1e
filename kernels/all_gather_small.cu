#include "kernels/all_gather_small.h"
#include "kernels/device/launch.cuh"
#include "kernels/device/meet_ranks.cuh"
#include "kernels/device/overlap.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::Pack;
using small_sum::Cut;
using small_sum::kMostRanks;
using small_sum::kThreads;

/// Pack `pack` of one rank's columns [R, each] of y [R, V]. `whole`: a pack's elements lie together in y, on
/// 16 bytes, or are all beyond its columns.
template <class T>
struct Columns {
  T* y;
  std::int64_t rows;
  RankColumns columns;
  bool whole;

  static constexpr int kSize = Pack<T>::kSize;

  __device__ __forceinline__ Pack<T> load(int rank, std::int64_t pack) const {
    if (whole) {
      const std::int64_t at = place(rank, pack * kSize);
      return at < 0 ? Pack<T>() : device::load_pack(y + at);
    }
    acc_t<T> values[kSize];
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const std::int64_t at = place(rank, pack * kSize + k);
      values[k] = at < 0 ? 0 : device::load(y[at]);
    }
    return Pack<T>::of(values);
  }
  __device__ __forceinline__ void store(int rank, std::int64_t pack, const Pack<T>& values) const {
    if (whole) {
      const std::int64_t at = place(rank, pack * kSize);
      if (at >= 0) device::store_pack(y + at, values);
      return;
    }
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const std::int64_t at = place(rank, pack * kSize + k);
      if (at >= 0) y[at] = device::round_to<T>(values[k]);
    }
  }
  /// In y; below 0: nowhere.
  __device__ __forceinline__ std::int64_t place(int rank, std::int64_t element) const {
    const auto each = static_cast<unsigned>(columns.each);
    const unsigned row = static_cast<unsigned>(element) / each;
    const std::int64_t column = rank * columns.each + static_cast<unsigned>(element) % each;
    return row < rows && column < columns.all ? row * columns.all + column : -1;
  }
};

/// Block c is channel c: see all_reduce_small_layout.h.
template <class T>
__global__ void __launch_bounds__(kThreads)
    all_gather_small_kernel(const __grid_constant__ SmallSumRanks ranks, const __grid_constant__ Cut cut,
                            const __grid_constant__ Columns<T> columns, std::int64_t limit_ns,
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
    device::store_pack(mine + i * kSize, columns.load(ranks.rank, first + i));
  device::meet_ranks(ranks, channel, use, limit_ns, fault);

  for (std::int64_t i = thread; i < count; i += kThreads) {
    Pack<T> parts[kMostRanks];
#pragma unroll
    for (int r = 0; r < kMostRanks; ++r) {
      if (r < ranks.size && r != ranks.rank)
        parts[r] = device::load_shared_by_ranks<T>(ranks.region[r] + slot + i * small_sum::kPack);
    }
#pragma unroll
    for (int r = 0; r < kMostRanks; ++r) {
      if (r < ranks.size && r != ranks.rank) columns.store(r, first + i, parts[r]);
    }
  }
}

}  // namespace

template <class T>
void all_gather_small(Stream& stream, const SmallSumRanks& ranks, View<T> y_RV,
                      std::chrono::nanoseconds limit) {
  const RankColumns columns = RankColumns::of(y_RV.dim(1), ranks.size);
  const Cut cut = Cut::of(small_sum::packs_of(y_RV.dim(0) * columns.each * std::int64_t{sizeof(T)}));
  const bool whole = device::aligned_rows(y_RV.data, 0) && columns.each % Pack<T>::kSize == 0 &&
                     columns.all % Pack<T>::kSize == 0;
  const Columns<T> at{y_RV.data, y_RV.dim(0), columns, whole};
  device::launch_overlapped(device::native(stream), all_gather_small_kernel<T>,
                            dim3(static_cast<unsigned>(cut.channels)), kThreads, 0, ranks, cut, at,
                            static_cast<std::int64_t>(limit.count()), ridge::cuda::fault_slot());
}

template void all_gather_small<float>(Stream&, const SmallSumRanks&, View<float>, std::chrono::nanoseconds);
template void all_gather_small<bf16>(Stream&, const SmallSumRanks&, View<bf16>, std::chrono::nanoseconds);

}  // namespace ridge::kernels::cuda
