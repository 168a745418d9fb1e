// Dropout (Srivastava et al., 2014) whose mask is a pure function of key and element index: nothing is saved.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/random.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// Which words a mask takes: element i of rows of `length` elements that begin `step` words apart has word
/// first + i / length * step + i % length.
struct MaskRows {
  std::uint64_t first = 0;
  std::int64_t length = 1, step = 1;  // equal: one run
};

/// y[i] = x[i] / (1 - p) where uniform_01(philox(key, w / 4)[w % 4]) >= p, else 0, with w its word.
/// Views are contiguous, of any shape; 0 <= p < 1. The backward pass is the same call on dy. y may be x.
template <class T>
void dropout(Stream& stream, View<const T> x, double p, RandomKey key, const MaskRows& rows, View<T> y);
template <class T>
void dropout(Stream& stream, View<const T> x, double p, RandomKey key, std::uint64_t first, View<T> y) {
  dropout<T>(stream, x, p, key, MaskRows{first}, y);
}

/// What `launch` runs on a GPU (dropout.cu): y = x * factor where a word's upper 24 bits reach `threshold`.
namespace cuda {
template <class T>
void dropout(Stream& stream, View<const T> x, std::uint32_t threshold, acc_t<T> factor, RandomKey key,
             const MaskRows& rows, View<T> y);
}  // namespace cuda

}  // namespace ridge::kernels
