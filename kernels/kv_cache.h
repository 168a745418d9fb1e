// Keys and values of tokens gone by, for decoding: how they are kept, and how they get there.
//
// B sequences, T tokens of each, S tokens of room (capacity), H query heads, G key-value heads, D head dim,
// P rows of the rotary tables, X = (H + 2 G) D.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// fp8 (e4m3fn) and int8 have one f32 scale a sequence, position and head: the absmax of its D values / 448
/// or / 127.
enum class KvFormat : std::uint8_t { f32, bf16, fp8, int8 };

/// "f32", "bf16", "fp8" or "int8"; a UserError lists the names.
KvFormat parse_kv_format(std::string_view name);
std::string_view name_of(KvFormat format);
constexpr std::int64_t element_bytes(KvFormat format) {
  return format == KvFormat::f32 ? 4 : (format == KvFormat::bf16 ? 2 : 1);
}
constexpr bool has_scales(KvFormat format) { return format == KvFormat::fp8 || format == KvFormat::int8; }
/// Of one cached token of one layer: keys and values with their scales.
constexpr std::int64_t kv_bytes(KvFormat format, std::int64_t kv_heads, std::int64_t head_dim) {
  return 2 * kv_heads * (head_dim * element_bytes(format) + (has_scales(format) ? 4 : 0));
}

/// The cache of one layer; owns nothing. Keys and values are dense [B, S, G, D], 16-byte aligned; token p of
/// a sequence is in row p. Scales are dense [B, S, G], and null for f32 and bf16.
struct KvView {
  KvFormat format = KvFormat::f32;
  void* keys = nullptr;
  void* values = nullptr;
  float* key_scales = nullptr;
  float* value_scales = nullptr;
  std::int64_t batch = 0, capacity = 0, kv_heads = 0, head_dim = 0;
};

struct QkvHeads {
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t width() const { return (heads + 2 * kv_heads) * head_dim; }
};

/// A row of qkv is H heads of q, G of k, G of v. Rotates q in place and k on its way into the cache (see
/// rotary.h), rounds k to T, and writes k and v into row positions[b, t] of sequence b; qkv's k and v stay. A
/// position of -1 is no token: nothing is written. On the CPU a position outside the cache or the tables is
/// an Error; a GPU takes it for -1. qkv has dense rows, any other strides; tables and positions are dense. T:
/// float or bf16. A NaN or infinity makes the scale, and so all D values, NaN or infinite.
template <class T>
void rotary_append(Stream& stream, View<T> qkv_BTX, const QkvHeads& heads, View<const float> cos_PD2,
                   View<const float> sin_PD2, View<const std::int32_t> positions_BT, const KvView& cache);

/// What `launch` runs on a GPU; arguments are checked already (kv_cache.cu).
namespace cuda {
template <class T>
void rotary_append(Stream& stream, View<T> qkv_BTX, const QkvHeads& heads, View<const float> cos_PD2,
                   View<const float> sin_PD2, View<const std::int32_t> positions_BT, const KvView& cache);
}  // namespace cuda

}  // namespace ridge::kernels
