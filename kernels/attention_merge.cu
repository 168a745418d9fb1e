// Memory-bound. A team of lanes of one warp has a row: all read its log-sum-exps before one writes them.
#include "kernels/attention_merge.h"
#include "kernels/device/strided.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::aligned_rows, device::kThreads, device::kVec, device::kWarp, device::load, device::load_vec;
using device::round_to, device::store_vec, device::Vec;

// Where the row of query t of head h begins; strides in elements.
template <class T>
struct Rows {
  T* data;
  std::int64_t batch, token, head;

  explicit Rows(const View<T>& x_BTHD)
      : data(x_BTHD.data), batch(x_BTHD.strides[0]), token(x_BTHD.strides[1]), head(x_BTHD.strides[2]) {}
  __device__ __forceinline__ T* at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + b * batch + t * token + h * head;
  }
  bool in_vectors(int n) const {
    return aligned_rows(data, batch, n) && aligned_rows(data, token, n) && aligned_rows(data, head, n);
  }
};

template <class T>
Rows<T> lse_rows(const View<T>& x_BHT) {
  return Rows<T>(
      View<T>(x_BHT.data, {1, 1, 1, 1}, {x_BHT.strides[0], x_BHT.strides[2], x_BHT.strides[1], 1}));
}

template <class A, class B, class Y>
struct Merge {
  using C = acc_t<B>;
  Rows<const A> a;
  Rows<const B> b;
  Rows<Y> y;
  Rows<const C> lse_a, lse_b;
  Rows<C> lse_y;
  std::uint32_t rows, tokens, heads, head_dim, lanes;  // lanes: of a team, a power of two up to 32
};

template <int N, class A, class B, class Y>
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ Merge<A, B, Y> p) {
  using C = acc_t<B>;
  const std::uint32_t row = blockIdx.x * (kThreads / p.lanes) + threadIdx.x / p.lanes,
                      lane = threadIdx.x % p.lanes;
  const bool inside = row < p.rows;
  const std::uint32_t h = row % p.heads, t = row / p.heads % p.tokens, i = row / p.heads / p.tokens;
  C of_a = 1, of_b = 0, lse = 0;
  if (inside) {
    const C lse_a = *p.lse_a.at(i, t, h), lse_b = *p.lse_b.at(i, t, h);
    lse = lse_a > lse_b ? lse_a : lse_b;
    if (lse != -static_cast<C>(INFINITY)) {
      const C ea = exp(lse_a - lse), eb = exp(lse_b - lse), sum = ea + eb;
      of_a = ea / sum;
      of_b = eb / sum;
      lse += log(sum);
    }
  }
  __syncwarp();  // the team has read what is written next
  if (!inside) return;
  if (lane == 0) *p.lse_y.at(i, t, h) = lse;
  const A* a = p.a.at(i, t, h);
  const B* b = p.b.at(i, t, h);
  Y* y = p.y.at(i, t, h);
  for (std::uint32_t d = lane * N; d < p.head_dim; d += p.lanes * N) {
    const Vec<A, N> left = load_vec<A, N>(a + d);
    const Vec<B, N> right = load_vec<B, N>(b + d);
    Vec<Y, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) out.at[k] = round_to<Y>(load(left.at[k]) * of_a + load(right.at[k]) * of_b);
    store_vec(y + d, out);
  }
}

template <int N, class A, class B, class Y>
void run(const Stream& stream, Merge<A, B, Y> p) {
  p.lanes = 1;
  while (p.lanes < kWarp && p.lanes * N < p.head_dim) p.lanes *= 2;
  const unsigned blocks = device::grid_for(p.rows, kThreads / p.lanes);
  merge_kernel<N><<<blocks, kThreads, 0, device::native(stream)>>>(p);
}

struct AddParts {
  template <class A, class B, class Y>
  __device__ __forceinline__ void operator()(const A& a, const B& b, Y& y) const {
    y = round_to<Y>(load(a) + load(b));
  }
};

}  // namespace

template <class A, class B, class Y>
void merge_attention(Stream& stream, View<const A> a, View<const acc_t<B>> lse_a, View<const B> b,
                     View<const acc_t<B>> lse_b, View<Y> y, View<acc_t<B>> lse_y) {
  if (b.numel() == 0) return;
  const std::int64_t rows = b.dim(0) * b.dim(1) * b.dim(2);
  check(rows < std::int64_t{1} << 31, "merge_attention: fewer than 2^31 rows");
  const auto extent = [&](int d) { return static_cast<std::uint32_t>(b.dim(d)); };
  const Merge<A, B, Y> p{Rows(a),
                         Rows(b),
                         Rows(y),
                         lse_rows(lse_a),
                         lse_rows(lse_b),
                         lse_rows(lse_y),
                         static_cast<std::uint32_t>(rows),
                         extent(1),
                         extent(2),
                         extent(3),
                         1};
  constexpr int kN = kVec<B>;
  const bool vectors = b.dim(3) % kN == 0 && p.a.in_vectors(kN) && p.b.in_vectors(kN) && p.y.in_vectors(kN);
  vectors ? run<kN>(stream, p) : run<1>(stream, p);
}

template <class A, class B, class Y>
void add_parts(Stream& stream, View<const A> a, View<const B> b, View<Y> y) {
  device::map(stream, AddParts{}, a, b, y);
}

template void merge_attention(Stream&, View<const float>, View<const float>, View<const float>,
                              View<const float>, View<float>, View<float>);
template void merge_attention(Stream&, View<const double>, View<const double>, View<const double>,
                              View<const double>, View<double>, View<double>);
template void merge_attention(Stream&, View<const bf16>, View<const float>, View<const bf16>,
                              View<const float>, View<bf16>, View<float>);
template void merge_attention(Stream&, View<const bf16>, View<const float>, View<const bf16>,
                              View<const float>, View<float>, View<float>);
template void merge_attention(Stream&, View<const float>, View<const float>, View<const bf16>,
                              View<const float>, View<bf16>, View<float>);
template void merge_attention(Stream&, View<const float>, View<const float>, View<const bf16>,
                              View<const float>, View<float>, View<float>);

template void add_parts(Stream&, View<const float>, View<const float>, View<float>);
template void add_parts(Stream&, View<const double>, View<const double>, View<double>);
template void add_parts(Stream&, View<const bf16>, View<const bf16>, View<bf16>);
template void add_parts(Stream&, View<const bf16>, View<const bf16>, View<float>);
template void add_parts(Stream&, View<const float>, View<const bf16>, View<bf16>);
template void add_parts(Stream&, View<const float>, View<const bf16>, View<float>);

}  // namespace ridge::kernels::cuda
