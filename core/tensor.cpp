#include "core/tensor.h"

#include "core/base/cuda.h"
#include "core/base/stream.h"
#include "kernels/copy.h"
#include "kernels/fill.h"

namespace ridge {
namespace {

// Bytes of contiguous memory from one device to another.
void transfer(const Tensor& to, const Tensor& from) {
  check(to.device() != Device::meta && from.device() != Device::meta, "copy between meta and memory");
  const Stream& stream = current_stream(Device::cuda);
  cuda::copy(to.data(), from.data(), from.bytes(), stream);
  if (to.device() == Device::cpu) cuda::synchronize(stream);
}

}  // namespace

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  std::int64_t bytes = 0;
  check(!__builtin_mul_overflow(ridge::numel(shape), static_cast<std::int64_t>(size_of(dtype)), &bytes),
        "tensor size overflows");
  Tensor t;
  t.storage_ = std::make_shared<Storage>(device, bytes);
  t.shape_ = shape;
  t.strides_ = contiguous_strides(shape);
  t.dtype_ = dtype;
  t.device_ = device;
  return t;
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  if (device == Device::cpu) std::memset(t.data(), 0, static_cast<std::size_t>(t.bytes()));
  if (device == Device::cuda) cuda::fill_bytes(t.data(), 0, t.bytes(), current_stream(device));
  return t;
}

Tensor Tensor::full(const Shape& shape, double value, DType dtype, Device device) {
  if (device == Device::cuda && !(is_floating(dtype) && dtype != DType::f16))
    return full(shape, value, dtype).on(device);
  Tensor t = empty(shape, dtype, device);
  if (device == Device::meta) return t;
  if (device == Device::cuda) {
    visit_compute(dtype, [&]<class T>(std::type_identity<T>) {
      kernels::fill<T>(current_stream(device), t.view<T>(), value);
    });
    return t;
  }
  const double source = value;
  kernels::convert(current_stream(device), DType::f64, &source, shape,
                   Tensor::empty({}, DType::f64).expanded(shape).strides(), dtype, t.data(), t.strides());
  return t;
}

Tensor Tensor::borrow(const void* data, const Shape& shape, DType dtype, std::shared_ptr<const void> owner) {
  Tensor t;
  t.shape_ = shape;
  t.strides_ = contiguous_strides(shape);
  t.dtype_ = dtype;
  t.storage_ = std::make_shared<Storage>(const_cast<void*>(data), t.bytes(), std::move(owner));
  return t;
}

template <class T>
Tensor Tensor::from(std::span<const T> values, const Shape& shape) {
  check(static_cast<std::int64_t>(values.size()) == ridge::numel(shape), "values do not fill the shape");
  Tensor t = empty(shape, dtype_of<T>);
  std::copy(values.begin(), values.end(), t.span<T>().begin());
  return t;
}
template Tensor Tensor::from<float>(std::span<const float>, const Shape&);
template Tensor Tensor::from<double>(std::span<const double>, const Shape&);
template Tensor Tensor::from<bf16>(std::span<const bf16>, const Shape&);
template Tensor Tensor::from<std::int32_t>(std::span<const std::int32_t>, const Shape&);
template Tensor Tensor::from<std::int64_t>(std::span<const std::int64_t>, const Shape&);
template Tensor Tensor::from<std::uint8_t>(std::span<const std::uint8_t>, const Shape&);

bool Tensor::contiguous() const { return View<const char>(nullptr, shape_, strides_).contiguous(); }

void* Tensor::data() const {
  check(defined(), "data of an undefined tensor");
  check(!storage_->dropped(), "a tensor whose memory is there");
  if (device_ == Device::meta) return nullptr;
  return static_cast<char*>(storage_->data()) + offset_ * static_cast<std::int64_t>(size_of(dtype_));
}

double Tensor::item() const {
  check(numel() == 1 && device_ != Device::meta, "item of a tensor of one element, not on meta");
  if (device_ == Device::cuda) return on(Device::cpu).item();
  return visit_any(dtype_, [&]<class T>(std::type_identity<T>) {
    const T value = *static_cast<const T*>(data());
    if constexpr (std::is_arithmetic_v<T>) {
      return static_cast<double>(value);
    } else {
      return static_cast<double>(static_cast<float>(value));
    }
  });
}

