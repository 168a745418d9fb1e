// A matrix in a weight format, held by tensors.
#pragma once

#include <string>
#include <vector>

#include "core/tensor.h"
#include "kernels/formats/format.h"

namespace ridge {

/// [N, K]. Tensors that the format has no use for are undefined. Each is cut where the matrix is, but for the
/// second level of scales, which every piece holds whole.
struct QuantizedWeight {
  kernels::WeightFormat format = {};
  Shape shape = {};
  Tensor codes = {};          // u8 [N, K bits / 8], or flat where a row is no whole number of bytes
  Tensor scales = {};         // f32 (int4: or bf16) [N, 1], [N, K / G], or flat where blocks run across rows
  Tensor zeros = {};          // u8 [N, K / G]
  Tensor scale_codes = {};    // u8, as scales, in place of them
  Tensor nested_scales = {};  // f32, of the whole matrix
  Tensor nested_map = {};     // f32 [256]
  Tensor nested_offset = {};  // f32 [1]
  std::int64_t first_block = 0, row_blocks = 0;  // where a piece lies: see kernels::QuantView

  /// A part of it by the name under which a model's parameters have it.
  struct Part {
    std::string suffix;  // after the weight's name: "", ".absmax", ...
    Tensor* value;
    bool cut;  // with the matrix
  };

  /// Uninitialised. A UserError where the format does not divide the shape.
  static QuantizedWeight empty(const kernels::WeightFormat& format, std::int64_t rows, std::int64_t cols,
                               DType scale_dtype, Device device);
  std::vector<Part> parts();
  /// Whether a piece along `dim` has all of a part: scales of rows, and those of one tile, hold for any
  /// columns. Those of one group do not.
  bool shares(const Part& part, int dim) const;
  kernels::QuantView view() const;
  std::int64_t bytes() const;
  QuantizedWeight on(Device device) const;
  /// Rows (dim 0) or columns begin .. end - 1, in memory of their own; itself for all of them. A UserError
  /// where they are no whole groups.
  QuantizedWeight piece(int dim, std::int64_t begin, std::int64_t end) const;
};

/// w [N, K], f32, f64 or bf16, rounded to nearest on its device. int4's scales get w's dtype, others f32.
QuantizedWeight quantize(const Tensor& w_NK, const kernels::WeightFormat& format);
/// [N, K] in a compute type.
Tensor dequantize(const QuantizedWeight& w, DType dtype);

}  // namespace ridge
