#include "kernels/fill.h"

#include <array>
#include <cmath>

#include "core/base/launch.h"
#include "kernels/element.h"
#include "kernels/philox_block.h"
#include "kernels/strided.h"
#include "kernels/vector_math.h"

namespace ridge::kernels {
namespace {

/// Writes T(offset + factor * draw(i)) for all elements; `draw(words, count, draws)` makes whole counters'
/// draws.
template <class T, class Draw>
void random_fill(View<T> y, double offset, double factor, RandomKey key, std::uint64_t first,
                 const Draw& draw) {
  const auto walk = walk_over(y);
  const auto shift = static_cast<acc_t<T>>(offset), scale = static_cast<acc_t<T>>(factor);
  walk.visit([&](const Span<1>& span) {
    std::array<float, kPhiloxWords> draws;
    T* row = y.data + span.offset[0];
    const std::uint64_t base = first + static_cast<std::uint64_t>(span.first);
    for_random_words(
        key, base, 0, span.count, [&](std::int64_t at, const std::uint32_t* words, std::int64_t n) {
          const auto skip = static_cast<std::int64_t>((base + static_cast<std::uint64_t>(at)) % 4);
          draw(words - skip, (skip + n + 3) / 4 * 4, draws.data());
#pragma omp simd
          for (std::int64_t i = 0; i < n; ++i) {
            store(row[(at + i) * walk.step(0)],
                  shift + scale * static_cast<acc_t<T>>(draws[static_cast<std::size_t>(skip + i)]));
          }
        });
  });
}

void draw_uniform(const std::uint32_t* words, std::int64_t count, float* draws) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) draws[i] = uniform_01(words[i]);
}

/// Words (2i, 2i+1) make the normals (2i, 2i+1): radius from the first, angle from the second.
void draw_normal(const std::uint32_t* words, std::int64_t count, float* draws) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; i += 2) {
    const float u = static_cast<float>(words[i]) * 0x1p-32f + 0x1p-33f;  // in (0, 1]
    const float radius = std::sqrt(-2.0f * vlog(u));
    const SinCos angle = vsincos_turns(uniform_01(words[i + 1]));
    draws[i] = radius * angle.cos;
    draws[i + 1] = radius * angle.sin;
  }
}

}  // namespace

template <class T>
void fill(Stream& stream, View<T> y, double value) {
  launch(
      stream, "fill", Work{0, y.bytes()},
      [&] {
        T element;
        store(element, static_cast<acc_t<T>>(value));
        map_elements([element](T& out) { out = element; }, y);
      },
      [&] { cuda::fill<T>(stream, y, value); });
}

template <class T>
void uniform(Stream& stream, View<T> y, double lo, double hi, RandomKey key, std::uint64_t first) {
  launch(
      stream, "uniform", Work{2 * static_cast<double>(y.numel()), y.bytes()},
      [&] { random_fill(y, lo, hi - lo, key, first, draw_uniform); },
      [&] { cuda::uniform<T>(stream, y, lo, hi, key, first); });
}

template <class T>
void normal(Stream& stream, View<T> y, double mean, double std, RandomKey key, std::uint64_t first) {
  launch(
      stream, "normal", Work{6 * static_cast<double>(y.numel()), y.bytes()},
      [&] { random_fill(y, mean, std, key, first, draw_normal); },
      [&] { cuda::normal<T>(stream, y, mean, std, key, first); });
}

template void fill<float>(Stream&, View<float>, double);
template void uniform<float>(Stream&, View<float>, double, double, RandomKey, std::uint64_t);
template void normal<float>(Stream&, View<float>, double, double, RandomKey, std::uint64_t);

template void fill<double>(Stream&, View<double>, double);
template void uniform<double>(Stream&, View<double>, double, double, RandomKey, std::uint64_t);
template void normal<double>(Stream&, View<double>, double, double, RandomKey, std::uint64_t);

template void fill<bf16>(Stream&, View<bf16>, double);
template void uniform<bf16>(Stream&, View<bf16>, double, double, RandomKey, std::uint64_t);
template void normal<bf16>(Stream&, View<bf16>, double, double, RandomKey, std::uint64_t);

}  // namespace ridge::kernels
