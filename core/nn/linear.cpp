#include "core/nn/linear.h"

#include <numeric>

#include "core/autograd.h"
#include "core/nn/quantized_linear.h"
#include "core/ops/linear.h"
#include "core/ops/loss.h"
#include "core/ops/quantized.h"
#include "core/ops/shape.h"

namespace ridge::nn {
namespace {

Tensor rows(const Tensor& x) { return x.ndim() == 2 ? x : ops::reshape(x, {-1, x.dim(-1)}); }

// The outputs of the layers' plain parts, side by side; undefined unless they are all of one kind.
Tensor plain_parts(const std::vector<const Linear*>& layers, const Tensor& x) {
  std::vector<Tensor> dense, biases;
  std::vector<const QuantizedWeight*> quantized;
  for (const Linear* layer : layers) {
    if (const DenseLinear* plain = layer->dense()) {
      dense.push_back(plain->weight());
      biases.push_back(plain->bias());
    } else if (const QuantizedLinear* coded = layer->quantized()) {
      quantized.push_back(&coded->weight());
      biases.push_back(coded->bias());
    }
  }
  if (dense.size() == layers.size()) return ops::linear_group(x, dense, biases);
  if (quantized.size() == layers.size()) return ops::quantized_linear(x, quantized, biases);
  return {};
}

}  // namespace

Tensor Linear::cross_entropy(const Tensor& hidden, const Tensor& targets_R, double scale) const {
  return ops::cross_entropy(ops::cast(forward(rows(hidden)), DType::f32), targets_R, scale);
}

Tensor Linear::add_extra(const Tensor&, const Tensor& y, std::int64_t) const { return y; }

Tensor forward_group(const std::vector<const Linear*>& layers, const Tensor& x) {
  return layers.front()->forward_together(layers, x);
}

Tensor Linear::forward_together(const std::vector<const Linear*>& layers, const Tensor& x) const {
  Tensor y = plain_parts(layers, x);
  if (!y.defined()) {
    y = layers.front()->forward(x);
    for (std::size_t i = 1; i < layers.size(); ++i) y = ops::concat(y, layers[i]->forward(x), x.ndim() - 1);
    return y;
  }
  std::int64_t column = 0;
  for (const Linear* layer : layers) {
    y = layer->add_extra(x, y, column);
    column += layer->out_features();
  }
  return y;
}

std::vector<std::unique_ptr<Linear>> dense_group(std::int64_t in, const std::vector<std::int64_t>& outs,
                                                 bool bias, DType dtype, Device device) {
  const PurposeScope purpose(Purpose::weights);
  const std::int64_t total = std::accumulate(outs.begin(), outs.end(), std::int64_t{0});
  const Tensor weights = Tensor::empty({total, in}, dtype, device);
  const Tensor biases = bias ? Tensor::zeros({total}, dtype, device) : Tensor();
  std::vector<std::unique_ptr<Linear>> layers;
  std::int64_t row = 0;
  for (const std::int64_t out : outs) {
    layers.push_back(std::make_unique<DenseLinear>(weights.sliced(0, row, row + out),
                                                   bias ? biases.sliced(0, row, row + out) : Tensor()));
    row += out;
  }
  return layers;
}

Tensor Linear::token_losses(const Tensor& hidden, const Tensor& targets_R) const {
  const autograd::NoGradScope no_grad;
  const Tensor hidden_RC = rows(hidden);
  const Tensor losses = Tensor::empty({hidden_RC.dim(0)}, DType::f32, hidden_RC.device());
  for (std::int64_t r = 0; r < hidden_RC.dim(0); ++r) {
    const Tensor loss = cross_entropy(hidden_RC.sliced(0, r, r + 1), targets_R.sliced(0, r, r + 1), 1);
    losses.sliced(0, r, r + 1).copy_from(loss.reshaped({1}));
  }
  return losses;
}

DenseLinear::DenseLinear(std::int64_t in, std::int64_t out, bool bias, DType dtype, Device device) {
  const PurposeScope purpose(Purpose::weights);
  weight_ = Tensor::empty({out, in}, dtype, device);
  if (bias) bias_ = Tensor::zeros({out}, dtype, device);
}

Tensor DenseLinear::forward(const Tensor& x) const { return ops::linear(x, weight_, bias_); }

void DenseLinear::collect(const std::string& path, Parameters& out) {
  out.push_back({path + ".weight", &weight_});
  if (bias_.defined()) out.push_back({path + ".bias", &bias_});
}

Tensor DenseLinear::cross_entropy(const Tensor& hidden, const Tensor& targets_R, double scale) const {
  if (bias_.defined()) return Linear::cross_entropy(hidden, targets_R, scale);
  return ops::linear_cross_entropy(rows(hidden), weight_, targets_R, scale);
}

Tensor DenseLinear::token_losses(const Tensor& hidden, const Tensor& targets_R) const {
  if (bias_.defined()) return Linear::token_losses(hidden, targets_R);
  return ops::token_losses(rows(hidden), weight_, targets_R);
}

Tensor TiedLinear::forward(const Tensor& x) const { return ops::linear(x, *table_); }

Tensor TiedLinear::cross_entropy(const Tensor& hidden, const Tensor& targets_R, double scale) const {
  return ops::linear_cross_entropy(rows(hidden), *table_, targets_R, scale);
}

Tensor TiedLinear::token_losses(const Tensor& hidden, const Tensor& targets_R) const {
  return ops::token_losses(rows(hidden), *table_, targets_R);
}

}  // namespace ridge::nn
