// Tensors of a weight folder, as the readers and writers of its formats see them.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/weight_folder.h"
#include "core/tensor.h"

namespace ridge::models {

using SharedFolder = std::shared_ptr<const WeightFolder>;

/// A linear layer that a model has: `path` is Hugging Face's, without ".weight".
struct LinearShape {
  std::string path;
  std::int64_t rows = 0, cols = 0;
};

std::vector<std::int64_t> extents(const Shape& shape);
/// "[2, 3]"
std::string shape_text(const std::vector<std::int64_t>& shape);
/// "float32", "bfloat16", ...
const char* torch_name(DType dtype);
/// Elements; -1 where they overflow.
std::int64_t element_count(const TensorEntry& entry);

/// The tensor `name`, which must be there, be of that safetensors type and have `count` elements. UserErrors
/// name folder and tensor and say `why` it must be so.
const TensorEntry& stored(const WeightFolder& folder, const std::string& name,
                          const std::vector<std::string_view>& types, std::int64_t count,
                          std::string_view why);

/// The entry as a tensor of `dtype`, its own: an alias of the mapping, or a copy where bytes are not aligned.
Tensor as_tensor(const TensorEntry& entry, const Shape& shape, DType dtype, const SharedFolder& owner);

/// Scales as a tensor of `dtype` (f32 or bf16). A UserError names the first one that is not finite, is
/// negative, or is zero where that is not allowed.
Tensor as_scales(const TensorEntry& entry, const Shape& shape, DType dtype, bool zero_allowed,
                 const SharedFolder& owner);

/// A tensor to write: what to declare, and the tensor that holds its bytes. On meta there are none.
struct WrittenTensor {
  TensorEntry entry;
  Tensor bytes;
};
/// `type` as safetensors spells it; `value` is dense, with as many bytes.
WrittenTensor written(std::string name, std::string_view type, std::vector<std::int64_t> shape,
                      const Tensor& value);

}  // namespace ridge::models