Tensor Tensor::reshaped(const Shape& shape) const {
  check(contiguous(), "reshape of a contiguous tensor");
  Shape full = shape;
  std::int64_t known = 1;
  int open = -1;
  for (int d = 0; d < shape.ndim(); ++d) {
    if (shape[d] == -1) {
      check(open < 0, "one -1 at the most");
      open = d;
    } else {
      known *= shape[d];
    }
  }
  if (open >= 0) full[open] = known > 0 ? numel() / known : 0;
  if (ridge::numel(full) != numel()) fail("reshape of {} to {}", to_string(shape_), to_string(shape));
  Tensor t = detached();
  t.shape_ = full;
  t.strides_ = contiguous_strides(full);
  return t;
}

Tensor Tensor::transposed(int dim0, int dim1) const {
  Tensor t = detached();
  std::swap(t.shape_[dim0], t.shape_[dim1]);
  std::swap(t.strides_[dim0], t.strides_[dim1]);
  t.recipe_ = nullptr;
  return t;
}

Tensor Tensor::sliced(int dim, std::int64_t begin, std::int64_t end) const {
  if (begin < 0 || begin > end || end > shape_[dim]) {
    fail("slice [{}, {}) of dimension {} of {}", begin, end, dim, to_string(shape_));
  }
  Tensor t = detached();
  t.shape_[dim] = end - begin;
  t.offset_ += begin * strides_[dim];
  t.recipe_ = nullptr;
  return t;
}

Tensor Tensor::expanded(const Shape& shape) const {
  check(broadcast(shape_, shape) == shape, "expand to a shape that this one broadcasts to");
  Tensor t = detached();
  t.shape_ = shape;
  t.strides_ = shape;
  t.recipe_ = nullptr;
  const int lead = shape.ndim() - ndim();
  for (int d = 0; d < shape.ndim(); ++d) {
    const bool repeated = d < lead || shape_[d - lead] != shape[d];
    t.strides_[d] = repeated ? 0 : strides_[d - lead];
  }
  return t;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  const Tensor t = empty(shape_, dtype, device_);
  t.copy_from(*this);
  return t;
}

Tensor Tensor::contiguous_copy() const {
  const Tensor t = empty(shape_, dtype_, device_);
  t.copy_from(*this);
  return t;
}

Tensor Tensor::as_contiguous() const { return contiguous() ? *this : contiguous_copy(); }

Tensor Tensor::as_row_dense() const {
  return View<const char>(nullptr, shape_, strides_).rows_dense() ? *this : contiguous_copy();
}

void Tensor::copy_from(const Tensor& other) const {
  if (other.shape() != shape_) fail("copy of {} into {}", to_string(other.shape()), to_string(shape_));
  if (device_ != other.device()) {
    const Tensor there = other.as_contiguous();
    if (contiguous() && there.dtype() == dtype_) return transfer(*this, there);
    const Tensor here = empty(shape_, there.dtype(), device_);
    transfer(here, there);
    return copy_from(here);
  }
  kernels::convert(current_stream(device_), other.dtype(), other.data(), shape_, other.strides(), dtype_,
                   data(), strides_);
}

Tensor Tensor::on(Device device) const {
  if (device == device_) return *this;
  const Tensor t = empty(shape_, dtype_, device);
  t.copy_from(*this);
  return t;
}

Tensor Tensor::joined(const std::vector<Tensor>& parts) {
  Tensor all = parts.front().detached();
  all.recipe_ = nullptr;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Tensor& part = parts[i];
    if (!part.defined() || !part.contiguous() || part.storage_ != all.storage_ || part.ndim() != all.ndim())
      return {};
    if (i == 0) continue;
    const bool fits = part.offset_ == all.offset_ + all.numel() && part.numel() % part.dim(0) == 0 &&
                      part.numel() / part.dim(0) == all.numel() / all.dim(0);
    if (!fits || part.dtype_ != all.dtype_) return {};
    all.shape_[0] += part.dim(0);
  }
  return all;
}

Tensor Tensor::detached() const {
  Tensor t = *this;
  t.edge_ = {};
  return t;
}

}  // namespace ridge
