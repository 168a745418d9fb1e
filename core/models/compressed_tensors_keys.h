// Weights as compressed-tensors keeps them, and fp8 as DeepSeek and vLLM do.
//   pack-quantized   X.weight_packed I32 [N, K b / 32], X.weight_scale [N, G], X.weight_shape I64 [2],
//                    with zero points X.weight_zero_point I32 [N b / 32, G], packed along N
//   int-quantized    X.weight I8 [N, K], X.weight_scale [N, 1] or [1]
//   float-quantized  X.weight F8_E4M3 [N, K], X.weight_scale [N, 1], [1] or [N / 128, K / 128]
//   fp8              the same, blocks under X.weight_scale_inv: it is a multiplier all the same
#pragma once

#include <optional>

#include "core/models/quantization_config.h"
#include "core/models/stored_tensor.h"
#include "core/quantized_weight.h"

namespace ridge::models {

/// The format of a layer whose keys are such; none where they are not. UserErrors: state that is missing, or
/// that contradicts the config, the tensors or the layer's shape. Groups of int4 that are multiples of ours,
/// or whole rows, and scales of a whole tensor, are read as several with the same scale.
std::optional<kernels::WeightFormat> compressed_format(const WeightFolder& folder, const LinearShape& linear,
                                                       const QuantizationConfig& config);
/// Of the scales as they are held.
DType compressed_scale_dtype(const WeightFolder& folder, const LinearShape& linear,
                             const kernels::WeightFormat& format);
/// On the CPU; codes may alias the mapped file. A UserError names an fp8 code that is NaN.
QuantizedWeight read_compressed(const SharedFolder& folder, const LinearShape& linear,
                                const kernels::WeightFormat& format);
/// The keys of such a layer.
std::vector<std::string> compressed_keys(const std::string& path);

/// int8, fp8 and int4 as tensors to write.
std::vector<WrittenTensor> compressed_tensors(const QuantizedWeight& weight, const std::string& path);

}  // namespace ridge::models
