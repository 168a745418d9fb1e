#include "core/ops/linear.h"

#include "core/ops/weight_group.h"

namespace ridge::ops {
namespace {

using namespace detail;
using autograd::Grads;
using autograd::Needs;
using autograd::PassContext;
using autograd::Saved;

// Inputs: x, then the weights, then the biases.
struct LinearGroup {
  static constexpr const char* kName = "linear";
  std::size_t count;  // members
  Needs needs = {};
  Saved x_MK = {};
  WeightGroup group = {};
  Shape x_shape = {};

  void prepare(const Needs& wanted) { needs = wanted; }

  Tensor forward(const std::vector<Tensor>& in) {
    const Tensor& x = in[0];
    group = WeightGroup(x, {in.begin() + 1, in.begin() + 1 + static_cast<std::ptrdiff_t>(count)});
    x_shape = x.shape();
    const Tensor flat = rows(x);
    const Tensor y = Tensor::empty({flat.dim(0), group.outputs()}, x.dtype(), x.device());
    group.product(flat, y);
    for (std::size_t i = 0; i < count; ++i) {
      if (in[1 + count + i].defined()) add_bias(group.columns(y, i), in[1 + count + i]);
    }
    if (group.any_trained(needs)) x_MK = Saved(flat);
    if (!needs[0]) group.drop();
    return y.reshaped(with_last(x_shape, group.outputs()));
  }

  Grads vjp(const Tensor& dy, const Needs& wanted, const PassContext& pass) const {
    const Tensor dy_MN = rows(dy);
    Grads grads(1 + 2 * count);
    if (wanted[0]) {
      const Tensor dx = Tensor::empty({dy_MN.dim(0), x_shape[-1]}, dy.dtype(), dy.device());
      group.input_gradient(dy_MN, dx);
      grads[0] = dx.reshaped(x_shape);
    }
    group.weight_gradients(dy_MN, x_MK, wanted, pass, grads);
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
