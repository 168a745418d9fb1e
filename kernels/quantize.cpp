// Rounding to nearest on the CPU: absmax of a group in integers, then a loop over its elements without
// branches.
#include "kernels/quantize.h"

#include <algorithm>
#include <cstring>

#include "core/base/memory.h"
#include "core/base/threads.h"
#include "kernels/element.h"
#include "kernels/formats/codes.h"
#include "kernels/formats/flat_rows.h"
#include "kernels/quantize_nested.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kElementsPerTask = 65536;
constexpr std::int64_t kBlocksPerTask = kElementsPerTask / kFlatBlock;
constexpr std::int64_t kCodesAtOnce = kFlatBlock;  // before two become a byte

template <class T>
std::uint32_t absmax_bits(const T* x, std::int64_t n, std::uint32_t most = 0) {
#pragma omp simd reduction(max : most)
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t m = magnitude_bits(load(x[i]));
    most = m > most ? m : most;
  }
  return most;
}

template <Codes kCodes, class T>
void encode_bytes(const T* x, std::int64_t n, float scale, std::uint8_t* codes) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float value = load(x[i]) / scale;
    codes[i] = static_cast<std::uint8_t>(kCodes == Codes::int8 ? int8_code(value) : fp8_code(value));
  }
}

/// Rectangles [rows, cols] of the matrix that share a scale: int8 and fp8.
template <Codes kCodes, class T>
void quantize_bytes(const View<const T>& w, const QuantTarget& out) {
  const std::int64_t rows_each = out.format.tiles ? out.format.group : 1;
  const std::int64_t cols_each = out.format.group == 0 ? w.dim(1) : out.format.group;
  const std::int64_t bands = (w.dim(0) + rows_each - 1) / rows_each;
  auto* scales = static_cast<float*>(out.scales);
  const auto quantize_band = [&](std::int64_t band) {
    const std::int64_t r0 = band * rows_each, r1 = std::min(w.dim(0), r0 + rows_each);
    for (std::int64_t c = 0; c < w.dim(1); c += cols_each) {
      const std::int64_t width = std::min(cols_each, w.dim(1) - c);
      std::uint32_t most = 0;
      for (std::int64_t r = r0; r < r1; ++r) most = absmax_bits(&w(r, c), width, most);
      const float scale = scale_of(most, kCodes == Codes::int8 ? kInt8Divisor : kFp8Divisor);
      *(scales + band * ((w.dim(1) + cols_each - 1) / cols_each) + c / cols_each) = scale;
      for (std::int64_t r = r0; r < r1; ++r)
        encode_bytes<kCodes>(&w(r, c), width, scale, out.codes + r * w.dim(1) + c);
    }
  };
  parallel_for(bands, kElementsPerTask / std::max<std::int64_t>(1, rows_each * w.dim(1)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t band = begin; band < end; ++band) quantize_band(band);
               });
}

struct GroupScale {
  float scale, zero;  // as int4_code has them
};

template <class T>
GroupScale group_scale(const T* x, std::int64_t n, bool zero_points, bool as_bf16) {
  const std::uint32_t most = absmax_bits(x, n);
  if (!zero_points) return {kept_scale(scale_of(most, kInt4Divisor), as_bf16), 0.0f};
  float least = 0, greatest = 0;
#pragma omp simd reduction(min : least) reduction(max : greatest)
  for (std::int64_t i = 0; i < n; ++i) {
    least = load(x[i]) < least ? load(x[i]) : least;
    greatest = load(x[i]) > greatest ? load(x[i]) : greatest;
  }
  const float scale = kept_scale(asymmetric_scale(most, least, greatest), as_bf16);
  return {scale, static_cast<float>(int4_zero(least, scale)) - 8.0f};
}

/// Two codes become a byte, the first in the low half or in the high one; 16 bits at a time, little-endian.
template <bool kLowFirst>
void pack_nibbles(const std::uint8_t (&single)[kCodesAtOnce], std::uint8_t (&bytes)[kCodesAtOnce / 2]) {
  std::uint16_t pairs[kCodesAtOnce / 2];
  std::memcpy(pairs, single, sizeof pairs);
#pragma omp simd
  for (std::int64_t i = 0; i < kCodesAtOnce / 2; ++i) {
    const std::uint16_t u = pairs[i];
    bytes[i] = static_cast<std::uint8_t>(kLowFirst ? u | u >> 4 : u << 4 | u >> 8);
  }
}

/// n: even.
template <class T>
void encode_int4(const T* x, std::int64_t n, GroupScale g, std::uint8_t* codes) {
  std::uint8_t single[kCodesAtOnce] = {}, bytes[kCodesAtOnce / 2];
  for (std::int64_t begin = 0; begin < n; begin += kCodesAtOnce) {
    const std::int64_t here = std::min(kCodesAtOnce, n - begin);
#pragma omp simd
    for (std::int64_t i = 0; i < here; ++i)
      single[i] = static_cast<std::uint8_t>(int4_code(load(x[begin + i]) / g.scale, g.zero));
    pack_nibbles<true>(single, bytes);
    std::memcpy(codes + begin / 2, bytes, static_cast<std::size_t>(here / 2));
  }
}

