// Models and expected tensors that PyTorch, transformers and peft made: see tests/reference/README.md.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "core/io/safetensors.h"
#include "core/models/weights.h"
#include "tests/test_device.h"

namespace ridge::test {

/// A path under tests/data.
inline std::string data_path(const std::string& name) {
  return std::string(RIDGE_SOURCE_DIR "/tests/data/") + name;
}

/// The trained model and the text beside the project; absent on other machines.
inline std::string stories_folder() { return RIDGE_SOURCE_DIR "/../shared/models/stories260k"; }
inline std::string wikitext_folder() { return RIDGE_SOURCE_DIR "/../shared/data/wikitext-2"; }
inline bool have(const std::string& path) { return std::filesystem::exists(path); }

/// A copy of one tensor of a file.
inline Tensor read_tensor(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry& entry = file.at(name);
  const Tensor t = Tensor::empty(Shape{std::span<const std::int64_t>(entry.shape)}, entry.type().value());
  std::memcpy(t.data(), entry.data.data(), entry.data.size());
  return t;
}

inline std::vector<double> values_of(const Tensor& t) {
  const Tensor wide = t.detached().as_contiguous().to(DType::f64).on(Device::cpu);
  const auto span = wide.span<double>();
  return {span.begin(), span.end()};
}

inline double range_of(const Tensor& t) {
  const auto values = values_of(t);
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return *high - *low;
}

/// max|got - want|; infinite for another shape or a NaN.
inline double max_difference(const Tensor& got, const Tensor& want) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (!got.defined() || !(got.shape() == want.shape())) return kInfinity;
  const auto a = values_of(got), b = values_of(want);
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(a[i] - b[i]);
    if (!(difference < kInfinity)) return kInfinity;
    worst = std::max(worst, difference);
  }
  return worst;
}

/// The difference as a part of the range of `want`.
inline double range_error(const Tensor& got, const Tensor& want) {
  return max_difference(got, want) / range_of(want);
}

/// The difference as a part of the greatest magnitude in `want`.
inline double normalized_error(const Tensor& got, const Tensor& want) {
  double scale = 0;
  for (const double value : values_of(want)) scale = std::max(scale, std::fabs(value));
  return max_difference(got, want) / std::max(scale, 1e-300);
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  if (!a.defined() || !b.defined() || !(a.shape() == b.shape()) || a.dtype() != b.dtype()) return false;
  const Tensor x = a.detached().as_contiguous().on(Device::cpu);
  const Tensor y = b.detached().as_contiguous().on(Device::cpu);
  return std::memcmp(x.data(), y.data(), static_cast<std::size_t>(x.bytes())) == 0;
}

/// A model's parameter by name.
inline Tensor& parameter(models::Llama& model, const std::string& name) {
  for (const nn::Parameter& p : model.parameters()) {
    if (p.name == name) return *p.value;
  }
  throw std::out_of_range(name);
}

/// On the device under test.
inline std::unique_ptr<models::Llama> load(const std::string& folder, DType dtype = DType::f32,
                                           models::LoadMode mode = models::LoadMode::read,
                                           Device device = test_device()) {
  return std::move(models::load_model(folder, dtype, mode, device).model);
}

}  // namespace ridge::test
