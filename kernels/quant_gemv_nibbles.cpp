// int4, nf4 and fp4: a code is looked up in a register.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/formats/codes.h"
#include "kernels/lanes.h"
#include "kernels/quant_gemv.h"

namespace ridge::kernels {
namespace {

using lanes::Floats, lanes::load, lanes::load_once, lanes::Words;

constexpr std::int64_t kStep = 2 * kStepBytes;  // weights
constexpr std::int64_t kWord = 8;               // weights
constexpr std::int64_t kAhead = 4096;           // bytes: the hardware's own prefetcher stops at page borders

// The values of codes 0 to 15; int4's for a zero point of 8.
std::array<float, 16> values_of(Codes codes) {
  if (codes == Codes::nf4) return nf4_values();
  if (codes == Codes::fp4) return fp4_values();
  std::array<float, 16> values;
  for (int code = 0; code < 16; ++code) values[static_cast<std::size_t>(code)] = static_cast<float>(code - 8);
  return values;
}

constexpr Words kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

using Bytes16 = std::uint8_t __attribute__((vector_size(16)));
using Halves16 = std::uint16_t __attribute__((vector_size(32)));

Floats widen(const float* from) { return load<Floats>(from); }
Floats widen(const bf16* from) {
  return reinterpret_cast<Floats>(__builtin_convertvector(load<Halves16>(from), Words) << 16);
}
// By way of 16 bits: GCC 12 widens to twice the size alone without leaving vectors.
Floats widen(const std::uint8_t* from) {
  const Halves16 halves = __builtin_convertvector(load<Bytes16>(from), Halves16);
  return __builtin_convertvector(__builtin_convertvector(halves, Words), Floats);
}

// Scales of a row's groups g .. g + 15; zeros after its last.
class GroupScales {
 public:
  explicit GroupScales(const QuantView& w)
      : w_(w), groups_(w.cols / w.format.group), all_(w.rows * groups_), ahead_(2 * kAhead / w.format.group) {
    if (w.format.double_quant) {
      bytes_ = w.scale_codes;
      width_ = 1;
      return;
    }
    bytes_ = static_cast<const std::uint8_t*>(w.scales);
    width_ = static_cast<std::int64_t>(size_of(w.scale_dtype));
    if (w.scale_dtype == DType::bf16) {
      halves_ = static_cast<const bf16*>(w.scales);
    } else {
      floats_ = static_cast<const float*>(w.scales);
    }
  }

  std::int64_t count() const { return groups_; }

  [[gnu::always_inline]] Floats at(std::int64_t n, std::int64_t g) const {
    const std::int64_t first = n * groups_ + g;
    __builtin_prefetch(bytes_ + (first + ahead_) * width_);
    if (first + lanes::kCount > all_ || w_.format.double_quant) return slowly(n, g);
    return kept(floats_ != nullptr ? widen(floats_ + first) : widen(halves_ + first), groups_ - g);
  }

  // What the sum over a group's x is to be multiplied by, less its scale.
  [[gnu::always_inline]] Floats shift_at(std::int64_t n, std::int64_t g) const {
    const std::int64_t first = n * groups_ + g;
    __builtin_prefetch(w_.zeros + first + ahead_);
    return 8.0f - (first + lanes::kCount > all_ ? last(w_.zeros, first) : widen(w_.zeros + first));
  }

 private:
  static Floats kept(const Floats& values, std::int64_t count) {
    if (count >= lanes::kCount) return values;
    return reinterpret_cast<Floats>(reinterpret_cast<Words>(values) &
                                    reinterpret_cast<Words>(kLane < static_cast<std::uint32_t>(count)));
  }

  // Of an array that ends within 16.
  template <class T>
  [[gnu::noinline]] Floats last(const T* from, std::int64_t first) const {
    T values[lanes::kCount] = {};
    std::copy(from + first, from + all_, values);
    return widen(values);
  }

