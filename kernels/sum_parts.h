// The sum of several arrays, element by element and in their order: what ranks have sent each other.
#pragma once

#include <span>
#include <type_traits>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

inline constexpr int kMostParts = 64;

/// y = (parts[0] + parts[1]) + ..., or y += that; in f32 (f64 for double), and rounded once. Dense vectors
/// [N]; 1 to kMostParts of them. y may be one of the parts. Instantiated for <float>, <bf16>, <bf16, bf16>,
/// <double, double>.
template <class T, class Y = float>
void sum_parts(Stream& stream, std::span<const View<const T>> parts, std::type_identity_t<View<Y>> y,
               bool adds);

/// What `launch` runs on a GPU; arguments are checked already (sum_parts.cu).
namespace cuda {
template <class T, class Y>
void sum_parts(Stream& stream, std::span<const View<const T>> parts, View<Y> y, bool adds);
}  // namespace cuda

}  // namespace ridge::kernels
