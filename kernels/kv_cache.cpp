// B batch, T tokens, S capacity, H query heads, G key-value heads, D head dim, P rows of the tables.
#include "kernels/kv_cache.h"

#include <algorithm>
#include <array>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/element.h"
#include "kernels/kv_codes.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kGrainElements = 16384;  // elements a chunk
constexpr std::array<std::string_view, 4> kNames{"f32", "bf16", "fp8", "int8"};

template <class T>
struct Append {
  View<T> qkv;
  QkvHeads heads;
  View<const float> cos, sin;
  View<const std::int32_t> positions;
  KvView cache;

  // x and y may be the same: each pair is read before it is written.
  void rotate(const T* x, std::int64_t row, T* y) const {
    const std::int64_t half = heads.head_dim / 2;
    const float *c = &cos(row, 0), *s = &sin(row, 0);
#pragma omp simd
    for (std::int64_t j = 0; j < half; ++j) {
      const float first = load(x[j]), second = load(x[j + half]);
      store(y[j], first * c[j] - second * s[j]);
      store(y[j + half], second * c[j] + first * s[j]);
    }
  }

  void keep(const T* x, void* data, float* scales, std::int64_t slot) const {
    const std::int64_t D = heads.head_dim;
    visit_kv(cache.format, [&]<class K>(std::type_identity<K>) {
      K* to = static_cast<K*>(data) + slot * D;
      if constexpr (kKvScaled<K>) {
        std::uint32_t absmax = 0;
        for (std::int64_t d = 0; d < D; ++d) absmax = std::max(absmax, magnitude_bits(load(x[d])));
        const float scale = scale_of(absmax, kKvDivisor<K>);
        scales[slot] = scale;
#pragma omp simd
        for (std::int64_t d = 0; d < D; ++d) to[d].bits = kv_code<K>(load(x[d]) / scale);
      } else {
#pragma omp simd
        for (std::int64_t d = 0; d < D; ++d) store(to[d], load(x[d]));
      }
    });
  }

  void token(std::int64_t b, std::int64_t t, T* rotated) const {
    const std::int64_t position = positions(b, t), D = heads.head_dim, G = heads.kv_heads;
    if (position == -1) return;
    if (position < 0 || position >= std::min(cache.capacity, cos.dim(0)))
      fail("rotary_append: position {} of a cache of {} tokens and tables of {} rows", position,
           cache.capacity, cos.dim(0));
    T* row = &qkv(b, t, 0);
    for (std::int64_t h = 0; h < heads.heads; ++h) rotate(row + h * D, position, row + h * D);
    const T *k = row + heads.heads * D, *v = k + G * D;
    for (std::int64_t g = 0; g < G; ++g) {
      const std::int64_t slot = (b * cache.capacity + position) * G + g;
      rotate(k + g * D, position, rotated);
      keep(rotated, cache.keys, cache.key_scales, slot);
      keep(v + g * D, cache.values, cache.value_scales, slot);
    }
  }
};

template <class T>
void check_append(const Append<T>& a) {
  const auto& [qkv, heads, cos, sin, positions, cache] = a;
  check(qkv.ndim() == 3 && qkv.dim(2) == heads.width() && qkv.rows_dense(),
        "rotary_append: qkv is [B, T, (H + 2 G) D] with dense rows");
  check(heads.head_dim % 2 == 0, "rotary_append: an even head dim");
  check(cos.ndim() == 2 && cos.shape == sin.shape && 2 * cos.dim(1) == heads.head_dim && cos.contiguous() &&
            sin.contiguous(),
        "rotary_append: tables are dense [P, D/2]");
  check(positions.shape == Shape({qkv.dim(0), qkv.dim(1)}) && positions.contiguous(),
        "rotary_append: positions are dense [B, T]");
  check(cache.batch == qkv.dim(0) && cache.kv_heads == heads.kv_heads && cache.head_dim == heads.head_dim,
        "rotary_append: a cache of these sequences and heads");
}

}  // namespace

KvFormat parse_kv_format(std::string_view name) {
  const auto* found = std::find(kNames.begin(), kNames.end(), name);
  require(found != kNames.end(), "the KV cache's format '{}' is none of f32, bf16, fp8, int8", name);
  return static_cast<KvFormat>(found - kNames.begin());
}

std::string_view name_of(KvFormat format) { return kNames[static_cast<std::size_t>(format)]; }

template <class T>
void rotary_append(Stream& stream, View<T> qkv, const QkvHeads& heads, View<const float> cos,
                   View<const float> sin, View<const std::int32_t> positions, const KvView& cache) {
  const Append<T> append{qkv, heads, cos, sin, positions, cache};
  check_append(append);
  const std::int64_t T_ = qkv.dim(1), tokens = qkv.dim(0) * T_;
  const double q_elements = static_cast<double>(tokens * heads.heads * heads.head_dim),
               rotated = q_elements + static_cast<double>(tokens * heads.kv_heads * heads.head_dim);
  const Work work{3 * rotated,  // 4 products and 2 sums a pair
                  qkv.bytes() + q_elements * sizeof(T) + positions.bytes() +
                      static_cast<double>(tokens * kv_bytes(cache.format, heads.kv_heads, heads.head_dim)) +
                      static_cast<double>(tokens * heads.head_dim) * sizeof(float)};
  const auto on_cpu = [&] {
    parallel_for(tokens, std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, heads.width())),
                 [&](std::int64_t begin, std::int64_t end) {
                   std::vector<T> rotated_D(static_cast<std::size_t>(heads.head_dim));
                   for (std::int64_t i = begin; i < end; ++i) append.token(i / T_, i % T_, rotated_D.data());
                 });
  };
  launch(stream, "rotary_append", work, on_cpu,
         [&] { cuda::rotary_append<T>(stream, qkv, heads, cos, sin, positions, cache); });
}

template void rotary_append(Stream&, View<float>, const QkvHeads&, View<const float>, View<const float>,
                            View<const std::int32_t>, const KvView&);
template void rotary_append(Stream&, View<bf16>, const QkvHeads&, View<const float>, View<const float>,
                            View<const std::int32_t>, const KvView&);

}  // namespace ridge::kernels
