#include "core/ops/loss.h"

#include <algorithm>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"

namespace ridge::ops {
namespace {

using autograd::Grads;
using autograd::Needs;

DType acc_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

Tensor scaled(const Tensor& x, double factor) {
  if (factor == 1) return x;
  const Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  visit_compute(x.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::scale<T>(current_stream(x.device()), x.view<T>(), factor, y.view<T>());
  });
  return y;
}

double scalar(const Tensor& x) { return x.device() == Device::meta ? 1.0 : x.item(); }

// scale * sum of [R], as a tensor without dimensions.
Tensor total(const Tensor& losses_R, double scale) {
  const Tensor sum = Tensor::empty({1}, losses_R.dtype(), losses_R.device());
  visit_compute(sum.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::sum_to<T>(current_stream(sum.device()), losses_R.view<T>(), sum.view<T>());
  });
  return scaled(sum.reshaped({}), scale);
}

struct CrossEntropy {
  static constexpr const char* kName = "cross_entropy";
  Tensor targets;
  double scale;
  Tensor logits, lse;

  Tensor forward(const Tensor& logits_RV) {
    logits = logits_RV.as_contiguous();
    const Tensor loss = Tensor::empty({logits.dim(0)}, acc_dtype(logits.dtype()), logits.device());
    lse = Tensor::empty(loss.shape(), loss.dtype(), logits.device());
    visit_compute(logits.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::cross_entropy<T>(current_stream(logits.device()), logits.view<T>(),
                                targets.view<std::int32_t>(), loss.view<acc_t<T>>(), lse.view<acc_t<T>>());
    });
    return total(loss, scale);
  }

  Grads vjp(const Tensor& dy, const Needs&) {
    const Tensor dlogits = Tensor::empty(logits.shape(), logits.dtype(), logits.device());
    const Tensor dloss = scaled(dy.reshaped({1}), scale).expanded({logits.dim(0)});
    visit_compute(logits.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::cross_entropy_backward<T>(current_stream(logits.device()), logits.view<T>(),
                                         targets.view<std::int32_t>(), lse.view<acc_t<T>>(),
                                         dloss.view<acc_t<T>>(), dlogits.view<T>());
    });
    return {dlogits};
  }
};

// One chunk of rows, [r, C] hidden states. Losses alone take logits in the accumulation type.
template <class T>
void chunk_losses(const Tensor& hidden, const Tensor& weight, const Tensor& targets, const Tensor& losses) {
  using Acc = acc_t<T>;
  Stream& stream = current_stream(hidden.device());
  const Tensor logits = Tensor::empty({hidden.dim(0), weight.dim(0)}, dtype_of<Acc>, hidden.device());
  const Tensor lse = Tensor::empty({hidden.dim(0)}, dtype_of<Acc>, hidden.device());
  kernels::matmul<T, Acc>(stream, hidden.view<T>(), weight.transposed(0, 1).view<T>(), logits.view<Acc>());
  kernels::cross_entropy<Acc>(stream, logits.view<Acc>(), targets.view<std::int32_t>(), losses.view<Acc>(),
                              lse.view<Acc>());
}

// With gradients logits are in T, and turn into their own gradient in place.
template <class T>
void chunk_gradients(const Tensor& hidden, const Tensor& weight, const Tensor& targets, double scale,
                     const Tensor& losses, const Tensor& dhidden_rC, const Tensor& dweight_VC, bool first) {
  using Acc = acc_t<T>;
  Stream& stream = current_stream(hidden.device());
  const Tensor d = Tensor::empty({hidden.dim(0), weight.dim(0)}, dtype_of<T>, hidden.device());
  kernels::matmul<T>(stream, hidden.view<T>(), weight.transposed(0, 1).view<T>(), d.view<T>());
  kernels::cross_entropy_in_place<T>(stream, d.view<T>(), targets.view<std::int32_t>(), scale,
                                     losses.view<Acc>());
  if (dhidden_rC.defined()) kernels::matmul<T>(stream, d.view<T>(), weight.view<T>(), dhidden_rC.view<T>());
  if (dweight_VC.defined()) {
    kernels::matmul<T, Acc>(stream, d.transposed(0, 1).view<T>(), hidden.view<T>(), dweight_VC.view<Acc>(), 1,
                            first ? 0 : 1);
  }
}

template <class F>
void for_each_chunk(const Tensor& hidden, std::int64_t vocabulary, F&& body) {
  const std::int64_t rows = hidden.dim(0), step = loss_chunk_rows(hidden.device(), vocabulary);
  for (std::int64_t begin = 0; begin < rows; begin += step) body(begin, std::min(rows, begin + step));
}

