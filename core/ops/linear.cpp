#include "core/ops/linear.h"

#include <optional>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"

namespace ridge::ops {
namespace {

using autograd::Grads;
using autograd::GradSink;
using autograd::Needs;
using autograd::PassContext;
using autograd::Saved;

Tensor rows(const Tensor& x) { return x.as_contiguous().reshaped({-1, x.dim(-1)}); }

Shape with_last(Shape shape, std::int64_t last) {
  shape[-1] = last;
  return shape;
}

// c = alpha a b + beta c; c in the inputs' dtype.
void multiply(const Tensor& a, const Tensor& b, const Tensor& c, double alpha = 1, double beta = 0) {
  visit_compute(a.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::matmul<T>(current_stream(a.device()), a.view<T>(), b.view<T>(), c.view<T>(), alpha, beta);
  });
}

// The same with c in the accumulation type: gradients of weights.
void multiply_acc(const Tensor& a, const Tensor& b, const Tensor& c, double alpha, double beta) {
  visit_compute(a.dtype(), [&]<class T>(std::type_identity<T>) {
    using Acc = acc_t<T>;
    kernels::matmul<T, Acc>(current_stream(a.device()), a.view<T>(), b.view<T>(), c.view<Acc>(), alpha, beta);
  });
}

// [M, K] [K, N] in the inputs' dtype.
Tensor product(const Tensor& a, const Tensor& b) {
  const Tensor y = Tensor::empty({a.dim(0), b.dim(1)}, a.dtype(), a.device());
  multiply(a, b, y);
  return y;
}

DType acc_dtype(DType dtype) { return dtype == DType::bf16 ? DType::f32 : dtype; }

// Adds a gradient of another dtype to a leaf's, or puts it there.
void put(const GradSink& sink, const Tensor& grad) {
  if (!sink.add) return sink.grad.copy_from(grad);
  const Tensor same = grad.to(sink.grad.dtype());
  visit_compute(same.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::add<T>(current_stream(same.device()), sink.grad.view<T>(), same.view<T>(), sink.grad.view<T>());
  });
}

// The gradients of a group's weights: columns first[i] .. first[i + 1] of dy make that of weight i.
struct WeightGradients {
  std::vector<std::optional<GradSink>>
      sinks;  // none where a weight is frozen, or its gradient goes elsewhere
  std::vector<std::int64_t> first;

  Tensor columns(const Tensor& t_MN, std::size_t i) const { return t_MN.sliced(1, first[i], first[i + 1]); }

  // One product for all weights whose gradients lie side by side; whether that was done.
  bool jointly(const Tensor& dy_MN, const Tensor& x_MK) const {
    std::vector<Tensor> grads;
    for (const auto& sink : sinks) {
      if (!sink || sink->add != sinks.front()->add) return false;
      grads.push_back(sink->grad);
    }
    const Tensor all = sinks.size() > 1 ? Tensor::joined(grads) : Tensor();
    if (!all.defined() || all.dtype() != acc_dtype(x_MK.dtype())) return false;
    multiply_acc(dy_MN.transposed(0, 1), x_MK, all, 1, sinks.front()->add ? 1 : 0);
    return true;
  }

  void run(const Tensor& dy_MN, const Tensor& x_MK) const {
    if (jointly(dy_MN, x_MK)) return;
    for (std::size_t i = 0; i < sinks.size(); ++i) {
      if (sinks[i]) fill(*sinks[i], columns(dy_MN, i).transposed(0, 1), x_MK);
    }
  }

  // alpha a b, written or added to its place.
  static void fill(const GradSink& sink, const Tensor& a, const Tensor& b, double alpha = 1) {
    if (sink.grad.dtype() == acc_dtype(a.dtype()))
      return multiply_acc(a, b, sink.grad, alpha, sink.add ? 1 : 0);
    const Tensor grad = Tensor::empty({a.dim(0), b.dim(1)}, acc_dtype(a.dtype()), a.device());
    multiply_acc(a, b, grad, alpha, 0);
    put(sink, grad);  // an f32 adapter of an f64 model
  }
};

