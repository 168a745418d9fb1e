#include "core/ops/reduce.h"

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/ops/elementwise.h"
#include "kernels/reduce.h"

namespace ridge::ops {
namespace {

using autograd::Grads;
using autograd::Needs;

struct SumTo {
  static constexpr const char* kName = "sum_to";
  Shape shape;
  Shape x_shape;

  Tensor forward(const Tensor& x) {
    x_shape = x.shape();
    check(broadcast(shape, x_shape) == x_shape, "sum to a shape that broadcasts back");
    Shape padded;  // with x's number of dimensions
    for (int d = shape.ndim(); d < x.ndim(); ++d) padded.push_back(1);
    for (const std::int64_t extent : shape) padded.push_back(extent);
    const Tensor y = Tensor::empty(padded, x.dtype(), x.device());
    visit_compute(x.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::sum_to<T>(current_stream(x.device()), x.view<T>(), y.view<T>());
    });
    return y.reshaped(shape);
  }
  Grads vjp(const Tensor& dy, const Needs&) { return {dy.expanded(x_shape).contiguous_copy()}; }
};

}  // namespace

Tensor sum_to(const Tensor& x, const Shape& shape) {
  if (x.shape() == shape) return x;
  return autograd::apply(SumTo{shape, {}}, x);
}

Tensor sum(const Tensor& x) { return sum_to(x, {}); }

Tensor mean(const Tensor& x) { return scale(sum(x), 1.0 / static_cast<double>(x.numel())); }

}  // namespace ridge::ops
