// Which linear layers of a weight folder are quantized, and how: their keys decide.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/models/quantization_config.h"
#include "core/models/stored_tensor.h"
#include "core/quantized_weight.h"

namespace ridge::models {

class QuantizedWeights {
 public:
  /// Of the layers that a model has. UserErrors: keys of families that are not read (GPTQ, AWQ, HQQ), a
  /// config that names another family, state that is missing or contradicts itself. Values are checked by
  /// read().
  QuantizedWeights(SharedFolder folder, const QuantizationConfig& config,
                   const std::vector<LinearShape>& linears);
  /// Of a layer, by its path; none where its weight is dense.
  std::optional<kernels::WeightFormat> format_of(const std::string& path) const;
  /// On the CPU; codes may alias the mapped file. A UserError names a scale or a code that cannot be one.
  QuantizedWeight read(const std::string& path) const;
  /// The same without values, on meta.
  QuantizedWeight on_meta(const std::string& path) const;
  bool empty() const { return layers_.empty(); }
  std::size_t size() const { return layers_.size(); }
  /// The folder's tensors that belong to quantized layers.
  const std::set<std::string>& keys() const { return keys_; }
  /// Their bytes.
  std::int64_t bytes() const { return bytes_; }
  /// What a user should know.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  struct Layer {
    LinearShape shape;
    kernels::WeightFormat format;
    bool bitsandbytes;
  };
  const Layer& layer_of(const std::string& path) const;
  void add(const LinearShape& linear, const QuantizationConfig& config);

  SharedFolder folder_;
  std::map<std::string, Layer> layers_;
  std::set<std::string> keys_;
  std::int64_t bytes_ = 0;
  std::vector<std::string> notes_;
};

/// A weight of a layer as tensors of the format's convention.
std::vector<WrittenTensor> quantized_tensors(const QuantizedWeight& weight, const std::string& path,
                                             DType dtype);

}  // namespace ridge::models
