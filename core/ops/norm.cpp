#include "core/ops/norm.h"

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/rms_norm.h"

namespace ridge::ops {
namespace {

using autograd::Grads;
using autograd::Needs;

struct RmsNorm {
  static constexpr const char* kName = "rms_norm";
  double eps;
  Tensor x_RC, weight_C, inv_rms_R;
  Shape shape;

  Tensor forward(const Tensor& x, const Tensor& weight) {
    shape = x.shape();
    weight_C = weight;
    x_RC = x.as_contiguous().reshaped({-1, x.dim(-1)});
    inv_rms_R = Tensor::empty({x_RC.dim(0)}, x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.device());
    Tensor y = compute(x_RC, weight, inv_rms_R, eps).reshaped(shape);
    if (autograd::cheap_recompute()) {
      y.set_recipe(std::make_shared<autograd::Recipe>(
          [x = x_RC, w = weight, e = eps] { return compute(x, w, Tensor(), e); }));
    }
    return y;
  }

  // `inv_rms_R` may be undefined.
  static Tensor compute(const Tensor& x_RC, const Tensor& weight, const Tensor& inv_rms_R, double eps) {
    const Tensor y = Tensor::empty(x_RC.shape(), x_RC.dtype(), x_RC.device());
    visit_compute(y.dtype(), [&]<class T>(std::type_identity<T>) {
      using Acc = acc_t<T>;
      kernels::rms_norm<T>(current_stream(y.device()), x_RC.view<T>(), weight.view<T>(), y.view<T>(),
                           inv_rms_R.defined() ? inv_rms_R.view<Acc>() : View<Acc>(), eps);
    });
    return y;
  }

  Grads vjp(const Tensor& dy, const Needs& needs) {
    const Tensor dy_RC = dy.as_contiguous().reshaped(x_RC.shape());
    const Tensor dx = Tensor::empty(x_RC.shape(), x_RC.dtype(), x_RC.device());
    Tensor dweight;
    visit_compute(x_RC.dtype(), [&]<class T>(std::type_identity<T>) {
      using Acc = acc_t<T>;
      if (needs[1]) dweight = Tensor::empty(weight_C.shape(), dtype_of<Acc>, dx.device());
      kernels::rms_norm_backward<T>(current_stream(dx.device()), dy_RC.view<T>(), x_RC.view<T>(),
                                    weight_C.view<T>(), inv_rms_R.view<Acc>(), dx.view<T>(),
                                    needs[1] ? dweight.view<Acc>() : View<Acc>());
    });
    return {dx.reshaped(shape), dweight};
  }
};

struct AddRmsNorm {
  static constexpr const char* kName = "add_rms_norm";
  double eps;
  Tensor sum_RC = {}, weight_C = {}, inv_rms_R = {};
  Shape shape = {};

  std::pair<Tensor, Tensor> forward(const Tensor& x, const Tensor& delta, const Tensor& weight) {
    shape = x.shape();
    weight_C = weight;
    const Tensor x_RC = x.as_contiguous().reshaped({-1, x.dim(-1)}),
                 d_RC = delta.as_contiguous().reshaped(x_RC.shape());
    sum_RC = Tensor::empty(x_RC.shape(), x.dtype(), x.device());
    Tensor y = Tensor::empty(x_RC.shape(), x.dtype(), x.device());
    visit_compute(x.dtype(), [&]<class T>(std::type_identity<T>) {
      using Acc = acc_t<T>;
      inv_rms_R = Tensor::empty({x_RC.dim(0)}, dtype_of<Acc>, x.device());
      kernels::add_rms_norm<T>(current_stream(x.device()), x_RC.view<T>(), d_RC.view<T>(), weight.view<T>(),
                               sum_RC.view<T>(), y.view<T>(), inv_rms_R.view<Acc>(), eps);
    });
    y = y.reshaped(shape);
    if (autograd::cheap_recompute()) {
      y.set_recipe(std::make_shared<autograd::Recipe>(
          [sum = sum_RC, w = weight, e = eps] { return RmsNorm::compute(sum, w, Tensor(), e); }));
    }
    return {sum_RC.reshaped(shape), y};
  }

  Grads vjp(const Tensor& dsum, const Tensor& dy, const Needs& needs) {
    if (!dy.defined()) return {dsum, dsum, {}};
    const Tensor dy_RC = dy.as_contiguous().reshaped(sum_RC.shape());
    const Tensor residual = dsum.defined() ? dsum.as_contiguous().reshaped(sum_RC.shape()) : Tensor();
    const Tensor dx = Tensor::empty(sum_RC.shape(), sum_RC.dtype(), sum_RC.device());
    Tensor dweight;
    visit_compute(dx.dtype(), [&]<class T>(std::type_identity<T>) {
      using Acc = acc_t<T>;
      if (needs[2]) dweight = Tensor::empty(weight_C.shape(), dtype_of<Acc>, dx.device());
      kernels::rms_norm_backward<T>(current_stream(dx.device()), dy_RC.view<T>(), sum_RC.view<T>(),
                                    weight_C.view<T>(), inv_rms_R.view<Acc>(), dx.view<T>(),
                                    needs[2] ? dweight.view<Acc>() : View<Acc>(),
                                    residual.defined() ? residual.view<T>() : View<T>());
    });
    return {dx.reshaped(shape), dx.reshaped(shape), dweight};
  }
};

}  // namespace

std::pair<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight_C,
                                       double eps) {
  return autograd::apply_pair(AddRmsNorm{eps}, x, delta, weight_C);
}

Tensor rms_norm(const Tensor& x, const Tensor& weight_C, double eps) {
  return autograd::apply(RmsNorm{eps, {}, {}, {}, {}}, x, weight_C);
}

}  // namespace ridge::ops
