// Dropout (Srivastava et al., 2014) whose mask is a pure function of key and element index: nothing is saved.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/random.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// y[i] = x[i] / (1 - p) where uniform_01(philox(key, (first + i) / 4)[(first + i) % 4]) >= p, else 0.
/// Views are contiguous, of any shape; 0 <= p < 1. The backward pass is the same call on dy. y may be x.
template <class T>
void dropout(Stream& stream, View<const T> x, double p, RandomKey key, std::uint64_t first, View<T> y);

/// What `launch` runs on a GPU (dropout.cu): y = x * factor where a word's upper 24 bits reach `threshold`.
namespace cuda {
template <class T>
void dropout(Stream& stream, View<const T> x, std::uint32_t threshold, acc_t<T> factor, RandomKey key,
             std::uint64_t first, View<T> y);
}  // namespace cuda

}  // namespace ridge::kernels