  [[gnu::noinline]] Floats slowly(std::int64_t n, std::int64_t g) const {
    const std::int64_t first = n * groups_ + g, count = groups_ - g;
    if (w_.format.double_quant) return nested(first, w_.first_block + n * w_.row_blocks + g, count);
    return kept(floats_ != nullptr ? last(floats_, first) : last(halves_, first), count);
  }

  // `whole`: the first one's place in the whole matrix.
  Floats nested(std::int64_t first, std::int64_t whole, std::int64_t count) const {
    alignas(64) float values[lanes::kCount] = {};
    const std::uint8_t* codes = w_.scale_codes + first;
    const std::int64_t n = std::min(lanes::kCount, count);
    for (std::int64_t i = 0; i < n; ++i) values[i] = w_.nested_map[codes[i]];
    const float* second = w_.nested_scales + whole / kNestedBlock;
    const std::int64_t same = kNestedBlock - whole % kNestedBlock;  // that share the first of them
    Floats scale = Floats{} + second[0];
    if (same < n) scale = kLane < static_cast<std::uint32_t>(same) ? scale : Floats{} + second[1];
    return kept(load<Floats>(values) * scale + *w_.nested_offset, count);
  }

  const QuantView& w_;
  std::int64_t groups_, all_, ahead_;
  const std::uint8_t* bytes_ = nullptr;  // of what is fetched ahead: scales, or their codes
  std::int64_t width_ = 4;
  const float* floats_ = nullptr;
  const bf16* halves_ = nullptr;
};

// Which of 16 groups the words of their steps are in.
std::vector<Words> groups_of_words(std::int64_t group) {
  const std::int64_t words = group / kWord;
  std::vector<Words> out;
  for (std::int64_t step = 0; step < words; ++step)
    out.push_back((kLane + static_cast<std::uint32_t>(step * lanes::kCount)) /
                  static_cast<std::uint32_t>(words));
  return out;
}

// What is multiplied: codes of rows of w from one step on, and the rows of x from there on.
struct Steps {
  const std::uint8_t* codes;
  const std::uint8_t* ahead;  // codes that will be read soon
  std::int64_t row_bytes;     // from row to row of codes
  const float* x;
  const float* sums;    // of words
  std::int64_t stride;  // of x
  const Words* group_of;
};

// Scales of 16 groups of each of kN rows of w, and what zero points make of them.
template <int kN>
struct Scales {
  Floats scale[kN], shift[kN];
};

template <int kPart, int kM, int kN>
[[gnu::always_inline]] inline void add_part(const Floats& table, const Words (&words)[kN], const float* x,
                                            std::int64_t stride, Floats (&sum)[kN][kM]) {
  Floats value[kN];
#pragma GCC unroll 2
  for (int r = 0; r < kN; ++r) value[r] = lanes::pick(table, words[r] >> (4 * kPart));  // takes 4 bits
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    const Floats part = load<Floats>(x + m * stride + kPart * lanes::kCount);
#pragma GCC unroll 2
    for (int r = 0; r < kN; ++r) sum[r][m] = kPart == 0 ? value[r] * part : sum[r][m] + value[r] * part;
  }
}

// Adds `count` steps of at most 16 groups to the totals of kN rows of w and kM rows of x.
template <int kM, int kN, bool kZeros>
[[gnu::always_inline]] inline void add_steps(const Steps& s, std::int64_t count, const Floats& table,
                                             const Scales<kN>& scales, Floats (&totals)[kN][kM]) {
  Floats total[kN][kM];
  std::memcpy(total, totals, sizeof total);
  for (std::int64_t t = 0; t < count; ++t) {
    const float* x = s.x + t * kStep;
    Words words[kN];
    Floats sum[kN][kM];
#pragma GCC unroll 2
    for (int r = 0; r < kN; ++r) {
      __builtin_prefetch(s.ahead + r * s.row_bytes + t * kStepBytes);
      words[r] = load_once<Words>(s.codes + r * s.row_bytes + t * kStepBytes);
    }
    add_part<0>(table, words, x, s.stride, sum);
    add_part<1>(table, words, x, s.stride, sum);
    add_part<2>(table, words, x, s.stride, sum);
    add_part<3>(table, words, x, s.stride, sum);
    add_part<4>(table, words, x, s.stride, sum);
    add_part<5>(table, words, x, s.stride, sum);
    add_part<6>(table, words, x, s.stride, sum);
    add_part<7>(table, words, x, s.stride, sum);
#pragma GCC unroll 2
    for (int r = 0; r < kN; ++r) {
      const Floats scale = lanes::pick(scales.scale[r], s.group_of[t]);
      const Floats shift = kZeros ? lanes::pick(scales.shift[r], s.group_of[t]) : Floats{};
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m) {
        if constexpr (kZeros)
          total[r][m] += shift * load<Floats>(s.sums + m * s.stride / kWord + t * lanes::kCount);
        total[r][m] += sum[r][m] * scale;
      }
    }
  }
  std::memcpy(totals, total, sizeof total);
}

