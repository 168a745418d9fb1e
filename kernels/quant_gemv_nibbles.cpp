// int4, nf4 and fp4: a code is looked up in a register.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "kernels/lanes.h"
#include "kernels/quant_gemv.h"

namespace ridge::kernels {
namespace {

using lanes::Floats, lanes::load, lanes::Words;

constexpr std::int64_t kStep = 2 * kStepBytes;  // weights
constexpr std::int64_t kWord = 8;               // weights
constexpr std::int64_t kAhead = 4096;           // bytes: the hardware's own prefetcher stops at page borders

using Table = std::array<float, 16>;

constexpr Table kInt4 = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
// bitsandbytes' (Dettmers et al., 2023).
constexpr Table kNf4 = {-1.0f,
                        -0.6961928009986877f,
                        -0.5250730514526367f,
                        -0.39491748809814453f,
                        -0.28444138169288635f,
                        -0.18477343022823334f,
                        -0.09105003625154495f,
                        0.0f,
                        0.07958029955625534f,
                        0.16093020141124725f,
                        0.24611230194568634f,
                        0.33791524171829224f,
                        0.44070982933044434f,
                        0.5626170039176941f,
                        0.7229568362236023f,
                        1.0f};
constexpr Table kFp4 = {0,     0.0052083333f,  0.6666667f,  1.0f,  0.3333333f,  0.5f,  0.1666667f,  0.25f,
                        -0.0f, -0.0052083333f, -0.6666667f, -1.0f, -0.3333333f, -0.5f, -0.1666667f, -0.25f};

const Table& table_of(Codes codes) {
  return codes == Codes::int4 ? kInt4 : (codes == Codes::nf4 ? kNf4 : kFp4);
}

// One scale for each word of a row; zeros after the last column. Zero points: what the sum over a word's x is
// to be multiplied by.
struct WordScales {
  std::vector<float> scales, shifts;

  explicit WordScales(std::int64_t steps)
      : scales(static_cast<std::size_t>(steps * lanes::kCount)), shifts(scales.size()) {}

  template <class Scale>
  void spread(const QuantView& w, Scale scale, const std::uint8_t* zeros) {
    const std::int64_t words = w.format.group / kWord;
    for (std::int64_t g = 0; g < w.cols / w.format.group; ++g) {
      const float s = scale(g);
      float* to = scales.data() + g * words;
      for (std::int64_t i = 0; i < words; ++i) to[i] = s;
      if (zeros == nullptr) continue;
      const float shift = s * static_cast<float>(8 - static_cast<int>(zeros[g]));
      for (std::int64_t i = 0; i < words; ++i) shifts[static_cast<std::size_t>(g * words + i)] = shift;
    }
  }

  void fill(const QuantView& w, std::int64_t n) {
    const std::int64_t groups = w.cols / w.format.group, first = n * groups;
    const std::uint8_t* zeros = w.zeros == nullptr ? nullptr : w.zeros + first;
    if (w.format.double_quant) {
      const std::int64_t at = w.first_block + n * w.row_blocks;
      spread(
          w,
          [&](std::int64_t g) {
            return w.nested_map[w.scale_codes[first + g]] * w.nested_scales[(at + g) / kNestedBlock] +
                   *w.nested_offset;
          },
          zeros);
    } else if (w.scale_dtype == DType::bf16) {
      const auto* scales = static_cast<const bf16*>(w.scales) + first;
      spread(
          w, [&](std::int64_t g) { return static_cast<float>(scales[g]); }, zeros);
    } else {
      const auto* scales = static_cast<const float*>(w.scales) + first;
      spread(
          w, [&](std::int64_t g) { return scales[g]; }, zeros);
    }
  }
};

template <int kM, bool kZeros>
void add_step(const std::uint8_t* codes, const Floats& table, const ArrangedRows& x, std::int64_t step,
              const WordScales& w, Floats* total) {
  const Words words = load<Words>(codes);
  Floats sum[kM];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const Floats value = __builtin_shuffle(table, words >> (4 * j));  // takes 4 bits of each
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      const Floats product = value * load<Floats>(x.x + m * x.stride + step * kStep + j * lanes::kCount);
      sum[m] = j == 0 ? product : sum[m] + product;
    }
  }
  const Floats scale = load<Floats>(w.scales.data() + step * lanes::kCount);
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    total[m] += sum[m] * scale;
    if constexpr (kZeros) {
      total[m] += load<Floats>(w.shifts.data() + step * lanes::kCount) *
                  load<Floats>(x.sums + m * x.stride / kWord + step * lanes::kCount);
    }
  }
}

template <int kM, bool kZeros>
void dot_rows(const QuantView& w, const ArrangedRows& x, std::int64_t begin, std::int64_t end, float* y,
              std::int64_t y_stride) {
  const Floats table = load<Floats>(table_of(w.format.codes).data());
  const std::int64_t row_bytes = w.row_bytes(), whole = row_bytes / kStepBytes;
  WordScales scales(x.stride / kStep);
  for (std::int64_t n = begin; n < end; ++n) {
    scales.fill(w, n);
    const std::uint8_t* codes = w.codes + n * row_bytes;
    Floats total[kM] = {};
    for (std::int64_t step = 0; step < whole; ++step) {
      __builtin_prefetch(codes + step * kStepBytes + kAhead);
      add_step<kM, kZeros>(codes + step * kStepBytes, table, x, step, scales, total);
    }
    if (whole * kStepBytes < row_bytes) {
      alignas(64) std::uint8_t last[kStepBytes] = {};
      std::copy(codes + whole * kStepBytes, codes + row_bytes, last);
      add_step<kM, kZeros>(last, table, x, whole, scales, total);
    }
    for (int m = 0; m < kM; ++m) y[m * y_stride + n - begin] = lanes::sum(total[m]);
  }
}

}  // namespace

void quant_gemv_nibbles(const QuantView& w, const ArrangedRows& x, std::int64_t rows, std::int64_t begin,
                        std::int64_t end, float* y, std::int64_t y_stride) {
  [&]<int... kM>(std::integer_sequence<int, kM...>) {
    const auto run = [&]<bool kZeros>(std::bool_constant<kZeros>) {
      (void)((rows == kM + 1 && (dot_rows<kM + 1, kZeros>(w, x, begin, end, y, y_stride), true)) || ...);
    };
    w.format.zero_points ? run(std::true_type()) : run(std::false_type());
  }
  (std::make_integer_sequence<int, kQuantGemvRows>());
}

}  // namespace ridge::kernels
