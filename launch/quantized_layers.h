// Which linear layers of a trained model have quantized weights, where those lie, and what is in them.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/models/weights.h"
#include "core/nn/module.h"
#include "core/quantized_weight.h"
#include "parallel/communicator.h"
#include "parallel/placement.h"

namespace ridge {

class QuantizedLayers {
 public:
  /// The layers that `weights` (or null) has quantized; with `format` all linear layers of the blocks, which
  /// then must not be so already.
  QuantizedLayers(const models::ModelWeights* weights, std::optional<kernels::WeightFormat> format)
      : weights_(weights), format_(std::move(format)) {}

  /// Puts quantized layers in place of the dense ones of a whole model on meta.
  void replace(const std::vector<nn::LinearSlot>& linears);
  /// The same of a model of which this rank holds the pieces that `placements` says; afterwards that has the
  /// parts in place of the weights. A UserError where a piece would begin or end within a group.
  void replace_pieces(const std::vector<nn::LinearSlot>& linears, const parallel::Communicator& tp,
                      std::map<std::string, parallel::Placement>& placements) const;

  bool any() const { return !parts_.empty(); }
  /// Whether a parameter is part of a quantized weight.
  bool holds(const std::string& parameter) const { return parts_.contains(parameter); }
  /// Its whole value, near `device`. `dense(name, shape)` gives a weight that is quantized now: it is asked
  /// once for all parts of a layer, which are asked for one after another.
  Tensor value(const std::string& parameter,
               const std::function<Tensor(const std::string&, const Shape&)>& dense);
  /// No value is asked for any more: what was kept for them goes.
  void let_go() {
    whole_.clear();
    held_.clear();
    values_ = {};
  }

 private:
  struct PartOf {
    std::string path, suffix;
  };

  std::optional<kernels::WeightFormat> format_of(const std::string& path) const;

  const models::ModelWeights* weights_;
  std::optional<kernels::WeightFormat> format_;
  std::map<std::string, QuantizedWeight> whole_;  // on meta, by the layer's path
  std::map<std::string, PartOf> parts_;           // by the parameter's name
  std::string held_;                              // the layer whose values are in `values_`
  QuantizedWeight values_;
};

}  // namespace ridge
