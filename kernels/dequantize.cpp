// Codes back into values on the CPU.
#include <array>
#include <cstring>
#include <limits>

#include "core/base/threads.h"
#include "kernels/element.h"
#include "kernels/formats/codes.h"
#include "kernels/formats/flat_rows.h"
#include "kernels/quantize.h"
#include "kernels/quantize_nested.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kElementsPerTask = 65536;
constexpr std::int64_t kBlocksAtOnce = 256;  // of a flat format: their scales are decoded first

float scale_at(const QuantView& w, std::int64_t i) {
  return w.scale_dtype == DType::bf16 ? static_cast<float>(static_cast<const bf16*>(w.scales)[i])
                                      : static_cast<const float*>(w.scales)[i];
}

template <Codes kCodes, class T>
void decode_bytes(const std::uint8_t* codes, std::int64_t n, float scale, T* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i)
    store(y[i], (kCodes == Codes::int8 ? int8_value(codes[i]) : fp8_value(codes[i])) * scale);
}

template <Codes kCodes, class T>
void dequantize_bytes(const QuantView& w, const View<T>& out) {
  const std::int64_t rows_each = w.format.tiles ? w.format.group : 1;
  const std::int64_t cols_each = std::max<std::int64_t>(1, w.format.group == 0 ? w.cols : w.format.group);
  const std::int64_t per_band = (w.cols + cols_each - 1) / cols_each;
  const auto* scales = static_cast<const float*>(w.scales);
  parallel_for(w.rows, kElementsPerTask / std::max<std::int64_t>(1, w.cols),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t r = begin; r < end; ++r) {
                   for (std::int64_t c = 0; c < w.cols; c += cols_each)
                     decode_bytes<kCodes>(w.codes + r * w.cols + c, std::min(cols_each, w.cols - c),
                                          scales[r / rows_each * per_band + c / cols_each], &out(r, c));
                 }
               });
}

/// n codes, even; the low half of a byte first.
template <class T>
inline void decode_int4(const std::uint8_t* codes, std::int64_t n, float scale, int zero, T* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < n / 2; ++i) {
    const int low = (codes[i] & 15) - zero, high = (codes[i] >> 4) - zero;
    store(y[2 * i], static_cast<float>(low) * scale);
    store(y[2 * i + 1], static_cast<float>(high) * scale);
  }
}

template <class T>
void decode_group(const std::uint8_t* codes, std::int64_t n, float scale, int zero, T* y) {
  if (n == 32) return decode_int4(codes, 32, scale, zero, y);  // short: better with a count that is known
  decode_int4(codes, n, scale, zero, y);
}

template <class T>
void dequantize_int4(const QuantView& w, const View<T>& out) {
  const std::int64_t group = w.format.group, groups = w.cols / group;
  parallel_for(w.rows, kElementsPerTask / std::max<std::int64_t>(1, w.cols),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t at = begin * groups; at < end * groups; ++at)
                   decode_group(w.codes + at * group / 2, group, scale_at(w, at),
                                w.format.zero_points ? w.zeros[at] : 8,
                                &out(at / groups, at % groups * group));
               });
}

/// What both halves of a byte stand for, the high one first.
using PairTable = std::array<std::array<float, 2>, 256>;

PairTable make_pairs(const std::array<float, 16>& values) {
  PairTable pairs;
  for (std::size_t byte = 0; byte < 256; ++byte) pairs[byte] = {values[byte >> 4], values[byte & 15]};
  return pairs;
}

const PairTable& pairs_of(Codes codes) {
  static const PairTable kNf4 = make_pairs(nf4_values()), kFp4 = make_pairs(fp4_values());
  return codes == Codes::nf4 ? kNf4 : kFp4;
}

template <class T>
void dequantize_flat(const QuantView& w, const View<T>& out) {
  const FlatRows<T> flat(out);
  const PairTable& pairs = pairs_of(w.format.codes);
  const auto decode_blocks = [&](std::int64_t begin, std::int64_t end) {
    float decoded[kBlocksAtOnce];
    if (w.format.double_quant) decode_scales(w, begin, end, decoded);
    const float* scales = w.format.double_quant ? decoded : static_cast<const float*>(w.scales) + begin;
    for (std::int64_t b = begin; b < end; ++b) {
      const std::int64_t first = b * kFlatBlock, n = std::min(kFlatBlock, flat.count - first);
      float values[kFlatBlock];
      for (std::int64_t i = 0; i < n; i += 2)
        std::memcpy(values + i, pairs[w.codes[(first + i) / 2]].data(), 2 * sizeof(float));
      flat.write(first, n, values, scales[b - begin]);
    }
  };
  parallel_for((flat.count + kFlatBlock - 1) / kFlatBlock, kBlocksAtOnce, decode_blocks);
}

template <class T>
void dequantize_on_cpu(const QuantView& w, const View<T>& out) {
  switch (w.format.codes) {
    case Codes::int8:
      return dequantize_bytes<Codes::int8>(w, out);
    case Codes::fp8:
      return dequantize_bytes<Codes::fp8>(w, out);
    case Codes::int4:
      return dequantize_int4(w, out);
    case Codes::nf4:
    case Codes::fp4:
      return dequantize_flat(w, out);
  }
}

}  // namespace

template <class T>
void dequantize(Stream& stream, const QuantView& w, View<T> out_NK) {
  check(out_NK.ndim() == 2 && out_NK.dim(0) == w.rows && out_NK.dim(1) == w.cols,
        "dequantize: matrices of one shape");
  check(out_NK.rows_dense(), "dequantize: dense rows");
  launch(
      stream, "dequantize", Work{static_cast<double>(out_NK.numel()), bytes_of(w) + out_NK.bytes()},
      [&] { dequantize_on_cpu(w, out_NK); }, [&] { cuda::dequantize<T>(stream, w, out_NK); });
}

template void dequantize<float>(Stream&, const QuantView&, View<float>);
template void dequantize<double>(Stream&, const QuantView&, View<double>);
template void dequantize<bf16>(Stream&, const QuantView&, View<bf16>);

void dequantize_scales(Stream& stream, const QuantView& w, View<float> out) {
  const std::int64_t count = scale_count(w.format, w.rows, w.cols);
  check(w.format.double_quant && out.numel() == count && out.contiguous(), "dequantize_scales: one a block");
  const double n = static_cast<double>(count);
  launch(
      stream, "dequantize_scales", Work{2 * n, n * (1 + 1.0 / 64) + out.bytes()},
      [&] {
        parallel_for(count, kElementsPerTask, [&](std::int64_t begin, std::int64_t end) {
          decode_scales(w, begin, end, out.data + begin);
        });
      },
      [&] { cuda::dequantize_scales(stream, w, out); });
}

std::int64_t first_bad_scale(const QuantView& w) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const bool zero_is_fine = w.format.flat();
  const std::int64_t count = scale_count(w.format, w.rows, w.cols);
  for (std::int64_t i = 0; i < count; ++i) {
    float scale = 0;
    if (w.format.double_quant) {
      decode_scales(w, i, i + 1, &scale);
      if (!(scale > -kInfinity && scale < kInfinity)) return i;
      continue;
    }
    scale = scale_at(w, i);
    const bool fine = scale < kInfinity && (scale > 0 || (zero_is_fine && scale == 0));
    if (!fine) return i;
  }
  return -1;
}

}  // namespace ridge::kernels
