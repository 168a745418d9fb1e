#include "kernels/quant_gemv.h"

#include <algorithm>
#include <array>

#include "core/base/dtype.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kMostWeights = 2 * kStepBytes;  // of a step
constexpr std::int64_t kWordWeights = 8;               // of 4 bits

using Order = std::array<std::uint8_t, kMostWeights>;

// Which element of a step meets lane p % 16 of vector p / 16.
Order order_of(const WeightFormat& f) {
  Order order{};
  for (std::int64_t p = 0; p < kMostWeights; ++p) {
    const std::int64_t vector = p / kLanes, lane = p % kLanes;
    std::int64_t k = 0;
    if (f.bits() == 4) {  // nibble `vector` of the word
      k = kWordWeights * lane + (f.flat() ? vector ^ 1 : vector);
    } else if (f.codes == Codes::int8) {  // byte `vector` of the word
      k = 4 * lane + vector % 4;
    } else {  // bytes of each quarter were interleaved: its first 8 are in vectors 0 and 1, even, then odd
      k = kLanes * (lane / 4) + 2 * (lane % 4) + vector % 2 + 8 * (vector / 2 % 2);
    }
    order[static_cast<std::size_t>(p)] = static_cast<std::uint8_t>(k);
  }
  return order;
}

std::int64_t step_weights(const WeightFormat& f) { return kStepBytes * 8 / f.bits(); }

template <class T>
void arrange_row(const T* x, std::int64_t k, const Order& order, std::int64_t step, float* to) {
  const std::int64_t whole = k / step * step;
  for (std::int64_t begin = 0; begin < whole; begin += step) {
    for (std::int64_t p = 0; p < step; ++p)
      to[begin + p] = static_cast<float>(x[begin + order[static_cast<std::size_t>(p)]]);
  }
  if (whole == k) return;
  for (std::int64_t p = 0; p < step; ++p) {
    const std::int64_t from = whole + order[static_cast<std::size_t>(p)];
    to[whole + p] = from < k ? static_cast<float>(x[from]) : 0.0f;
  }
}

// [stride / 8]: of lane l of a step's 8 vectors.
void sum_words(const float* row, std::int64_t stride, float* sums) {
  for (std::int64_t step = 0; step < stride / kMostWeights; ++step) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      float sum = 0;
      for (std::int64_t j = 0; j < kWordWeights; ++j) sum += row[step * kMostWeights + j * kLanes + lane];
      sums[step * kLanes + lane] = sum;
    }
  }
}

}  // namespace

bool has_quant_gemv(const QuantView& w) {
  const WeightFormat& f = w.format;
  if (w.cols == 0 || f.bits() == 8) return w.cols > 0;
  return f.group > 0 && f.group % kWordWeights == 0 && w.cols % f.group == 0;
}

std::int64_t arranged_stride(const QuantView& w) {
  const std::int64_t step = step_weights(w.format);
  return (w.cols + step - 1) / step * step;
}

std::int64_t arranged_size(const QuantView& w, std::int64_t rows) {
  const std::int64_t stride = arranged_stride(w);
  return rows * (w.format.zero_points ? stride + stride / kWordWeights : stride);
}

template <class T>
ArrangedRows arrange(const QuantView& w, const T* x, std::int64_t x_stride, std::int64_t rows, float* to) {
  const Order order = order_of(w.format);
  ArrangedRows out{to, nullptr, arranged_stride(w)};
  for (std::int64_t m = 0; m < rows; ++m)
    arrange_row(x + m * x_stride, w.cols, order, step_weights(w.format), to + m * out.stride);
  if (!w.format.zero_points) return out;
  float* sums = to + rows * out.stride;
  for (std::int64_t m = 0; m < rows; ++m)
    sum_words(to + m * out.stride, out.stride, sums + m * out.stride / kWordWeights);
  out.sums = sums;
  return out;
}

template ArrangedRows arrange(const QuantView&, const float*, std::int64_t, std::int64_t, float*);
template ArrangedRows arrange(const QuantView&, const bf16*, std::int64_t, std::int64_t, float*);

}  // namespace ridge::kernels
