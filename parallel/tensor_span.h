// Tensors as what communicators take.
#pragma once

#include "core/tensor.h"
#include "parallel/communicator.h"

namespace ridge::parallel {

/// All elements of a contiguous tensor, where they lie; T is its dtype.
template <class T>
DeviceSpan<T> span_of(const Tensor& tensor) {
  check(tensor.contiguous(), "span of a contiguous tensor");
  return {tensor.view<T>().data, static_cast<std::size_t>(tensor.numel()), tensor.device()};
}

}  // namespace ridge::parallel
