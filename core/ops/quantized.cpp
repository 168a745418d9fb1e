#include "core/ops/quantized.h"

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/ops/weight_group.h"
#include "kernels/quant_matmul.h"

namespace ridge::ops {
namespace {

using namespace detail;
using autograd::Grads;
using autograd::Needs;

// y [M, N] = x [M, K] w'
void multiply_quantized(const Tensor& x_MK, const QuantizedWeight& w, const Tensor& y_MN) {
  const kernels::QuantView view = w.view();
  if (x_MK.dtype() == DType::f64 || !kernels::has_quant_matmul(view, x_MK.dim(0), x_MK.device()))
    return multiply(x_MK, dequantize(w, x_MK.dtype()).transposed(0, 1), y_MN);
  Stream& stream = current_stream(x_MK.device());
  if (x_MK.dtype() == DType::f32) {
    kernels::quant_matmul<float>(stream, x_MK.view<float>(), view, y_MN.view<float>());
  } else {
    kernels::quant_matmul<bf16>(stream, x_MK.view<bf16>(), view, y_MN.view<bf16>());
  }
}

// Inputs: x, then the biases. The weights' tensors may be filled anew between forward and backward, by
// whoever gathers them: they are looked up again.
struct QuantizedLinear {
  static constexpr const char* kName = "quantized_linear";
  std::vector<const QuantizedWeight*> weights;
  Shape x_shape = {};

  std::int64_t outputs() const {
    std::int64_t sum = 0;
    for (const QuantizedWeight* w : weights) sum += w->shape[0];
    return sum;
  }

  Tensor forward(const std::vector<Tensor>& in) {
    const Tensor& x = in[0];
    x_shape = x.shape();
    const Tensor flat = rows(x);
    const Tensor y = Tensor::empty({flat.dim(0), outputs()}, x.dtype(), x.device());
    std::int64_t column = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const QuantizedWeight& w = *weights[i];
      check(w.shape[1] == x.dim(-1), "quantized_linear: columns of the weight and of x");
      const Tensor part = y.sliced(1, column, column + w.shape[0]);
      multiply_quantized(flat, w, part);
      if (in[1 + i].defined()) add_bias(part, in[1 + i]);
      column += w.shape[0];
    }
    return y.reshaped(with_last(x_shape, column));
  }

  Grads vjp(const Tensor& dy, const Needs& wanted) const {
    const Tensor dy_MN = rows(dy);
    Grads grads(1 + weights.size());
    Tensor dx;
    std::int64_t column = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const QuantizedWeight& w = *weights[i];
      const Tensor part = dy_MN.sliced(1, column, column + w.shape[0]);
      column += w.shape[0];
      if (wanted[1 + i]) grads[1 + i] = sum_rows(part.as_contiguous());
      if (!wanted[0]) continue;
      const bool first = !dx.defined();
      if (first) dx = Tensor::empty({dy_MN.dim(0), x_shape[-1]}, dy.dtype(), dy.device());
      multiply(part, dequantize(w, dy.dtype()), dx, 1, first ? 0 : 1);
    }
    if (wanted[0]) grads[0] = dx.reshaped(x_shape);
    return grads;
  }
};

}  // namespace

Tensor quantized_linear(const Tensor& x, const std::vector<const QuantizedWeight*>& weights,
                        const std::vector<Tensor>& biases) {
  check(!weights.empty() && biases.size() == weights.size(), "a bias, or none, for each weight");
  std::vector<Tensor> inputs{x};
  inputs.insert(inputs.end(), biases.begin(), biases.end());
  return autograd::apply_all(QuantizedLinear{weights}, inputs);
}

}  // namespace ridge::ops
