#include "kernels/gemv.h"

#include <algorithm>

#include "core/base/threads.h"
#include "kernels/lanes.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kChunksPerThread = 4;
constexpr std::int64_t kLanes = lanes::kCount;
constexpr std::int64_t kBlock = 2 * kLanes;  // weights of one step: 64 bytes of bf16

using lanes::load;
using Vector = lanes::Floats;
using Bits = lanes::Words;

// A block of weights as two vectors; which weights are in which is the same as in `arrange`.
struct Pair {
  Vector first, second;
};

Pair load_block(const float* w) { return {load<Vector>(w), load<Vector>(w + kLanes)}; }

// Even weights are the lower halves of the 32-bit words, odd ones the upper halves.
Pair load_block(const bf16* w) {
  const Bits words = load<Bits>(w);
  return {reinterpret_cast<Vector>(words << 16), reinterpret_cast<Vector>(words & 0xFFFF0000u)};
}

// The rows of x in the order in which load_block gives the weights; the tail after whole blocks as it is.
const float* arrange(const float* x_MK, std::int64_t, std::int64_t, const float*, float*) { return x_MK; }

const float* arrange(const float* x_MK, std::int64_t m, std::int64_t k, const bf16*, float* to_MK) {
  const std::int64_t whole = k / kBlock * kBlock;
  for (std::int64_t row = 0; row < m; ++row) {
    const float* x = x_MK + row * k;
    float* to = to_MK + row * k;
    for (std::int64_t block = 0; block < whole; block += kBlock) {
      for (std::int64_t i = 0; i < kLanes; ++i) {
        to[block + i] = x[block + 2 * i];
        to[block + kLanes + i] = x[block + 2 * i + 1];
      }
    }
    for (std::int64_t i = whole; i < k; ++i) to[i] = x[i];
  }
  return to_MK;
}

// The hardware's own prefetcher stops at page borders.
template <class T>
void prefetch(const T* block) {
  constexpr std::int64_t kAhead = 4096;  // bytes
  const char* ahead = reinterpret_cast<const char*>(block) + kAhead;
  for (std::size_t line = 0; line < kBlock * sizeof(T); line += 64) __builtin_prefetch(ahead + line);
}

// One row of w against kM rows of x. Rows are read one after the other: one stream, which the memory system
// likes best.
template <class T, int kM>
void dot_row(const float* x_MK, std::int64_t k, const T* w_K, float* y, std::int64_t y_stride) {
  const std::int64_t whole = k / kBlock * kBlock;
  Vector first[kM] = {}, second[kM] = {};
  for (std::int64_t i = 0; i < whole; i += kBlock) {
    prefetch(w_K + i);
    const Pair w = load_block(w_K + i);
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      first[m] += w.first * load<Vector>(x_MK + m * k + i);
      second[m] += w.second * load<Vector>(x_MK + m * k + i + kLanes);
    }
  }
  for (int m = 0; m < kM; ++m) {
    float total = lanes::sum(first[m] + second[m]);
    for (std::int64_t i = whole; i < k; ++i) total += static_cast<float>(w_K[i]) * x_MK[m * k + i];
    y[m * y_stride] = total;
  }
}

template <class T, int kM>
void dot_rows(const float* x_MK, std::int64_t k, const T* w_NK, std::int64_t w_stride, std::int64_t n,
              float* y, std::int64_t y_stride) {
  for (std::int64_t row = 0; row < n; ++row)
    dot_row<T, kM>(x_MK, k, w_NK + row * w_stride, y + row, y_stride);
}

}  // namespace

template <class T>
void gemv_rows(const float* x_MK, std::int64_t m, std::int64_t k, const T* w_NK, std::int64_t w_stride,
               std::int64_t n, float* y_MN, std::int64_t y_stride, float* scratch_MK) {
  const float* x = arrange(x_MK, m, k, w_NK, scratch_MK);
  // Rows are independent, so the cut changes no bits: few long streams, as many for each thread.
  const std::int64_t chunks = kChunksPerThread * thread_count();
  const std::int64_t rows = std::max<std::int64_t>(8, (n + chunks - 1) / chunks);
  parallel_for(n, rows, [&](std::int64_t begin, std::int64_t end) {
    const T* w = w_NK + begin * w_stride;
    float* y = y_MN + begin;
    switch (m) {
      case 1:
        dot_rows<T, 1>(x, k, w, w_stride, end - begin, y, y_stride);
        break;
      case 2:
        dot_rows<T, 2>(x, k, w, w_stride, end - begin, y, y_stride);
        break;
      case 3:
        dot_rows<T, 3>(x, k, w, w_stride, end - begin, y, y_stride);
        break;
      default:
        dot_rows<T, 4>(x, k, w, w_stride, end - begin, y, y_stride);
        break;
    }
  });
}

template void gemv_rows<float>(const float*, std::int64_t, std::int64_t, const float*, std::int64_t,
                               std::int64_t, float*, std::int64_t, float*);
template void gemv_rows<bf16>(const float*, std::int64_t, std::int64_t, const bf16*, std::int64_t,
                              std::int64_t, float*, std::int64_t, float*);

}  // namespace ridge::kernels