template <class T>
void quantize_int4(const View<const T>& w, const QuantTarget& out) {
  const std::int64_t group = out.format.group, groups = w.dim(1) / group;
  const bool as_bf16 = out.scale_dtype == DType::bf16;
  const auto quantize_group = [&](std::int64_t row, std::int64_t g) {
    const std::int64_t at = row * groups + g;
    const T* x = &w(row, g * group);
    const GroupScale found = group_scale(x, group, out.format.zero_points, as_bf16);
    if (as_bf16) {
      static_cast<bf16*>(out.scales)[at] = bf16(found.scale);
    } else {
      static_cast<float*>(out.scales)[at] = found.scale;
    }
    if (out.format.zero_points) out.zeros[at] = static_cast<std::uint8_t>(found.zero + 8.0f);
    encode_int4(x, group, found, out.codes + at * group / 2);
  };
  parallel_for(w.dim(0), kElementsPerTask / std::max<std::int64_t>(1, w.dim(1)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t row = begin; row < end; ++row) {
                   for (std::int64_t g = 0; g < groups; ++g) quantize_group(row, g);
                 }
               });
}

/// A block's absmax; its codes, of which zeros follow `n` elements.
template <Codes kCodes>
float encode_block(float (&x)[kFlatBlock], std::int64_t n, std::uint8_t* codes) {
  for (std::int64_t i = n; i < kFlatBlock; ++i) x[i] = 0;
  const float absmax = std::bit_cast<float>(absmax_bits(x, kFlatBlock));
  const float inverse = inverse_of(absmax);
  std::uint8_t single[kCodesAtOnce], bytes[kCodesAtOnce / 2];
#pragma omp simd
  for (std::int64_t i = 0; i < kFlatBlock; ++i) {
    const float value = x[i] * inverse;
    single[i] = static_cast<std::uint8_t>(kCodes == Codes::nf4 ? nf4_code(value) : fp4_code(value));
  }
  pack_nibbles<false>(single, bytes);
  std::memcpy(codes, bytes, static_cast<std::size_t>((n + 1) / 2));
  return absmax;
}

template <Codes kCodes, class T>
void quantize_blocks(const View<const T>& w, const QuantTarget& out, float* absmax) {
  const FlatRows<const T> flat(w);
  parallel_for((flat.count + kFlatBlock - 1) / kFlatBlock, kBlocksPerTask,
               [&](std::int64_t begin, std::int64_t end) {
                 float x[kFlatBlock];
                 for (std::int64_t b = begin; b < end; ++b) {
                   const std::int64_t first = b * kFlatBlock, n = std::min(kFlatBlock, flat.count - first);
                   flat.read(first, n, x);
                   absmax[b] = encode_block<kCodes>(x, n, out.codes + first / 2);
                 }
               });
}

template <class T>
void quantize_flat(const View<const T>& w, const QuantTarget& out, float* absmax) {
  if (out.format.codes == Codes::nf4) {
    quantize_blocks<Codes::nf4>(w, out, absmax);
  } else {
    quantize_blocks<Codes::fp4>(w, out, absmax);
  }
}

template <class T>
void quantize_on_cpu(const View<const T>& w, const QuantTarget& out) {
  switch (out.format.codes) {
    case Codes::int8:
      return quantize_bytes<Codes::int8>(w, out);
    case Codes::fp8:
      return quantize_bytes<Codes::fp8>(w, out);
    case Codes::int4:
      return quantize_int4(w, out);
    case Codes::nf4:
    case Codes::fp4:
      break;
  }
  if (!out.format.double_quant) return quantize_flat(w, out, static_cast<float*>(out.scales));
  const std::int64_t blocks = scale_count(out.format, out.rows, out.cols);
  const Storage scratch(Device::cpu, blocks * static_cast<std::int64_t>(sizeof(float)));
  auto* absmax = static_cast<float*>(scratch.data());
  quantize_flat(w, out, absmax);
  quantize_scales(absmax, blocks, out);
}

double stored_bytes_of(const QuantTarget& out) {
  return static_cast<double>(stored_bytes(out.format, out.rows, out.cols, out.scale_dtype));
}

}  // namespace

template <class T>
void quantize(Stream& stream, View<const T> w_NK, const QuantTarget& out) {
  check(w_NK.ndim() == 2 && w_NK.dim(0) == out.rows && w_NK.dim(1) == out.cols,
        "quantize: matrices of one shape");
  check(w_NK.rows_dense(), "quantize: dense rows");
  check(out.first_block == 0, "quantize: whole matrices");
  check(out.format.codes != Codes::int4 || (out.format.group % 2 == 0 && out.cols % out.format.group == 0),
        "quantize: whole groups of an even size");
  // A comparison and a division or multiplication an element.
  launch(
      stream, "quantize", Work{2 * static_cast<double>(w_NK.numel()), w_NK.bytes() + stored_bytes_of(out)},
      [&] { quantize_on_cpu(w_NK, out); }, [&] { cuda::quantize<T>(stream, w_NK, out); });
}

template void quantize<float>(Stream&, View<const float>, const QuantTarget&);
template void quantize<bf16>(Stream&, View<const bf16>, const QuantTarget&);

}  // namespace ridge::kernels
