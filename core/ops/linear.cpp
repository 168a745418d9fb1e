#include "core/ops/linear.h"

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"

namespace ridge::ops {
namespace {

using autograd::Grads;
using autograd::Needs;

Tensor rows(const Tensor& x) { return x.as_contiguous().reshaped({-1, x.dim(-1)}); }

Shape with_last(Shape shape, std::int64_t last) {
  shape[-1] = last;
  return shape;
}

// [M, K] [K, N] in the inputs' dtype.
Tensor product(const Tensor& a, const Tensor& b) {
  const Tensor y = Tensor::empty({a.dim(0), b.dim(1)}, a.dtype(), a.device());
  visit_compute(a.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::matmul<T>(current_stream(a.device()), a.view<T>(), b.view<T>(), y.view<T>());
  });
  return y;
}

// As product, with the result in the accumulation type: gradients of weights.
Tensor product_acc(const Tensor& a, const Tensor& b) {
  if (a.dtype() != DType::bf16) return product(a, b);
  const Tensor y = Tensor::empty({a.dim(0), b.dim(1)}, DType::f32, a.device());
  kernels::matmul<bf16, float>(current_stream(a.device()), a.view<bf16>(), b.view<bf16>(), y.view<float>());
  return y;
}

void check_same(const Tensor& a, const Tensor& b, const char* op) {
  if (a.dtype() == b.dtype() && a.device() == b.device()) return;
  fail("{}: {} on {} with {} on {}", op, name_of(a.dtype()), name_of(a.device()), name_of(b.dtype()),
       name_of(b.device()));
}

struct Linear {
  static constexpr const char* kName = "linear";
  Needs needs;
  Tensor x_MK, w_NK;
  Shape x_shape;

  void prepare(const Needs& wanted) { needs = wanted; }

  Tensor forward(const Tensor& x, const Tensor& w, const Tensor& bias) {
    check_same(x, w, kName);
    if (w.ndim() != 2 || x.dim(-1) != w.dim(1)) {
      fail("linear: input {} with weight {}", to_string(x.shape()), to_string(w.shape()));
    }
    x_shape = x.shape();
    const Tensor flat = rows(x);
    const Tensor y = product(flat, w.transposed(0, 1));
    if (bias.defined()) add_bias(y, bias);
    if (needs[1]) x_MK = flat;
    if (needs[0]) w_NK = w;
    return y.reshaped(with_last(x.shape(), w.dim(0)));
  }

  static void add_bias(const Tensor& y, const Tensor& bias) {
    const Tensor b = bias.expanded(y.shape());
    visit_compute(y.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::add<T>(current_stream(y.device()), y.view<T>(), b.view<T>(), y.view<T>());
    });
  }

  static Tensor sum_rows(const Tensor& dy) {
    const Tensor sum = Tensor::empty({1, dy.dim(1)}, dy.dtype(), dy.device());
    visit_compute(dy.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::sum_to<T>(current_stream(dy.device()), dy.view<T>(), sum.view<T>());
    });
    return sum.reshaped({dy.dim(1)});
  }

  Grads vjp(const Tensor& dy, const Needs& wanted) {
    const Tensor dy_MN = rows(dy);
    Grads grads(3);
    if (wanted[0]) grads[0] = product(dy_MN, w_NK).reshaped(x_shape);
    if (wanted[1]) grads[1] = product_acc(dy_MN.transposed(0, 1), x_MK);
    if (wanted[2]) grads[2] = sum_rows(dy_MN);
    return grads;
  }
};

struct Matmul {
  static constexpr const char* kName = "matmul";
  Tensor a, b;

  Tensor forward(const Tensor& a_MK, const Tensor& b_KN) {
    check_same(a_MK, b_KN, kName);
    a = a_MK;
    b = b_KN;
    return product(a, b);
  }

  Grads vjp(const Tensor& dy, const Needs& wanted) {
    const Tensor dy_MN = dy.as_contiguous();
    Grads grads(2);
    if (wanted[0]) grads[0] = product(dy_MN, b.transposed(0, 1));
    if (wanted[1]) grads[1] = product(a.transposed(0, 1), dy_MN);
    return grads;
  }
};

}  // namespace

Tensor linear(const Tensor& x, const Tensor& w_NK, const Tensor& bias_N) {
  return autograd::apply(Linear{}, x, w_NK, bias_N);
}

Tensor matmul(const Tensor& a_MK, const Tensor& b_KN) { return autograd::apply(Matmul{}, a_MK, b_KN); }

}  // namespace ridge::ops