void check_shapes(const Tensor& hidden, const Tensor& weight, const Tensor& targets) {
  const bool fits = hidden.ndim() == 2 && weight.ndim() == 2 && targets.ndim() == 1 &&
                    hidden.dim(1) == weight.dim(1) && targets.dim(0) == hidden.dim(0);
  if (!fits) {
    fail("cross entropy: hidden {}, weight {}, targets {}", to_string(hidden.shape()),
         to_string(weight.shape()), to_string(targets.shape()));
  }
}

struct LinearCrossEntropy {
  static constexpr const char* kName = "linear_cross_entropy";
  Tensor targets;
  double scale;
  Needs needs;
  Tensor dhidden, dweight;
  bool early = false;  // the weight's gradient is where it belongs after the forward pass
  bool add = false;

  void prepare(const Needs& wanted, const std::vector<autograd::Edge>& edges) {
    needs = wanted;
    const auto sink = needs[1] ? autograd::take_early(edges[1]) : std::nullopt;
    if (!sink) return;
    early = true;
    add = sink->add;
    dweight = sink->grad;
  }

  Tensor forward(const Tensor& hidden, const Tensor& weight) {
    check_shapes(hidden, weight, targets);
    const Tensor losses = Tensor::empty({hidden.dim(0)}, acc_dtype(hidden.dtype()), hidden.device());
    if (needs[0]) dhidden = Tensor::empty(hidden.shape(), hidden.dtype(), hidden.device());
    if (needs[1] && !early) {
      const PurposeScope purpose(Purpose::gradients);
      dweight = Tensor::empty(weight.shape(), losses.dtype(), hidden.device());
    }
    for_each_chunk(hidden, weight.dim(0), [&](std::int64_t begin, std::int64_t end) {
      visit_compute(hidden.dtype(), [&]<class T>(std::type_identity<T>) {
        const Tensor h = hidden.sliced(0, begin, end), t = targets.sliced(0, begin, end);
        const Tensor loss = losses.sliced(0, begin, end);
        if (!needs[0] && !needs[1]) return chunk_losses<T>(h, weight, t, loss);
        chunk_gradients<T>(h, weight, t, scale, loss, needs[0] ? dhidden.sliced(0, begin, end) : Tensor(),
                           dweight, begin == 0 && !add);
      });
    });
    return total(losses, scale);
  }

  Grads vjp(const Tensor& dy, const Needs& wanted, const autograd::PassContext& pass) {
    check(pass.unit() || !early, "a loss whose gradient is 1");
    const double factor = pass.unit() ? 1 : scalar(dy);
    Grads grads(2);
    if (wanted[0]) grads[0] = scaled(std::exchange(dhidden, {}), factor);
    if (wanted[1] && !early) grads[1] = scaled(std::exchange(dweight, {}), factor);
    return grads;
  }
};

}  // namespace

std::int64_t loss_chunk_rows(Device device, std::int64_t vocabulary) {
  const std::int64_t logits = std::int64_t{1} << (planned_device(device) == Device::cuda ? 28 : 22);
  return std::clamp<std::int64_t>(logits / std::max<std::int64_t>(vocabulary, 1), 64, 1 << 16);
}

Tensor cross_entropy(const Tensor& logits_RV, const Tensor& targets_R, double scale) {
  return autograd::apply(CrossEntropy{targets_R.as_contiguous(), scale, {}, {}}, logits_RV);
}

Tensor linear_cross_entropy(const Tensor& hidden_RC, const Tensor& weight_VC, const Tensor& targets_R,
                            double scale) {
  return autograd::apply(LinearCrossEntropy{targets_R.as_contiguous(), scale, {}, {}, {}}, hidden_RC,
                         weight_VC);
}

Tensor token_losses(const Tensor& hidden_RC, const Tensor& weight_VC, const Tensor& targets_R) {
  check_shapes(hidden_RC, weight_VC, targets_R);
  const Tensor hidden = hidden_RC.as_contiguous();
  const Tensor losses = Tensor::empty({hidden.dim(0)}, acc_dtype(hidden.dtype()), hidden.device());
  for_each_chunk(hidden, weight_VC.dim(0), [&](std::int64_t begin, std::int64_t end) {
    visit_compute(hidden.dtype(), [&]<class T>(std::type_identity<T>) {
      chunk_losses<T>(hidden.sliced(0, begin, end), weight_VC, targets_R.sliced(0, begin, end),
                      losses.sliced(0, begin, end));
    });
  });
  return losses;
}

}  // namespace ridge::ops
