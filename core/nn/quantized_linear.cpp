#include "core/nn/quantized_linear.h"

#include "core/ops/quantized.h"

namespace ridge::nn {

Tensor QuantizedLinear::forward(const Tensor& x) const {
  return ops::quantized_linear(x, {&weight_}, {bias_});
}

void QuantizedLinear::collect(const std::string& path, Parameters& out) {
  for (const QuantizedWeight::Part& part : weight_.parts())
    out.push_back({path + ".weight" + part.suffix, part.value});
  if (bias_.defined()) out.push_back({path + ".bias", &bias_});
}

}  // namespace ridge::nn
