// What the quantization_config of a config.json says: bitsandbytes, compressed-tensors and fp8.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"
#include "kernels/formats/format.h"

namespace ridge::models {

/// It only has to agree with the tensors, which decide: a folder of plain weights may have one too.
struct QuantizationConfig {
  enum class Method { none, bitsandbytes, compressed_tensors, fp8 };
  /// compressed-tensors' `weights` of a group of layers.
  struct Weights {
    std::int64_t bits = 8;
    bool floating = false;
    bool symmetric = true;
    std::string strategy;    // tensor, channel, group, block
    std::int64_t group = 0;  // of the group strategy
    std::string text() const;
  };

  Method method = Method::none;
  bool four_bit = false, eight_bit = false;  // bitsandbytes' load_in_4bit, load_in_8bit
  std::string four_bit_type;                 // nf4, fp4
  std::optional<bool> double_quant;          // bitsandbytes' bnb_4bit_use_double_quant, where it says
  std::vector<Weights> groups;               // of compressed-tensors
  bool quantizes_activations = false;

  /// "bitsandbytes, nf4-dq"; "none"
  std::string summary() const;

  /// From the text of a config.json; `source` stands in messages. UserErrors: methods, storage formats and
  /// block sizes that are not read.
  static QuantizationConfig parse(std::string_view config_json, const std::string& source);
};

std::string name_of(QuantizationConfig::Method method);

/// Which of the two conventions a format is written in.
bool written_by_bitsandbytes(const kernels::WeightFormat& format);
/// The JSON object for a folder in which all linear layers of the blocks, and lm_head where `head`, are in
/// `format`. `dtype`: of the model.
std::string quantization_config_json(const kernels::WeightFormat& format, DType dtype, bool head);

}  // namespace ridge::models
