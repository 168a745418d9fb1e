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

/// A part of a model whose weights are used together: the embedding, a block, the final norm with the output
/// layer.
struct Unit {
  std::string name;
  Parameters parameters;
};

/// Is told when a unit is about to be used and when it has been. What it returns goes on in place of what it
/// was given.
class UnitObserver {
 public:
  virtual ~UnitObserver() = default;
  /// Before a unit's forward; also where backward runs that again.
  virtual Tensor enter(std::size_t unit, const Tensor& x) = 0;
  virtual Tensor leave(std::size_t unit, const Tensor& y) = 0;
};

/// A place that holds a linear layer: an adapter or a quantized layer may take it.
struct LinearSlot {
  std::string path;
  std::unique_ptr<Linear>* slot;
};

}  // namespace ridge::nn
