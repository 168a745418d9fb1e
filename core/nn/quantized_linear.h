// A linear layer whose weight is in a weight format. It is frozen: adapters around it are trained.
#pragma once

#include "core/nn/linear.h"
#include "core/quantized_weight.h"

namespace ridge::nn {

class QuantizedLinear final : public Linear {
 public:
  /// The bias [out], in the dtype of activations, may be undefined.
  QuantizedLinear(QuantizedWeight weight, Tensor bias) : weight_(std::move(weight)), bias_(std::move(bias)) {}
  Tensor forward(const Tensor& x) const override;
  std::int64_t in_features() const override { return weight_.shape[1]; }
  std::int64_t out_features() const override { return weight_.shape[0]; }
  /// `path.weight` is the codes; what else the format has follows as `path.weight.absmax` and so on, then
  /// the bias.
  void collect(const std::string& path, Parameters& out) override;
  const QuantizedLinear* quantized() const override { return this; }

  QuantizedWeight& weight() { return weight_; }
  const QuantizedWeight& weight() const { return weight_; }
  Tensor& bias() { return bias_; }
  const Tensor& bias() const { return bias_; }

 private:
  QuantizedWeight weight_;
  Tensor bias_;
};

}  // namespace ridge::nn
