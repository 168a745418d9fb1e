// Constant and random fills. A random element depends on the key and its row-major index alone: not on
// threads, strides or dtype (draws are f32, then rounded to T).
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/random.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// Any strides.
template <class T>
void fill(Stream& stream, View<T> y, double value);

/// Uniform in [lo, hi) before rounding to T. `first` is the index of element 0: a contiguous piece of a
/// larger tensor passes its offset and gets the same values as the whole would. Dense rows.
template <class T>
void uniform(Stream& stream, View<T> y, double lo, double hi, RandomKey key, std::uint64_t first = 0);

/// Normal by Box and Muller (1958) on pairs of Philox words; `first` as above. Dense rows.
template <class T>
void normal(Stream& stream, View<T> y, double mean, double std, RandomKey key, std::uint64_t first = 0);

/// What `launch` runs on a GPU (fill.cu). The words are the CPU's; normals differ from its by rounding.
namespace cuda {
template <class T>
void fill(Stream& stream, View<T> y, double value);
template <class T>
void uniform(Stream& stream, View<T> y, double lo, double hi, RandomKey key, std::uint64_t first);
template <class T>
void normal(Stream& stream, View<T> y, double mean, double std, RandomKey key, std::uint64_t first);
}  // namespace cuda

}  // namespace ridge::kernels
