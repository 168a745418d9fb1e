#include "core/ops/shape.h"

#include "core/autograd.h"

namespace ridge::ops {
namespace {

using autograd::Grads;
using autograd::Needs;

struct Reshape {
  static constexpr const char* kName = "reshape";
  Shape shape;
  Shape x_shape;

  Tensor forward(const Tensor& x) {
    x_shape = x.shape();
    return x.as_contiguous().reshaped(shape);
  }
  Grads vjp(const Tensor& dy, const Needs&) { return {dy.as_contiguous().reshaped(x_shape)}; }
};

struct Transpose {
  static constexpr const char* kName = "transpose";
  int dim0, dim1;

  Tensor forward(const Tensor& x) const { return x.transposed(dim0, dim1); }
  Grads vjp(const Tensor& dy, const Needs&) const { return {dy.transposed(dim0, dim1)}; }
};

struct Slice {
  static constexpr const char* kName = "slice";
  int dim;
  std::int64_t begin, end;
  Shape x_shape;

  Tensor forward(const Tensor& x) {
    x_shape = x.shape();
    return x.sliced(dim, begin, end);
  }
  Grads vjp(const Tensor& dy, const Needs&) {
    const Tensor dx = Tensor::zeros(x_shape, dy.dtype(), dy.device());
    dx.sliced(dim, begin, end).copy_from(dy);
    return {dx};
  }
};

struct Concat {
  static constexpr const char* kName = "concat";
  int dim;
  std::int64_t split = 0;

  Tensor forward(const Tensor& a, const Tensor& b) {
    split = a.dim(dim);
    Shape shape = a.shape();
    shape[dim] += b.dim(dim);
    const Tensor y = Tensor::empty(shape, a.dtype(), a.device());
    y.sliced(dim, 0, split).copy_from(a);
    y.sliced(dim, split, shape[dim]).copy_from(b);
    return y;
  }
  Grads vjp(const Tensor& dy, const Needs&) {
    return {dy.sliced(dim, 0, split).as_contiguous(), dy.sliced(dim, split, dy.dim(dim)).as_contiguous()};
  }
};

struct Cast {
  static constexpr const char* kName = "cast";
  DType dtype;
  DType x_dtype = DType::f32;

  Tensor forward(const Tensor& x) {
    x_dtype = x.dtype();
    return x.to(dtype);
  }
  Grads vjp(const Tensor& dy, const Needs&) { return {dy.to(x_dtype)}; }
};

}  // namespace

Tensor reshape(const Tensor& x, const Shape& shape) { return autograd::apply(Reshape{shape, {}}, x); }
Tensor transpose(const Tensor& x, int dim0, int dim1) { return autograd::apply(Transpose{dim0, dim1}, x); }
Tensor slice(const Tensor& x, int dim, std::int64_t begin, std::int64_t end) {
  return autograd::apply(Slice{dim, begin, end, {}}, x);
}
Tensor concat(const Tensor& a, const Tensor& b, int dim) { return autograd::apply(Concat{dim}, a, b); }
Tensor cast(const Tensor& x, DType dtype) { return x.dtype() == dtype ? x : autograd::apply(Cast{dtype}, x); }

}  // namespace ridge::ops
