// Names for what a model is made of. A path is Hugging Face's: "model.layers.0.self_attn.q_proj".
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace ridge::nn {

class Linear;

/// A parameter inside a model, by its full name.
struct Parameter {
  std::string name;
  Tensor* value;
};
using Parameters = std::vector<Parameter>;

/// A place that holds a linear layer: an adapter or a quantized layer may take it.
struct LinearSlot {
  std::string path;
  std::unique_ptr<Linear>* slot;
};

}  // namespace ridge::nn
