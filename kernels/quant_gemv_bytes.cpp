// int8 and fp8.
#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "kernels/lanes.h"
#include "kernels/quant_gemv.h"

namespace ridge::kernels {
namespace {

using lanes::Bytes, lanes::Floats, lanes::Ints, lanes::load, lanes::Words;

constexpr std::int64_t kStep = kStepBytes;  // weights
constexpr std::int64_t kAhead = 4096;       // bytes: the hardware's own prefetcher stops at page borders

// 64 values as 4 vectors, in the order of `arrange`.
struct Int8 {
  Words words;

  explicit Int8(const std::uint8_t* codes) : words(load<Words>(codes)) {}
  template <int kPart>
  Floats part() const {
    return __builtin_convertvector(reinterpret_cast<Ints>(words << (24 - 8 * kPart)) >> 24, Floats);
  }
};

// The upper halves of the floats of e4m3fn codes 0 to 127; the lower ones are zeros.
struct Fp8Table {
  alignas(64) std::array<std::uint8_t, 128> low{}, high{};

  Fp8Table() {
    for (std::uint32_t code = 0; code < 128; ++code) {
      const int exponent = static_cast<int>(code >> 3), mantissa = static_cast<int>(code & 7);
      float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                  : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
      if (code == 127) value = std::nanf("");
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
      low[code] = static_cast<std::uint8_t>(bits >> 16);
      high[code] = static_cast<std::uint8_t>(bits >> 24);
    }
  }
};

// In registers for a loop over rows.
struct Fp8Lookup {
  Bytes low[2], high[2];

  explicit Fp8Lookup(const Fp8Table& t)
      : low{load<Bytes>(&t.low[0]), load<Bytes>(&t.low[64])},
        high{load<Bytes>(&t.high[0]), load<Bytes>(&t.high[64])} {}
};

Words interleave_first(const Bytes& a, const Bytes& b) {
  return reinterpret_cast<Words>(__builtin_shufflevector(
      a, b, 0, 64, 1, 65, 2, 66, 3, 67, 4, 68, 5, 69, 6, 70, 7, 71, 16, 80, 17, 81, 18, 82, 19, 83, 20, 84,
      21, 85, 22, 86, 23, 87, 32, 96, 33, 97, 34, 98, 35, 99, 36, 100, 37, 101, 38, 102, 39, 103, 48, 112, 49,
      113, 50, 114, 51, 115, 52, 116, 53, 117, 54, 118, 55, 119));
}

Words interleave_second(const Bytes& a, const Bytes& b) {
  return reinterpret_cast<Words>(__builtin_shufflevector(
      a, b, 8, 72, 9, 73, 10, 74, 11, 75, 12, 76, 13, 77, 14, 78, 15, 79, 24, 88, 25, 89, 26, 90, 27, 91, 28,
      92, 29, 93, 30, 94, 31, 95, 40, 104, 41, 105, 42, 106, 43, 107, 44, 108, 45, 109, 46, 110, 47, 111, 56,
      120, 57, 121, 58, 122, 59, 123, 60, 124, 61, 125, 62, 126, 63, 127));
}

struct Fp8 {
  Words halves[2];

  Fp8(const std::uint8_t* from, const Fp8Lookup& table) {
    const Bytes codes = load<Bytes>(from);
    const Bytes low = __builtin_shuffle(table.low[0], table.low[1], codes);  // takes 7 bits of each
    const Bytes high = __builtin_shuffle(table.high[0], table.high[1], codes) | (codes & 0x80);
    halves[0] = interleave_first(low, high);
    halves[1] = interleave_second(low, high);
  }
  template <int kPart>
  Floats part() const {
    const Words w = halves[kPart / 2];
    return reinterpret_cast<Floats>(kPart % 2 == 0 ? w << 16 : w & 0xFFFF0000u);
  }
};

// Adds a step's products, times `scale`, to the totals of kM rows.
template <int kM, class Values>
[[gnu::always_inline]] inline void add_step(const Values& w, const ArrangedRows& x, std::int64_t at, float scale, Floats* total) {
  const Floats w0 = w.template part<0>(), w1 = w.template part<1>(), w2 = w.template part<2>(),
               w3 = w.template part<3>();
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    const float* row = x.x + m * x.stride + at;
    const Floats sum = (w0 * load<Floats>(row) + w1 * load<Floats>(row + 16)) +
                       (w2 * load<Floats>(row + 32) + w3 * load<Floats>(row + 48));
    total[m] += sum * scale;
  }
}

// `values(codes)`: a step's; `scale(k)`: of the columns from k on; `whole`: of the row.
template <int kM, class Values, class Scale>
void dot_row(const std::uint8_t* codes, std::int64_t cols, const ArrangedRows& x, Values values, Scale scale,
             float whole, float* y, std::int64_t y_stride) {
  Floats total[kM] = {};
  const std::int64_t steps = cols / kStep * kStep;
  for (std::int64_t k = 0; k < steps; k += kStep) {
    __builtin_prefetch(codes + k + kAhead);
    add_step<kM>(values(codes + k), x, k, scale(k), total);
  }
  if (steps < cols) {
    alignas(64) std::uint8_t last[kStep] = {};
    std::copy_n(codes + steps, cols - steps, last);
    add_step<kM>(values(last), x, steps, scale(steps), total);
  }
  for (int m = 0; m < kM; ++m) y[m * y_stride] = lanes::sum(total[m]) * whole;
}

template <int kM>
void dot_rows(const QuantView& w, const ArrangedRows& x, std::int64_t begin, std::int64_t end, float* y,
              std::int64_t y_stride) {
  static const Fp8Table table;
  const Fp8Lookup lookup(table);
  const auto* scales = static_cast<const float*>(w.scales);
  const auto int8 = [](const std::uint8_t* codes) { return Int8(codes); };
  const auto fp8 = [&](const std::uint8_t* codes) { return Fp8(codes, lookup); };
  const auto one = [](std::int64_t) { return 1.0f; };
  const std::int64_t tiles = w.format.tiles ? (w.cols + w.format.group - 1) / w.format.group : 0;
  for (std::int64_t n = begin; n < end; ++n) {
    const std::uint8_t* codes = w.codes + n * w.cols;
    float* to = y + (n - begin);
    if (w.format.tiles) {
      const float* row = scales + n / w.format.group * tiles;
      const auto tile = [row, g = w.format.group](std::int64_t k) { return row[k / g]; };
      dot_row<kM>(codes, w.cols, x, fp8, tile, 1, to, y_stride);
    } else if (w.format.codes == Codes::fp8) {
      dot_row<kM>(codes, w.cols, x, fp8, one, scales[n], to, y_stride);
    } else {
      dot_row<kM>(codes, w.cols, x, int8, one, scales[n], to, y_stride);
    }
  }
}

}  // namespace

void quant_gemv_bytes(const QuantView& w, const ArrangedRows& x, std::int64_t rows, std::int64_t begin,
                      std::int64_t end, float* y, std::int64_t y_stride) {
  [&]<int... kM>(std::integer_sequence<int, kM...>) {
    (void)((rows == kM + 1 && (dot_rows<kM + 1>(w, x, begin, end, y, y_stride), true)) || ...);
  }
  (std::make_integer_sequence<int, kQuantGemvRows>());
}

}  // namespace ridge::kernels
