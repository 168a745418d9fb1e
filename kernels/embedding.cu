#include "kernels/embedding.h"

#include <cub/device/device_radix_sort.cuh>

#include <algorithm>
#include <bit>
#include <limits>

#include "core/base/cuda.h"
#include "core/base/cuda_check.h"
#include "kernels/device/fault.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/vec.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::kWarp;
using ridge::cuda::Fault;
using ridge::cuda::FaultKind;

/// y[n] = table[ids[n]], zeros for a bad id and where the row is elsewhere; one block a row. U is the unit
/// that moves at once, strides and `units` count it.
template <class U>
__global__ void gather_kernel(const U* __restrict__ table_VC, std::int64_t table_row, std::int64_t rows,
                              std::int64_t first, std::int64_t vocabulary,
                              const std::int32_t* __restrict__ ids_N, std::int64_t ids_step,
                              U* __restrict__ y_NC, std::int64_t y_row, std::int64_t units, Fault* fault) {
  const std::int64_t n = blockIdx.x, id = ids_N[n * ids_step];
  U* to = y_NC + n * y_row;
  if (id < first || id >= first + rows) {
    const bool bad = id < 0 || id >= vocabulary;
    if (bad && threadIdx.x == 0) device::report(fault, FaultKind::embedding_id, n, id, vocabulary);
    for (std::int64_t u = threadIdx.x; u < units; u += blockDim.x) to[u] = U{};
    return;
  }
  const U* from = table_VC + (id - first) * table_row;
#pragma unroll 4
  for (std::int64_t u = threadIdx.x; u < units; u += blockDim.x) to[u] = from[u];
}

template <class U, class T>
void gather(Stream& stream, View<const T> table_VC, View<const std::int32_t> ids_N, View<T> y_NC,
            TablePiece piece) {
  constexpr std::int64_t kPerUnit = sizeof(U) / sizeof(T);
  const std::int64_t units = table_VC.dim(1) / kPerUnit;
  const auto threads = static_cast<unsigned>(
      std::clamp<std::int64_t>(device::ceil_div(units, 2 * kWarp) * kWarp, kWarp, device::kThreads));
  gather_kernel<U><<<device::grid_for(ids_N.dim(0), 1), threads, 0, device::native(stream)>>>(
      reinterpret_cast<const U*>(table_VC.data), table_VC.strides[0] / kPerUnit, table_VC.dim(0), piece.first,
      piece.ids(table_VC.dim(0)), ids_N.data, ids_N.strides[0], reinterpret_cast<U*>(y_NC.data),
      y_NC.strides[0] / kPerUnit, units, ridge::cuda::fault_slot());
}

/// Keys to sort by: the id's row here, or `rows` for a bad id and a row that is elsewhere, which come last.
__global__ void keys_kernel(const std::int32_t* ids_N, std::int64_t ids_step, std::int64_t n,
                            std::uint32_t rows, std::int64_t first, std::int64_t vocabulary,
                            std::uint32_t* keys_N, std::uint32_t* places_N, Fault* fault) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const std::int64_t id = ids_N[i * ids_step];
  if (id < 0 || id >= vocabulary) device::report(fault, FaultKind::embedding_id, i, id, vocabulary);
  const bool here = id >= first && id < first + rows;
  keys_N[i] = here ? static_cast<std::uint32_t>(id - first) : rows;
  places_N[i] = static_cast<std::uint32_t>(i);
}

/// Rows of dy that a thread has in flight.
template <class T, int kColumns>
constexpr int kRows = std::clamp(128 / (static_cast<int>(sizeof(T)) * kColumns), 4, 16);

/// dtable[id] += the rows of dy of one run of equal ids, in their order. The block at the beginning of a run
/// does it for its columns, kColumns a thread; the others leave.
template <class T, int kColumns>
__global__ void runs_kernel(const std::uint32_t* __restrict__ keys_N,
                            const std::uint32_t* __restrict__ places_N, std::int64_t n, std::uint32_t rows,
                            const T* __restrict__ dy_NC, std::int64_t dy_row,
                            acc_t<T>* __restrict__ dtable_VC, std::int64_t dtable_row,
                            std::int64_t channels) {
  using Row = device::Vec<T, kColumns>;
  constexpr int kEach = kRows<T, kColumns>;
  const std::int64_t begin = blockIdx.x;
  const std::uint32_t id = keys_N[begin];  // a row's
  if (id >= rows || (begin > 0 && keys_N[begin - 1] == id)) return;
  const std::int64_t column = (std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kColumns;
  const bool active = column < channels;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  acc_t<T>* to = dtable_VC + id * dtable_row + column;
  device::Vec<acc_t<T>, kColumns> sum{};
  if (active) sum = device::load_vec<acc_t<T>, kColumns>(to);
  int run = kWarp;
  for (std::int64_t first = begin; run == kWarp; first += kWarp) {
    const bool same = first + lane < n && keys_N[first + lane] == id;
    const std::uint32_t place = same ? places_N[first + lane] : 0;
    run = __popc(__ballot_sync(0xFFFFFFFFu, same));
    for (int r = 0; r < run; r += kEach) {
      Row taken[kEach];
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        const std::int64_t row = __shfl_sync(0xFFFFFFFFu, place, r + k);
        if (active && r + k < run) taken[k] = device::load_vec<T, kColumns>(dy_NC + row * dy_row + column);
      }
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        if (r + k >= run) break;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) sum.at[c] += device::load(taken[k].at[c]);
      }
    }
  }
  if (active) device::store_vec(to, sum);
}