// alpha a b as the gradient of input i: written or added to its leaf where it is one, else returned.
Tensor weight_gradient(const PassContext& pass, std::size_t i, const Tensor& a, const Tensor& b,
                       double alpha = 1) {
  if (const auto sink = pass.take_leaf(i)) {
    WeightGradients::fill(*sink, a, b, alpha);
    return {};
  }
  const Tensor grad = Tensor::empty({a.dim(0), b.dim(1)}, acc_dtype(a.dtype()), a.device());
  multiply_acc(a, b, grad, alpha, 0);
  return grad;
}

void check_same(const Tensor& a, const Tensor& b, const char* op) {
  if (a.dtype() == b.dtype() && a.device() == b.device()) return;
  fail("{}: {} on {} with {} on {}", op, name_of(a.dtype()), name_of(a.device()), name_of(b.dtype()),
       name_of(b.device()));
}

void add_bias(const Tensor& y, const Tensor& bias) {
  const Tensor b = bias.expanded(y.shape());
  visit_compute(y.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::add<T>(current_stream(y.device()), y.view<T>(), b.view<T>(), y.view<T>());
  });
}

Tensor sum_rows(const Tensor& dy) {
  const Tensor sum = Tensor::empty({1, dy.dim(1)}, dy.dtype(), dy.device());
  visit_compute(dy.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::sum_to<T>(current_stream(dy.device()), dy.view<T>(), sum.view<T>());
  });
  return sum.reshaped({dy.dim(1)});
}

// Inputs: x, then the weights, then the biases.
struct LinearGroup {
  static constexpr const char* kName = "linear";
  std::size_t count;  // members
  Needs needs = {};
  Saved x_MK = {};
  std::vector<Tensor> weights = {};
  std::vector<std::int64_t> first = {};  // column where a member begins, then their sum
  Shape x_shape = {};

  void prepare(const Needs& wanted) { needs = wanted; }
  bool trains(std::size_t i) const { return needs[1 + i]; }
  Tensor columns(const Tensor& t_MN, std::size_t i) const { return t_MN.sliced(1, first[i], first[i + 1]); }

  Tensor forward(const std::vector<Tensor>& in) {
    const Tensor& x = in[0];
    weights.assign(in.begin() + 1, in.begin() + 1 + static_cast<std::ptrdiff_t>(count));
    x_shape = x.shape();
    first = {0};
    for (const Tensor& w : weights) {
      check_same(x, w, kName);
      if (w.ndim() != 2 || x.dim(-1) != w.dim(1))
        fail("linear: input {} with weight {}", to_string(x.shape()), to_string(w.shape()));
      first.push_back(first.back() + w.dim(0));
    }
    const Tensor flat = rows(x);
    const Tensor y = Tensor::empty({flat.dim(0), first.back()}, x.dtype(), x.device());
    const Tensor all = Tensor::joined(weights);
    if (all.defined()) multiply(flat, all.transposed(0, 1), y);
    for (std::size_t i = 0; i < count; ++i) {
      if (!all.defined()) multiply(flat, weights[i].transposed(0, 1), columns(y, i));
      if (in[1 + count + i].defined()) add_bias(columns(y, i), in[1 + count + i]);
    }
    bool keep_x = false;
    for (std::size_t i = 0; i < count; ++i) keep_x = keep_x || trains(i);
    if (keep_x) x_MK = Saved(flat);
    if (!needs[0]) weights.clear();
    return y.reshaped(with_last(x_shape, first.back()));
  }

  Tensor input_gradient(const Tensor& dy_MN) const {
    const Tensor all = Tensor::joined(weights);
    if (all.defined()) return product(dy_MN, all);
    const Tensor dx = Tensor::empty({dy_MN.dim(0), x_shape[-1]}, dy_MN.dtype(), dy_MN.device());
    for (std::size_t i = 0; i < count; ++i) multiply(columns(dy_MN, i), weights[i], dx, 1, i == 0 ? 0 : 1);
    return dx;
  }

