// R rows, v ids here, P ranks. A block goes over one row at a time; another rank's target is at -1 here.
#include "kernels/vocab_cross_entropy.h"

#include "core/base/cuda_check.h"
#include "kernels/cross_entropy_row.cuh"
#include "kernels/device/launch.cuh"

namespace ridge::kernels::cuda {
namespace {

using namespace cross_entropy_row;
using device::native;

constexpr int kStatisticsBlock = 512, kGradientBlock = 256;  // threads

/// [P, 3, R]
template <class A>
struct Statistics {
  const A* data;
  std::int64_t ranks, rank_stride, kind_stride, row_stride;

  explicit Statistics(const View<const A>& v)
      : data(v.data),
        ranks(v.dim(0)),
        rank_stride(v.strides[0]),
        kind_stride(v.strides[1]),
        row_stride(v.strides[2]) {}
  __device__ __forceinline__ A at(std::int64_t p, int kind, std::int64_t r) const {
    return data[p * rank_stride + kind * kind_stride + r * row_stride];
  }
};

template <class A>
struct WholeRow {
  A lse, at_target;
};

/// In the order of ranks: the same bits on each.
template <class A>
__device__ __forceinline__ WholeRow<A> whole_row(const Statistics<A>& statistics, std::int64_t r) {
  A top = minus_infinity<A>(), sum = 0, at_target = 0;
  for (std::int64_t p = 0; p < statistics.ranks; ++p) top = max(top, statistics.at(p, 0, r));
  const A shift = OnlineSum<A>::shift_for(top);
  for (std::int64_t p = 0; p < statistics.ranks; ++p) {
    sum += statistics.at(p, 1, r) * exponential(statistics.at(p, 0, r) - shift);
    at_target += statistics.at(p, 2, r);
  }
  return {top + log(sum), at_target};
}

/// The target's place among the ids here, -1 where it is another rank's, kIgnoreIndex where nothing counts.
__device__ __forceinline__ int place_of(std::int64_t id, std::int64_t r, VocabPiece piece, std::int64_t ids,
                                        Fault* fault, bool tells) {
  const std::int64_t target = checked_target(id, r, piece.vocabulary, fault, tells);
  if (target == kIgnoreIndex) return static_cast<int>(kIgnoreIndex);
  return target >= piece.first && target < piece.first + ids ? static_cast<int>(target - piece.first) : -1;
}

template <class T>
struct Operands {
  const T* logits_Rv;
  T* gradient_Rv;  // the logits, where they are replaced
  const std::int32_t* targets_R;
  acc_t<T>* out;  // statistics [3, R] or losses [R]
  std::int64_t rows, ids, logits_stride, target_stride, kind_stride, out_stride;
  VocabPiece piece;
  Fault* fault;
};

template <class T>
Operands<T> operands(const View<const T>& logits_Rv, const View<const std::int32_t>& targets_R,
                     VocabPiece piece) {
  Operands<T> o{};
  o.logits_Rv = logits_Rv.data;
  o.targets_R = targets_R.data;
  o.rows = logits_Rv.dim(0);
  o.ids = logits_Rv.dim(1);
  o.logits_stride = logits_Rv.strides[0];
  o.target_stride = targets_R.strides[0];
  o.piece = piece;
  o.fault = ridge::cuda::fault_slot();
  return o;
}

template <class T>
__global__ void __launch_bounds__(kStatisticsBlock, 2) statistics_kernel(Operands<T> o) {
  using A = acc_t<T>;
  __shared__ A shared[33];
  for (std::int64_t r = blockIdx.x; r < o.rows; r += gridDim.x) {
    const T* row = o.logits_Rv + r * o.logits_stride;
    const OnlineSum<A> online = sum_of_row<T, kStatisticsBlock, false>(row, span_of(row, row, o.ids), shared);
    if (threadIdx.x != 0) continue;
    const int place = place_of(o.targets_R[r * o.target_stride], r, o.piece, o.ids, o.fault, true);
    A* out = o.out + r * o.out_stride;
    out[0] = online.top;
    out[o.kind_stride] = online.sum;
    out[2 * o.kind_stride] = place >= 0 ? load(row[place]) : A(0);
  }
}

template <class A>
__global__ void losses_kernel(Statistics<A> statistics, const std::int32_t* targets_R,
                              std::int64_t target_stride, std::int64_t rows, A* loss_R,
                              std::int64_t loss_stride) {
  const std::int64_t r = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (r >= rows) return;
  const WholeRow<A> whole = whole_row(statistics, r);
  const bool counts = targets_R[r * target_stride] >= 0;  // a bad one was reported with the statistics
  loss_R[r * loss_stride] = counts ? whole.lse - whole.at_target : A(0);
}

template <class T>
__global__ void __launch_bounds__(kGradientBlock)
    gradient_kernel(Operands<T> o, Statistics<acc_t<T>> statistics, acc_t<T> scale) {
  using A = acc_t<T>;
  for (std::int64_t r = blockIdx.x; r < o.rows; r += gridDim.x) {
    T* row = o.gradient_Rv + r * o.logits_stride;
    const int place = place_of(o.targets_R[r * o.target_stride], r, o.piece, o.ids, o.fault, false);
    const WholeRow<A> whole = whole_row(statistics, r);
    const Gradient<T> gradient{row, row, span_of<T>(row, row, o.ids), place, whole.lse, scale};
    const int rounds = gradient.template rounds<kGradientBlock>();
    for (int round = static_cast<int>(blockIdx.y); round < rounds; round += static_cast<int>(gridDim.y))
      gradient.template packs<kGradientBlock>(round);
    if (blockIdx.y != 0) continue;
    gradient.template edges<kGradientBlock>();
    if (threadIdx.x == 0)
      o.out[r * o.out_stride] = place == kIgnoreIndex ? A(0) : whole.lse - whole.at_target;
  }
}

}  // namespace

template <class T>
void vocab_statistics(Stream& stream, View<const T> logits_Rv, View<const std::int32_t> targets_R,
                      VocabPiece piece, View<acc_t<T>> statistics_3R) {
  Operands<T> o = operands(logits_Rv, targets_R, piece);
  if (o.rows == 0) return;
  o.out = statistics_3R.data;
  o.kind_stride = statistics_3R.strides[0];
  o.out_stride = statistics_3R.strides[1];
  statistics_kernel<T><<<device::grid_for(o.rows, 1), kStatisticsBlock, 0, native(stream)>>>(o);
}

template <class A>
void vocab_losses(Stream& stream, View<const A> statistics_P3R, View<const std::int32_t> targets_R,
                  View<A> loss_R) {
  const std::int64_t rows = loss_R.dim(0);
  if (rows == 0) return;
  losses_kernel<A><<<device::grid_for(rows, device::kThreads), device::kThreads, 0, native(stream)>>>(
      Statistics<A>(statistics_P3R), targets_R.data, targets_R.strides[0], rows, loss_R.data,
      loss_R.strides[0]);
}

template <class T>
void vocab_cross_entropy_in_place(Stream& stream, View<T> logits_Rv, View<const std::int32_t> targets_R,
                                  VocabPiece piece, View<const acc_t<T>> statistics_P3R, double scale,
                                  View<acc_t<T>> loss_R) {
  Operands<T> o = operands(View<const T>(logits_Rv), targets_R, piece);
  if (o.rows == 0) return;
  o.gradient_Rv = logits_Rv.data;
  o.out = loss_R.data;
  o.out_stride = loss_R.strides[0];
  const dim3 grid(device::grid_for(o.rows, 1),
                  device::grid_for(o.ids, kVec<T> * kPacks<T> * kGradientBlock, 65535));
  gradient_kernel<T><<<grid, kGradientBlock, 0, native(stream)>>>(o, Statistics<acc_t<T>>(statistics_P3R),
                                                                  static_cast<acc_t<T>>(scale));
}

template void vocab_losses<float>(Stream&, View<const float>, View<const std::int32_t>, View<float>);
template void vocab_losses<double>(Stream&, View<const double>, View<const std::int32_t>, View<double>);

template void vocab_statistics<float>(Stream&, View<const float>, View<const std::int32_t>, VocabPiece,
                                      View<float>);
template void vocab_cross_entropy_in_place<float>(Stream&, View<float>, View<const std::int32_t>, VocabPiece,
                                                  View<const float>, double, View<float>);

template void vocab_statistics<double>(Stream&, View<const double>, View<const std::int32_t>, VocabPiece,
                                       View<double>);
template void vocab_cross_entropy_in_place<double>(Stream&, View<double>, View<const std::int32_t>,
                                                   VocabPiece, View<const double>, double, View<double>);

template void vocab_statistics<bf16>(Stream&, View<const bf16>, View<const std::int32_t>, VocabPiece,
                                     View<float>);
template void vocab_cross_entropy_in_place<bf16>(Stream&, View<bf16>, View<const std::int32_t>, VocabPiece,
                                                 View<const float>, double, View<float>);

}  // namespace ridge::kernels::cuda
