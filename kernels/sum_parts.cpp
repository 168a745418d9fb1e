#include "kernels/sum_parts.h"

#include <algorithm>
#include <array>

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/element.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kBlock = 2048;  // elements whose sums stay in L1

template <class T, class Y>
void sum_block(std::span<const View<const T>> parts, std::int64_t begin, std::int64_t n, Y* y, bool adds) {
  std::array<acc_t<T>, kBlock> sum;
  for (std::int64_t i = 0; i < n; ++i) sum[static_cast<std::size_t>(i)] = load(parts[0].data[begin + i]);
  for (const View<const T>& part : parts.subspan(1)) {
    for (std::int64_t i = 0; i < n; ++i) sum[static_cast<std::size_t>(i)] += load(part.data[begin + i]);
  }
  for (std::int64_t i = 0; i < n; ++i) {
    const acc_t<T> value = sum[static_cast<std::size_t>(i)];
    store(y[begin + i], adds ? load(y[begin + i]) + value : value);
  }
}

}  // namespace

template <class T, class Y>
void sum_parts(Stream& stream, std::span<const View<const T>> parts, std::type_identity_t<View<Y>> y,
               bool adds) {
  check(!parts.empty() && parts.size() <= kMostParts, "sum_parts: 1 to 64 parts");
  for (const View<const T>& part : parts)
    check(part.shape == y.shape && part.contiguous() && y.contiguous(),
          "sum_parts: dense parts of y's shape");
  const std::int64_t n = y.numel();
  const auto count = static_cast<double>(parts.size());
  launch(
      stream, "sum_parts",
      Work{static_cast<double>(n) * (count - (adds ? 0 : 1)),
           count * parts.front().bytes() + (adds ? 2 : 1) * y.bytes()},
      [&] {
        parallel_for((n + kBlock - 1) / kBlock, 8, [&](std::int64_t first, std::int64_t last) {
          for (std::int64_t b = first; b < last; ++b)
            sum_block(parts, b * kBlock, std::min(kBlock, n - b * kBlock), y.data, adds);
        });
      },
      [&] { cuda::sum_parts<T, Y>(stream, parts, y, adds); });
}

template void sum_parts<float, float>(Stream&, std::span<const View<const float>>, View<float>, bool);
template void sum_parts<double, double>(Stream&, std::span<const View<const double>>, View<double>, bool);
template void sum_parts<bf16, float>(Stream&, std::span<const View<const bf16>>, View<float>, bool);
template void sum_parts<bf16, bf16>(Stream&, std::span<const View<const bf16>>, View<bf16>, bool);

}  // namespace ridge::kernels