  // Those of leaves go to their place, now or when the queue is run; the others are returned.
  void weight_gradients(const Tensor& dy_MN, const PassContext& pass, Grads& grads) const {
    WeightGradients leaves{{}, first};
    bool any = false;
    for (std::size_t i = 0; i < count; ++i) {
      leaves.sinks.push_back(trains(i) ? pass.take_leaf(1 + i) : std::nullopt);
      any = any || leaves.sinks.back();
      if (trains(i) && !leaves.sinks.back())
        grads[1 + i] = weight_gradient(pass, 1 + i, columns(dy_MN, i).transposed(0, 1), x_MK.get());
    }
    if (!any) return;
    auto* queue = autograd::deferred_weight_gradients();
    if (queue == nullptr) return leaves.run(dy_MN, x_MK.get());
    queue->push_back([leaves = std::move(leaves), dy_MN, x = x_MK] { leaves.run(dy_MN, x.get()); });
  }

  Grads vjp(const Tensor& dy, const Needs& wanted, const PassContext& pass) const {
    const Tensor dy_MN = rows(dy);
    Grads grads(1 + 2 * count);
    if (wanted[0]) grads[0] = input_gradient(dy_MN).reshaped(x_shape);
    weight_gradients(dy_MN, pass, grads);
    for (std::size_t i = 0; i < count; ++i) {
      if (wanted[1 + count + i]) grads[1 + count + i] = sum_rows(columns(dy_MN, i));
    }
    return grads;
  }
};

struct AddLowRank {
  static constexpr const char* kName = "add_low_rank";
  std::int64_t column;
  double scaling;
  Needs needs = {};
  Saved x_MK = {};
  Tensor low_MR = {}, a_RK = {}, b_NR = {};
  Shape x_shape = {};

  void prepare(const Needs& wanted) { needs = wanted; }
  Tensor columns(const Tensor& t_MC) const { return t_MC.sliced(1, column, column + b_NR.dim(0)); }

  Tensor forward(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b) {
    check(y.contiguous() && y.dtype() == x.dtype(), "add_low_rank: y is contiguous and of x's dtype");
    x_shape = x.shape();
    a_RK = a.to(x.dtype());
    b_NR = b.to(x.dtype());
    const Tensor flat = rows(x);
    low_MR = product(flat, a_RK.transposed(0, 1));
    multiply(low_MR, b_NR.transposed(0, 1), columns(y.reshaped({-1, y.dim(-1)})), scaling, 1);
    if (needs[2]) x_MK = Saved(flat);
    if (!needs[3]) low_MR = {};
    return y;
  }

  Grads vjp(const Tensor& dy, const Needs& wanted, const PassContext& pass) const {
    const Tensor dy_MN = columns(rows(dy));
    Grads grads(4);
    grads[0] = dy;
    if (wanted[3]) grads[3] = weight_gradient(pass, 3, dy_MN.transposed(0, 1), low_MR, scaling);
    if (!wanted[1] && !wanted[2]) return grads;
    const Tensor dlow_MR = Tensor::empty({dy_MN.dim(0), a_RK.dim(0)}, dy_MN.dtype(), dy_MN.device());
    multiply(dy_MN, b_NR, dlow_MR, scaling);
    if (wanted[2]) grads[2] = weight_gradient(pass, 2, dlow_MR.transposed(0, 1), x_MK.get());
    if (wanted[1]) grads[1] = product(dlow_MR, a_RK).reshaped(x_shape);
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
  return linear_group(x, {w_NK}, {bias_N});
}

Tensor linear_group(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
  check(!weights.empty() && biases.size() == weights.size(), "a bias, or none, for each weight");
  std::vector<Tensor> inputs{x};
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  inputs.insert(inputs.end(), biases.begin(), biases.end());
  return autograd::apply_all(LinearGroup{weights.size()}, inputs);
}

Tensor add_low_rank(const Tensor& y, const Tensor& x, const Tensor& a_RK, const Tensor& b_NR,
                    std::int64_t column, double scaling) {
  return autograd::apply(AddLowRank{column, scaling}, y, x, a_RK, b_NR);
}

Tensor matmul(const Tensor& a_MK, const Tensor& b_KN) { return autograd::apply(Matmul{}, a_MK, b_KN); }

}  // namespace ridge::ops
