#include "core/models/stored_tensor.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ridge::models {

std::vector<std::int64_t> extents(const Shape& shape) { return {shape.begin(), shape.end()}; }

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

const char* torch_name(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    case DType::f64:
      return "float64";
    default:
      return "float32";
  }
}

std::int64_t element_count(const TensorEntry& entry) {
  std::int64_t n = 1;
  for (const std::int64_t extent : entry.shape) {
    if (__builtin_mul_overflow(n, extent, &n)) return -1;
  }
  return n;
}

const TensorEntry& stored(const WeightFolder& folder, const std::string& name,
                          const std::vector<std::string_view>& types, std::int64_t count,
                          std::string_view why) {
  const TensorEntry* entry = folder.find(name);
  require(entry != nullptr, "{}: tensor {} is missing: {}", folder.path(), name, why);
  require(std::find(types.begin(), types.end(), entry->dtype) != types.end(),
          "{}: tensor {} is stored as {}, not as {}: {}", folder.path(), name, entry->dtype,
          fmt::join(types, " or "), why);
  require(element_count(*entry) == count, "{}: tensor {} has shape {}, not {} elements: {}", folder.path(),
          name, shape_text(entry->shape), count, why);
  return *entry;
}

Tensor as_tensor(const TensorEntry& entry, const Shape& shape, DType dtype, const SharedFolder& owner) {
  const std::byte* data = entry.data.data();
  if (reinterpret_cast<std::uintptr_t>(data) % size_of(dtype) == 0)
    return Tensor::borrow(data, shape, dtype, owner);
  const Tensor copy = Tensor::empty(shape, dtype);
  check(static_cast<std::size_t>(copy.bytes()) == entry.data.size(), "as many bytes as the shape has");
  std::memcpy(copy.data(), data, entry.data.size());
  return copy;
}

Tensor as_scales(const TensorEntry& entry, const Shape& shape, DType dtype, bool zero_allowed,
                 const SharedFolder& owner) {
  const Tensor stored = as_tensor(entry, shape, entry.type().value(), owner);
  const Tensor wide = stored.to(DType::f32);
  std::int64_t at = 0;
  for (const float scale : wide.span<float>()) {
    require(std::isfinite(scale) && scale >= 0 && (scale > 0 || zero_allowed),
            "{}: {}[{}] is {}: a scale must be finite and {} 0", owner->path(), entry.name, at, scale,
            zero_allowed ? "at least" : "above");
    ++at;
  }
  return dtype == DType::f32 ? wide : stored.to(dtype);
}

WrittenTensor written(std::string name, std::string_view type, std::vector<std::int64_t> shape,
                      const Tensor& value) {
  WrittenTensor out{{std::move(name), std::string(type), std::move(shape), {}}, {}};
  if (value.device() == Device::meta) return out;
  out.bytes = value.on(Device::cpu).as_contiguous();
  out.entry.data = {static_cast<const std::byte*>(out.bytes.data()),
                    static_cast<std::size_t>(out.bytes.bytes())};
  return out;
}

}  // namespace ridge::models
