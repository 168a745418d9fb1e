// Rounding to nearest: codes of each weight by itself, without data.
#pragma once

#include <string>

#include "core/base/device.h"
#include "core/tensor.h"
#include "kernels/formats/format.h"

namespace ridge::quant {

struct RoundToNearestReport {
  std::int64_t layers = 0;                         // that were quantized
  std::int64_t bytes_before = 0, bytes_after = 0;  // of all weights, as stored
  std::string worst_layer;
  double worst_error = 0;  // |W - dequantized| / |W| of that layer, Frobenius norms
};

/// |want - got| / |want|, Frobenius norms, of tensors of one shape; 0 where `want` is zero.
double relative_error(const Tensor& want, const Tensor& got);

/// Writes the model of `source` with the linear layers of its blocks in `format`, and its output layer too
/// where `head` says so and it is not the embedding; the rest stays as it is stored. The folder `out` appears
/// whole or not at all, in the convention of bitsandbytes (nf4, fp4) or compressed-tensors (the others). One
/// tensor is in memory at a time. UserErrors: a model that is quantized already, a layer that the format does
/// not divide, weights that are not finite.
RoundToNearestReport quantize_folder(const std::string& source, const kernels::WeightFormat& format,
                                     bool head, const std::string& out, Device device);

}  // namespace ridge::quant