// Rows n .. n + kN - 1 of w; y(m, r).
template <int kM, int kN, bool kZeros>
void dot(const QuantView& w, const GroupScales& groups, const std::vector<Words>& group_of,
         const ArrangedRows& x, std::int64_t n, float* y, std::int64_t y_stride) {
  const Floats table = load<Floats>(values_of(w.format.codes).data());
  const std::int64_t row_bytes = w.row_bytes(), whole = row_bytes / kStepBytes, rest = row_bytes % kStepBytes;
  const std::int64_t ahead = (kAhead + kN * row_bytes - 1) / (kN * row_bytes) * kN * row_bytes;
  const auto block = static_cast<std::int64_t>(group_of.size());
  const std::uint8_t* codes = w.codes + n * row_bytes;
  Floats total[kN][kM] = {};
  for (std::int64_t step = 0, g = 0; g < groups.count(); step += block, g += lanes::kCount) {
    Scales<kN> scales;
    for (int r = 0; r < kN; ++r) {
      scales.scale[r] = groups.at(n + r, g);
      if constexpr (kZeros) scales.shift[r] = scales.scale[r] * groups.shift_at(n + r, g);
    }
    const std::uint8_t* from = codes + step * kStepBytes;
    const float* sums = kZeros ? x.sums + step * lanes::kCount : nullptr;
    const std::int64_t count = std::min(block, whole - step);
    add_steps<kM, kN, kZeros>(
        {from, from + ahead, row_bytes, x.x + step * kStep, sums, x.stride, group_of.data()}, count, table,
        scales, total);
    if (count == block || rest == 0) continue;
    alignas(64) std::uint8_t last[kN][kStepBytes] = {};
    for (int r = 0; r < kN; ++r) std::copy_n(codes + r * row_bytes + whole * kStepBytes, rest, last[r]);
    add_steps<kM, kN, kZeros>(
        {last[0], codes, kStepBytes, x.x + whole * kStep, kZeros ? x.sums + whole * lanes::kCount : nullptr,
         x.stride, &group_of[static_cast<std::size_t>(count)]},
        1, table, scales, total);
  }
  for (int m = 0; m < kM; ++m) {
    for (int r = 0; r < kN; ++r) y[m * y_stride + r] = lanes::sum(total[r][m]);
  }
}

// Two rows of w share what is loaded of x; one row of x is loaded fast enough for one.
template <int kM, bool kZeros>
void dot_rows(const QuantView& w, const ArrangedRows& x, std::int64_t begin, std::int64_t end, float* y,
              std::int64_t y_stride) {
  const GroupScales groups(w);
  const std::vector<Words> group_of = groups_of_words(w.format.group);
  std::int64_t n = begin;
  for (; kM > 1 && n + 2 <= end; n += 2)
    dot<kM, 2, kZeros>(w, groups, group_of, x, n, y + (n - begin), y_stride);
  for (; n < end; ++n) dot<kM, 1, kZeros>(w, groups, group_of, x, n, y + (n - begin), y_stride);
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