template <int kColumns, class T>
void add_runs(Stream& stream, const std::uint32_t* keys_N, const std::uint32_t* places_N, View<const T> dy_NC,
              View<acc_t<T>> dtable_VC) {
  constexpr int kThreads = 128;
  const std::int64_t n = dy_NC.dim(0), channels = dy_NC.dim(1);
  const dim3 blocks(static_cast<unsigned>(n), device::grid_for(channels, kThreads * kColumns));
  runs_kernel<T, kColumns><<<blocks, kThreads, 0, device::native(stream)>>>(
      keys_N, places_N, n, static_cast<std::uint32_t>(dtable_VC.dim(0)), dy_NC.data, dy_NC.strides[0],
      dtable_VC.data, dtable_VC.strides[0], channels);
}

/// Takes the front of `left` bytes at `data`.
std::uint32_t* carve(std::byte*& data, std::int64_t& left, std::int64_t count) {
  const std::int64_t bytes = device::ceil_div(count * std::int64_t{sizeof(std::uint32_t)}, 256) * 256;
  check(bytes <= left, "embedding: scratch is too small");
  auto* taken = reinterpret_cast<std::uint32_t*>(data);
  data += bytes;
  left -= bytes;
  return taken;
}

}  // namespace

template <class T>
void embedding(Stream& stream, View<const T> table_VC, View<const std::int32_t> ids_N, View<T> y_NC,
               TablePiece piece) {
  if (y_NC.numel() == 0) return;
  constexpr int kN = device::kVec<T>;
  const bool vectors = table_VC.dim(1) % kN == 0 &&
                       device::aligned_rows(table_VC.data, table_VC.strides[0]) &&
                       device::aligned_rows(y_NC.data, y_NC.strides[0]);
  vectors ? gather<int4>(stream, table_VC, ids_N, y_NC, piece)
          : gather<T>(stream, table_VC, ids_N, y_NC, piece);
}

template <class T>
void embedding_backward(Stream& stream, View<const T> dy_NC, View<const std::int32_t> ids_N,
                        View<acc_t<T>> dtable_VC, TablePiece piece, void* scratch,
                        std::int64_t scratch_bytes) {
  if (dy_NC.numel() == 0) return;
  const std::int64_t n = ids_N.dim(0), channels = dy_NC.dim(1);
  check(n <= std::numeric_limits<std::int32_t>::max() &&
            dtable_VC.dim(0) <= std::numeric_limits<std::int32_t>::max(),
        "embedding: more than 2^31 - 1 tokens or ids");
  const auto rows = static_cast<std::uint32_t>(dtable_VC.dim(0));
  auto* data = static_cast<std::byte*>(scratch);
  std::int64_t left = scratch_bytes;
  std::uint32_t *keys = carve(data, left, n), *other_keys = carve(data, left, n);
  std::uint32_t *places = carve(data, left, n), *other_places = carve(data, left, n);
  const cudaStream_t queue = device::native(stream);
  keys_kernel<<<device::grid_for(n, device::kThreads), device::kThreads, 0, queue>>>(
      ids_N.data, ids_N.strides[0], n, rows, piece.first, piece.ids(rows), keys, places,
      ridge::cuda::fault_slot());
  cub::DoubleBuffer<std::uint32_t> by_key(keys, other_keys), by_place(places, other_places);
  std::size_t needed = 0;
  const int bits = std::max(1, static_cast<int>(std::bit_width(rows))), count = static_cast<int>(n);
  check_cuda(cub::DeviceRadixSort::SortPairs(nullptr, needed, by_key, by_place, count, 0, bits, queue));
  check(static_cast<std::int64_t>(needed) <= left, "embedding: scratch is too small to sort in");
  check_cuda(cub::DeviceRadixSort::SortPairs(data, needed, by_key, by_place, count, 0, bits, queue));
  constexpr int kColumns = 4;
  const bool vectors = channels % kColumns == 0 &&
                       device::aligned_rows(dy_NC.data, dy_NC.strides[0], kColumns) &&
                       device::aligned_rows(dtable_VC.data, dtable_VC.strides[0], kColumns);
  const std::uint32_t *sorted = by_key.Current(), *order = by_place.Current();
  vectors ? add_runs<kColumns>(stream, sorted, order, dy_NC, dtable_VC)
          : add_runs<1>(stream, sorted, order, dy_NC, dtable_VC);
}

template void embedding<float>(Stream&, View<const float>, View<const std::int32_t>, View<float>, TablePiece);
template void embedding_backward<float>(Stream&, View<const float>, View<const std::int32_t>, View<float>,
                                        TablePiece, void*, std::int64_t);

template void embedding<double>(Stream&, View<const double>, View<const std::int32_t>, View<double>,
                                TablePiece);
template void embedding_backward<double>(Stream&, View<const double>, View<const std::int32_t>, View<double>,
                                         TablePiece, void*, std::int64_t);

template void embedding<bf16>(Stream&, View<const bf16>, View<const std::int32_t>, View<bf16>, TablePiece);
template void embedding_backward<bf16>(Stream&, View<const bf16>, View<const std::int32_t>, View<float>,
                                       TablePiece, void*, std::int64_t);

}  // namespace ridge::kernels::cuda
