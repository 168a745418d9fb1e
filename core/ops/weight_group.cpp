#include "core/ops/weight_group.h"

#include <algorithm>
#include <optional>

#include "core/base/stream.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"

namespace ridge::ops::detail {
namespace {

using autograd::Grads;
using autograd::GradSink;
using autograd::Needs;
using autograd::PassContext;
using autograd::Saved;

// c = alpha a b + beta c with c in the accumulation type: gradients of weights.
void multiply_acc(const Tensor& a, const Tensor& b, const Tensor& c, double alpha, double beta) {
  visit_compute(a.dtype(), [&]<class T>(std::type_identity<T>) {
    using Acc = acc_t<T>;
    kernels::matmul<T, Acc>(current_stream(a.device()), a.view<T>(), b.view<T>(), c.view<Acc>(), alpha, beta);
  });
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
  std::vector<std::optional<GradSink>> sinks;  // none where it is frozen, or its gradient goes elsewhere
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

}  // namespace

Tensor rows(const Tensor& x) { return x.as_contiguous().reshaped({-1, x.dim(-1)}); }

Shape with_last(Shape shape, std::int64_t last) {
  shape[-1] = last;
  return shape;
}

void multiply(const Tensor& a, const Tensor& b, const Tensor& c, double alpha, double beta) {
  Stream& stream = current_stream(a.device());
  visit_compute(a.dtype(), [&]<class T>(std::type_identity<T>) {
    if (a.ndim() == 3) {
      kernels::matmul_batched<T>(stream, a.view<T>(), b.view<T>(), c.view<T>(), alpha, beta);
    } else {
      kernels::matmul<T>(stream, a.view<T>(), b.view<T>(), c.view<T>(), alpha, beta);
    }
  });
}

Tensor product(const Tensor& a, const Tensor& b) {
  const Tensor y = Tensor::empty({a.dim(0), b.dim(1)}, a.dtype(), a.device());
  multiply(a, b, y);
  return y;
}

Tensor weight_gradient(const PassContext& pass, std::size_t i, const Tensor& a, const Tensor& b,
                       double alpha) {
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

WeightGroup::WeightGroup(const Tensor& x, std::vector<Tensor> weights) : weights_(std::move(weights)) {
  for (const Tensor& w : weights_) {
    check_same(x, w, "linear");
    if (w.ndim() != 2 || x.dim(-1) != w.dim(1))
      fail("linear: input {} with weight {}", to_string(x.shape()), to_string(w.shape()));
    first_.push_back(first_.back() + w.dim(0));
  }
}

Tensor WeightGroup::columns(const Tensor& t, std::size_t i) const {
  return t.sliced(t.ndim() - 1, first_[i], first_[i + 1]);
}

void WeightGroup::product(const Tensor& x, const Tensor& y) const {
  const Tensor all = Tensor::joined(weights_);
  if (all.defined()) return multiply(x, all.transposed(0, 1), y);
  for (std::size_t i = 0; i < weights_.size(); ++i) multiply(x, weights_[i].transposed(0, 1), columns(y, i));
}

void WeightGroup::input_gradient(const Tensor& dy, const Tensor& dx, double beta) const {
  const Tensor all = Tensor::joined(weights_);
  if (all.defined()) return multiply(dy, all, dx, 1, beta);
  for (std::size_t i = 0; i < weights_.size(); ++i)
    multiply(columns(dy, i), weights_[i], dx, 1, i == 0 ? beta : 1);
}

bool WeightGroup::any_trained(const Needs& needs) const {
  const auto begin = needs.begin() + 1, end = begin + static_cast<std::ptrdiff_t>(count());
  return std::find(begin, end, true) != end;
}

void WeightGroup::weight_gradients(const Tensor& dy_MN, const Saved& x_MK, const Needs& needs,
                                   const PassContext& pass, Grads& grads) const {
  WeightGradients leaves{{}, first_};
  bool any = false;
  for (std::size_t i = 0; i < count(); ++i) {
    leaves.sinks.push_back(needs[1 + i] ? pass.take_leaf(1 + i) : std::nullopt);
    any = any || leaves.sinks.back();
    if (needs[1 + i] && !leaves.sinks.back())
      grads[1 + i] = weight_gradient(pass, 1 + i, columns(dy_MN, i).transposed(0, 1), x_MK.get());
    if (needs[1 + count() + i]) grads[1 + count() + i] = sum_rows(columns(dy_MN, i));
  }
  if (!any) return;
  auto* queue = autograd::deferred_weight_gradients();
  if (queue == nullptr) return leaves.run(dy_MN, x_MK.get());
  queue->push_back([leaves = std::move(leaves), dy_MN, x = x_MK] { leaves.run(dy_MN, x.get()); });
}

}  // namespace ridge::ops::detail
