// Weights as bitsandbytes keeps them: 4-bit (nf4, fp4) with or without double quantization, and LLM.int8().
//   X.weight                    U8 [ceil(n / 2), 1], or the same bytes under another type
//   X.weight.absmax             F32 [blocks], or U8 where it is quantized itself
//   X.weight.quant_map          F32 [16]
//   X.weight.nested_absmax, X.weight.nested_quant_map      F32 [blocks / 256], [256]
//   X.weight.quant_state.bitsandbytes__nf4 (or __fp4)      U8: JSON, see QuantState
//   int8: X.weight I8 [N, K], X.SCB F32 [N]: w = q SCB / 127
#pragma once

#include <optional>

#include "core/models/stored_tensor.h"
#include "core/quantized_weight.h"

namespace ridge::models {

/// The JSON beside a 4-bit weight.
struct QuantState {
  std::string type;  // nf4, fp4
  std::int64_t block = 0;
  std::vector<std::int64_t> shape;
  std::optional<std::int64_t> nested_block;
  double nested_offset = 0;

  /// Strict; a UserError names `source` and the field.
  static QuantState parse(std::string_view json, const std::string& source);
};

/// The format of a layer whose keys are bitsandbytes'; none where they are not. UserErrors: state that is
/// missing, or that contradicts the tensors or the layer's shape.
std::optional<kernels::WeightFormat> bitsandbytes_format(const WeightFolder& folder,
                                                         const LinearShape& linear);
/// On the CPU; codes may alias the mapped file.
QuantizedWeight read_bitsandbytes(const SharedFolder& folder, const LinearShape& linear,
                                  const kernels::WeightFormat& format);
/// The keys of such a layer beside X.weight.
std::vector<std::string> bitsandbytes_keys(const std::string& path);

/// nf4 or fp4 as tensors to write. `dtype`: of the model.
std::vector<WrittenTensor> bitsandbytes_tensors(const QuantizedWeight& weight, const std::string& path,
                                                DType dtype);

}  // namespace ridge::models
