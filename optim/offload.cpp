#include "optim/offload.h"

#include <cstring>

#include "core/base/launch.h"

namespace ridge::optim {

Tensor offloaded_zeros(const Shape& shape, DType dtype, Device device) {
  if (device == Device::meta) {
    Tensor kept = Tensor::empty(shape, dtype, device);
    kept.storage()->drop();
    return kept;
  }
  const std::int64_t bytes = numel(shape) * static_cast<std::int64_t>(size_of(dtype));
  const std::shared_ptr<void> memory(cuda::allocate_pinned(bytes), cuda::release_pinned);
  std::memset(memory.get(), 0, static_cast<std::size_t>(bytes));
  return Tensor::borrow(memory.get(), shape, dtype, memory);
}

Tensor fetch_state(const Tensor& kept, Device device) {
  const PurposeScope purpose(Purpose::moments);
  const Tensor visitor = Tensor::empty(kept.shape(), kept.dtype(), device);
  Stream& stream = current_stream(device);
  launch(
      stream, "fetch_state", Work{0, static_cast<double>(kept.bytes())}, [] {},
      [&] { cuda::copy(visitor.data(), kept.data(), kept.bytes(), stream); });
  return visitor;
}

void return_state(const Tensor& visitor, const Tensor& kept) {
  Stream& stream = current_stream(visitor.device());
  launch(
      stream, "return_state", Work{0, static_cast<double>(kept.bytes())}, [] {},
      [&] { cuda::copy(kept.data(), visitor.data(), kept.bytes(), stream); });
}

}  // namespace ridge::optim
