// int4, nf4 and fp4: a code is looked up in a register.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "kernels/formats/codes.h"
#include "kernels/lanes.h"
#include "kernels/quant_gemv.h"

namespace ridge::kernels {
namespace {

using lanes::Floats, lanes::load, lanes::Words;

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

// Scales of a row's groups g .. g + 15; zeros after its last.
class GroupScales {
 public:
  explicit GroupScales(const QuantView& w)
      : w_(w), groups_(w.cols / w.format.group), all_(w.rows * groups_) {}

  std::int64_t count() const { return groups_; }

  [[gnu::noinline]] Floats at(std::int64_t n, std::int64_t g) const {
    const std::int64_t first = n * groups_ + g;
    if (w_.format.double_quant) return nested(first, w_.first_block + n * w_.row_blocks + g, groups_ - g);
    return w_.scale_dtype == DType::bf16 ? some(static_cast<const bf16*>(w_.scales), first, groups_ - g)
                                         : some(static_cast<const float*>(w_.scales), first, groups_ - g);
  }

  // What the sum over a group's x is to be multiplied by, less its scale.
  [[gnu::noinline]] Floats shift_at(std::int64_t n, std::int64_t g) const {
    return 8.0f - some(w_.zeros, n * groups_ + g, groups_ - g);
  }

 private:
  template <class T>
  static Floats widen(const T* from) {
    alignas(64) float values[lanes::kCount];
    for (std::int64_t i = 0; i < lanes::kCount; ++i) values[i] = static_cast<float>(from[i]);
    return load<Floats>(values);
  }

  // Elements `first` .. of an array of all groups, `count` of them if those are fewer than 16.
  template <class T>
  Floats some(const T* from, std::int64_t first, std::int64_t count) const {
    if (first + lanes::kCount > all_) {
      T values[lanes::kCount] = {};
      std::copy(from + first, from + std::min(all_, first + count), values);
      return widen(values);
    }
    return kept(widen(from + first), count);
  }

  static Floats kept(const Floats& values, std::int64_t count) {
    if (count >= lanes::kCount) return values;
    return reinterpret_cast<Floats>(reinterpret_cast<Words>(values) &
                                    reinterpret_cast<Words>(kLane < static_cast<std::uint32_t>(count)));
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
  std::int64_t groups_, all_;
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

// What is multiplied: codes of a row of w from one step on, and the rows of x from there on.
struct Steps {
  const std::uint8_t* codes;
  const std::uint8_t* ahead;  // codes that will be read soon
  const float* x;
  const float* sums;    // of words
  std::int64_t stride;  // of x
  const Words* group_of;
};

template <int kPart, int kM>
[[gnu::always_inline]] inline void add_part(const Floats& table, const Words& words, const float* x,
                                            std::int64_t stride, Floats* sum) {
  const Floats value = __builtin_shuffle(table, words >> (4 * kPart));  // takes 4 bits of each
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    const Floats product = value * load<Floats>(x + m * stride + kPart * lanes::kCount);
    sum[m] = kPart == 0 ? product : sum[m] + product;
  }
}

// Adds `count` steps of at most 16 groups to the totals of kM rows.
template <int kM, bool kZeros>
[[gnu::always_inline]] inline void add_steps(const Steps& s, std::int64_t count, const Floats& table,
                                             const Floats& scales, const Floats& shifts, Floats* totals) {
  Floats total[kM];
  std::copy_n(totals, kM, total);
  for (std::int64_t t = 0; t < count; ++t) {
    __builtin_prefetch(s.ahead + t * kStepBytes);
    const Words words = load<Words>(s.codes + t * kStepBytes);
    const float* x = s.x + t * kStep;
    Floats sum[kM];
    add_part<0, kM>(table, words, x, s.stride, sum);
    add_part<1, kM>(table, words, x, s.stride, sum);
    add_part<2, kM>(table, words, x, s.stride, sum);
    add_part<3, kM>(table, words, x, s.stride, sum);
    add_part<4, kM>(table, words, x, s.stride, sum);
    add_part<5, kM>(table, words, x, s.stride, sum);
    add_part<6, kM>(table, words, x, s.stride, sum);
    add_part<7, kM>(table, words, x, s.stride, sum);
    const Floats scale = __builtin_shuffle(scales, s.group_of[t]);
    const Floats shift = kZeros ? __builtin_shuffle(shifts, s.group_of[t]) : shifts;
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      if constexpr (kZeros)
        total[m] += shift * load<Floats>(s.sums + m * s.stride / kWord + t * lanes::kCount);
      total[m] += sum[m] * scale;
    }
  }
  std::copy_n(total, kM, totals);
}

template <int kM, bool kZeros>
void dot_rows(const QuantView& w, const ArrangedRows& x, std::int64_t begin, std::int64_t end, float* y,
              std::int64_t y_stride) {
  const Floats table = load<Floats>(values_of(w.format.codes).data());
  const std::int64_t row_bytes = w.row_bytes(), whole = row_bytes / kStepBytes;
  const GroupScales groups(w);
  const std::vector<Words> group_of = groups_of_words(w.format.group);
  const auto block = static_cast<std::int64_t>(group_of.size());
  for (std::int64_t n = begin; n < end; ++n) {
    const std::uint8_t* codes = w.codes + n * row_bytes;
    Floats total[kM] = {};
    for (std::int64_t step = 0, g = 0; g < groups.count(); step += block, g += lanes::kCount) {
      const Floats scales = groups.at(n, g), shifts = kZeros ? scales * groups.shift_at(n, g) : Floats{};
      const Steps from{codes + step * kStepBytes,
                       codes + step * kStepBytes + kAhead,
                       x.x + step * kStep,
                       kZeros ? x.sums + step * lanes::kCount : nullptr,
                       x.stride,
                       group_of.data()};
      const std::int64_t count = std::min(block, whole - step);
      add_steps<kM, kZeros>(from, count, table, scales, shifts, total);
      if (count == block || whole * kStepBytes == row_bytes) continue;
      alignas(64) std::uint8_t last[kStepBytes] = {};
      std::copy(codes + whole * kStepBytes, codes + row_bytes, last);
      const Steps rest{last,
                       codes,
                       from.x + count * kStep,
                       kZeros ? from.sums + count * lanes::kCount : nullptr,
                       x.stride,
                       &group_of[static_cast<std::size_t>(count)]};
      add_steps<kM, kZeros>(rest, 1, table, scales, shifts, total);
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
