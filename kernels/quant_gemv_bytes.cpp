// int8 and fp8.
#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "kernels/formats/codes.h"
#include "kernels/lanes.h"
#include "kernels/quant_gemv.h"

namespace ridge::kernels {
namespace {

using lanes::Bytes, lanes::Floats, lanes::Ints, lanes::load, lanes::load_once, lanes::Words;

constexpr std::int64_t kStep = kStepBytes;  // weights
constexpr std::int64_t kAhead = 4096;       // bytes: the hardware's own prefetcher stops at page borders

// 64 values as 4 vectors, in the order of `arrange`.
struct Int8 {
  Words words;

  explicit Int8(const std::uint8_t* codes) : words(load_once<Words>(codes)) {}
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
      const auto bits = std::bit_cast<std::uint32_t>(fp8_value(code));
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
    const Bytes codes = load_once<Bytes>(from);
    const Bytes low = lanes::pick(table.low[0], table.low[1], codes);  // takes 7 bits of each
    const Bytes high = lanes::pick(table.high[0], table.high[1], codes) | (codes & 0x80);
    halves[0] = interleave_first(low, high);
    halves[1] = interleave_second(low, high);
  }
  template <int kPart>
  Floats part() const {
    const Words w = halves[kPart / 2];
    return reinterpret_cast<Floats>(kPart % 2 == 0 ? w << 16 : w & 0xFFFF0000u);
  }
};

// Adds the products of a step of kN rows of w, each times its scale, to the totals of kM rows of x.
template <int kM, int kN, class Values, class Scale>
[[gnu::always_inline]] inline void add_step(const std::uint8_t* codes, std::int64_t row_bytes, const float* x,
                                            std::int64_t stride, const Values& values, const Scale& scale,
                                            Floats (&total)[kN][kM]) {
  Floats w[kN][4];
#pragma GCC unroll 2
  for (int r = 0; r < kN; ++r) {
    const auto step = values(codes + r * row_bytes);
    w[r][0] = step.template part<0>();
    w[r][1] = step.template part<1>();
    w[r][2] = step.template part<2>();
    w[r][3] = step.template part<3>();
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    const float* row = x + m * stride;
    const Floats x0 = load<Floats>(row), x1 = load<Floats>(row + 16), x2 = load<Floats>(row + 32),
                 x3 = load<Floats>(row + 48);
#pragma GCC unroll 2
    for (int r = 0; r < kN; ++r)
      total[r][m] += ((w[r][0] * x0 + w[r][1] * x1) + (w[r][2] * x2 + w[r][3] * x3)) * scale(r);
  }
}

// `values(codes)`: a step's; `scale(r, k)`: of the columns from k on of row r; `whole(r)`: of the row.
template <int kM, int kN, class Values, class Scale, class Whole>
void dot(const std::uint8_t* codes, std::int64_t cols, const ArrangedRows& x, const Values& values,
         const Scale& scale, const Whole& whole, float* y, std::int64_t y_stride) {
  Floats total[kN][kM] = {};
  const std::int64_t steps = cols / kStep * kStep, rest = cols - steps;
  const std::int64_t ahead = (kAhead + kN * cols - 1) / (kN * cols) * kN * cols;
  for (std::int64_t k = 0; k < steps; k += kStep) {
    for (int r = 0; r < kN; ++r) __builtin_prefetch(codes + r * cols + k + ahead);
    add_step<kM, kN>(
        codes + k, cols, x.x + k, x.stride, values, [&](int r) { return scale(r, k); }, total);
  }
  if (rest > 0) {
    alignas(64) std::uint8_t last[kN][kStep] = {};
    for (int r = 0; r < kN; ++r) std::copy_n(codes + r * cols + steps, rest, last[r]);
    add_step<kM, kN>(
        last[0], kStep, x.x + steps, x.stride, values, [&](int r) { return scale(r, steps); }, total);
  }
  for (int m = 0; m < kM; ++m) {
    for (int r = 0; r < kN; ++r) y[m * y_stride + r] = lanes::sum(total[r][m]) * whole(r);
  }
}

// Rows n .. n + kN - 1 of w.
template <int kM, int kN>
void dot_rows(const QuantView& w, const Fp8Lookup& lookup, const ArrangedRows& x, std::int64_t n, float* y,
              std::int64_t y_stride) {
  const auto* scales = static_cast<const float*>(w.scales);
  const std::uint8_t* codes = w.codes + n * w.cols;
  const auto int8 = [](const std::uint8_t* step) { return Int8(step); };
  const auto fp8 = [&](const std::uint8_t* step) { return Fp8(step, lookup); };
  const auto one = [](int, std::int64_t) { return 1.0f; };
  const auto whole = [&](int r) { return scales[n + r]; };
  if (w.format.codes == Codes::int8) return dot<kM, kN>(codes, w.cols, x, int8, one, whole, y, y_stride);
  if (!w.format.tiles) return dot<kM, kN>(codes, w.cols, x, fp8, one, whole, y, y_stride);
  const auto g = static_cast<std::uint32_t>(w.format.group);  // 32 bits divide faster
  const std::int64_t tiles = (w.cols + w.format.group - 1) / w.format.group;
  const float* tile_rows[kN];
  for (int r = 0; r < kN; ++r) tile_rows[r] = scales + (n + r) / w.format.group * tiles;
  const auto tile = [&](int r, std::int64_t k) { return tile_rows[r][static_cast<std::uint32_t>(k) / g]; };
  dot<kM, kN>(
      codes, w.cols, x, fp8, tile, [](int) { return 1.0f; }, y, y_stride);
}

// Two rows of w share what is loaded of x; one row of x is loaded fast enough for one.
template <int kM>
void run(const QuantView& w, const ArrangedRows& x, std::int64_t begin, std::int64_t end, float* y,
         std::int64_t y_stride) {
  static const Fp8Table table;
  const Fp8Lookup lookup(table);
  std::int64_t n = begin;
  for (; kM > 1 && n + 2 <= end; n += 2) dot_rows<kM, 2>(w, lookup, x, n, y + (n - begin), y_stride);
  for (; n < end; ++n) dot_rows<kM, 1>(w, lookup, x, n, y + (n - begin), y_stride);
}

}  // namespace

void quant_gemv_bytes(const QuantView& w, const ArrangedRows& x, std::int64_t rows, std::int64_t begin,
                      std::int64_t end, float* y, std::int64_t y_stride) {
  [&]<int... kM>(std::integer_sequence<int, kM...>) {
    (void)((rows == kM + 1 && (run<kM + 1>(w, x, begin, end, y, y_stride), true)) || ...);
  }
  (std::make_integer_sequence<int, kQuantGemvRows>());
}

}  // namespace ridge::kernels
