#include "kernels/dropout.h"

#include <algorithm>
#include <cmath>

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/element.h"
#include "kernels/philox_block.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kElementsPerTask = 32768;

/// uniform_01(word) >= p, in integers: both sides are multiples of 2^-24 once p is rounded up.
std::uint32_t keep_threshold(double p) { return static_cast<std::uint32_t>(std::ceil(p * 0x1p24)); }

template <class T>
void mask_row(const T* x, const std::uint32_t* words, std::uint32_t threshold, acc_t<T> factor, T* y,
              std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const acc_t<T> scaled = load(x[i]) * factor;
    store(y[i], (words[i] >> 8) >= threshold ? scaled : acc_t<T>(0));
  }
}

}  // namespace

template <class T>
void dropout(Stream& stream, View<const T> x, double p, RandomKey key, const MaskRows& rows, View<T> y) {
  check(x.shape == y.shape && x.contiguous() && y.contiguous(), "dropout: contiguous views of one shape");
  check(p >= 0 && p < 1, "dropout: probability in [0, 1)");
  check(rows.length >= 1 && rows.step >= rows.length, "dropout: rows of a mask do not overlap");
  const std::int64_t n = x.numel();
  const std::uint32_t threshold = keep_threshold(p);
  const auto factor = static_cast<acc_t<T>>(1 / (1 - p));
  const bool one_run = rows.length == rows.step;
  const auto mask = [&](std::int64_t begin, std::int64_t end) {
    while (begin < end) {
      const std::int64_t row = one_run ? 0 : begin / rows.length;
      const std::int64_t stop = one_run ? end : std::min(end, (row + 1) * rows.length);
      const std::uint64_t first = rows.first + static_cast<std::uint64_t>(row * (rows.step - rows.length));
      for_random_words(key, first, begin, stop,
                       [&](std::int64_t at, const std::uint32_t* words, std::int64_t count) {
                         mask_row(x.data + at, words, threshold, factor, y.data + at, count);
                       });
      begin = stop;
    }
  };
  launch(
      stream, "dropout", Work{static_cast<double>(n), x.bytes() + y.bytes()},
      [&] { parallel_for(n, kElementsPerTask, mask); },
      [&] { cuda::dropout<T>(stream, x, threshold, factor, key, rows, y); });
}

template void dropout<float>(Stream&, View<const float>, double, RandomKey, const MaskRows&, View<float>);

template void dropout<double>(Stream&, View<const double>, double, RandomKey, const MaskRows&, View<double>);

template void dropout<bf16>(Stream&, View<const bf16>, double, RandomKey, const MaskRows&, View<bf16>);

}  // namespace ridge::kernels
