// B sequences, H query heads, G key-value heads, D head dim.
#include "kernels/decode_attention.h"

#include <algorithm>

#include "core/base/launch.h"
#include "kernels/decode_attention_cut.h"

namespace ridge::kernels {
namespace {

template <class T>
void check_arguments(const View<T>& qkv, const QkvHeads& heads, const View<const float>& cos,
                     const View<const float>& sin, const View<const std::int32_t>& positions,
                     const KvView& cache, const View<T>& o, const CachedAttentionOptions& options,
                     const View<float>& scratch) {
  const std::int64_t B = qkv.dim(0), D = heads.head_dim;
  check(qkv.ndim() == 2 && qkv.dim(1) == heads.width() && qkv.rows_dense(),
        "decode_attention: qkv is [B, (H + 2 G) D] with dense rows");
  check(o.shape == Shape({B, heads.heads * D}) && o.rows_dense(),
        "decode_attention: o is [B, H D] with dense rows");
  check(cos.ndim() == 2 && cos.shape == sin.shape && 2 * cos.dim(1) == D && cos.contiguous() &&
            sin.contiguous(),
        "decode_attention: tables are dense [P, D/2] of an even head dim");
  check(positions.shape == Shape({B}) && positions.contiguous(), "decode_attention: positions are dense [B]");
  check(cache.batch == B && cache.kv_heads == heads.kv_heads && cache.head_dim == D && cache.kv_heads > 0 &&
            heads.heads % cache.kv_heads == 0 && cache.capacity <= cached_detail::kMostKeys,
        "decode_attention: a cache of these sequences and heads, of at most 2^28 tokens");
  check(options.window >= 0 && options.keys >= 0 && options.keys <= cache.capacity,
        "decode_attention: keys within the capacity");
  check(
      scratch.contiguous() && scratch.numel() >= decode_attention_scratch(B, heads.heads, heads.kv_heads, D),
      "decode_attention: scratch as decode_attention_scratch says");
}

// Rotation: 4 products and 2 sums a pair. Attention: 4 D flops a query head and key.
template <class T>
Work work_of(const View<T>& qkv, const View<T>& o, const QkvHeads& heads, const KvView& cache,
             const CachedAttentionOptions& options) {
  const std::int64_t keys = options.window > 0 ? std::min(options.keys, options.window) : options.keys;
  const double B = static_cast<double>(cache.batch), D = static_cast<double>(heads.head_dim),
               H = static_cast<double>(heads.heads), G = static_cast<double>(heads.kv_heads);
  return {B * D * (3 * (H + G) + 4 * H * static_cast<double>(keys)),
          qkv.bytes() + o.bytes() + B * (sizeof(std::int32_t) + D * sizeof(float)) +
              B * static_cast<double>(keys) *
                  static_cast<double>(kv_bytes(cache.format, heads.kv_heads, heads.head_dim))};
}

template <class T>
void run_both(Stream& stream, const View<T>& qkv, const QkvHeads& heads, const View<const float>& cos,
              const View<const float>& sin, const View<const std::int32_t>& positions, const KvView& cache,
              const View<T>& o, const CachedAttentionOptions& options, const View<float>& scratch) {
  const std::int64_t B = qkv.dim(0), H = heads.heads, D = heads.head_dim;
  const View<T> qkv_BTX(qkv.data, {B, 1, heads.width()}, {qkv.strides[0], qkv.strides[0], 1});
  const View<const T> q_BTHD(qkv.data, {B, 1, H, D}, {qkv.strides[0], qkv.strides[0], D, 1});
  const View<T> o_BTHD(o.data, {B, 1, H, D}, {o.strides[0], o.strides[0], D, 1});
  const View<const std::int32_t> positions_BT(positions.data, {B, 1});
  rotary_append<T>(stream, qkv_BTX, heads, cos, sin, positions_BT, cache);
  cached_attention<T>(stream, q_BTHD, cache, positions_BT, o_BTHD, options, scratch);
}

// Whether a GPU has one kernel for it: its lanes move pairs of elements.
template <class T>
bool one_kernel(const View<T>& qkv, const QkvHeads& heads, const KvView& cache, const View<T>& o) {
  const auto aligned = [](const void* data, std::uintptr_t bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
  };
  const std::int64_t D = heads.head_dim, blocks = qkv.dim(0) * heads.kv_heads;
  return std::is_same_v<T, bf16> && cache.format != KvFormat::f32 && (D == 64 || D == 128) &&
         heads.heads <= decode_detail::kMostShare * heads.kv_heads && qkv.dim(0) < 65536 &&
         blocks <= cached_detail::kGpuCounters && qkv.strides[0] % 2 == 0 && o.strides[0] % 4 == 0 &&
         aligned(qkv.data, 4) && aligned(o.data, 8) && aligned(cache.keys, 16) && aligned(cache.values, 16);
}

}  // namespace

std::int64_t decode_attention_scratch(std::int64_t batch, std::int64_t heads, std::int64_t kv_heads,
                                      std::int64_t head_dim) {
  const std::int64_t parts =
      decode_detail::most_parts(static_cast<std::int32_t>(std::clamp<std::int64_t>(kv_heads, 1, 1 << 20)));
  return std::max(cached_attention_scratch(batch, 1, heads, kv_heads, head_dim),
                  cached_detail::kGpuCounters + batch * heads * parts * (head_dim + 2));
}

template <class T>
void decode_attention(Stream& stream, View<T> qkv, const QkvHeads& heads, View<const float> cos,
                      View<const float> sin, View<const std::int32_t> positions, const KvView& cache,
                      View<T> o, const CachedAttentionOptions& options, View<float> scratch) {
  check_arguments(qkv, heads, cos, sin, positions, cache, o, options, scratch);
  if (o.numel() == 0) return;
  const auto both = [&] { run_both(stream, qkv, heads, cos, sin, positions, cache, o, options, scratch); };
  if (stream.device() == Device::cpu || !one_kernel(qkv, heads, cache, o)) return both();
  if constexpr (std::is_same_v<T, bf16>) {
    CachedAttentionOptions resolved = options;
    if (resolved.keys == 0) resolved.keys = cache.capacity;
    launch(stream, "decode_attention", work_of(qkv, o, heads, cache, resolved), both, [&] {
      cuda::decode_attention(stream, qkv, heads, cos, sin, positions, cache, o, resolved, scratch);
    });
  }
}

template void decode_attention(Stream&, View<float>, const QkvHeads&, View<const float>, View<const float>,
                               View<const std::int32_t>, const KvView&, View<float>,
                               const CachedAttentionOptions&, View<float>);
template void decode_attention(Stream&, View<bf16>, const QkvHeads&, View<const float>, View<const float>,
                               View<const std::int32_t>, const KvView&, View<bf16>,
                               const CachedAttentionOptions&, View<float>);

}  // namespace ridge::kernels
