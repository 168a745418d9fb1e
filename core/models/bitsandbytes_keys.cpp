#include "core/models/bitsandbytes_keys.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/base/stream.h"
#include "core/io/json_depth.h"
#include "kernels/quantize.h"

namespace ridge::models {
namespace {

using kernels::Codes;
using kernels::WeightFormat;
using Json = nlohmann::json;

constexpr const char* kStatePrefix = ".weight.quant_state.bitsandbytes__";
constexpr std::size_t kMaxStateBytes = 1 << 16;
constexpr int kMapSize = 16;
constexpr float kInt8Range = 127;
// Half a step of the signed dynamic map is 0.9 / 128 of a block's scale at most.
constexpr float kNestedRounding = 1.0f / 64;

std::int64_t integer_of(const Json& value, std::string_view what, const std::string& source) {
  const bool whole = value.is_number_integer() &&
                     (!value.is_number_unsigned() || value.get<std::uint64_t>() <= std::uint64_t{1} << 62);
  require(whole && value.get<std::int64_t>() > 0, "{}: {} is {}, not a positive integer", source, what,
          value.dump());
  return value.get<std::int64_t>();
}

const Json& field_of(const Json& json, const char* key, const std::string& source) {
  const auto field = json.find(key);
  require(field != json.end(), "{}: {} is missing", source, key);
  return *field;
}

// The only key of the state; the type is a part of its name.
const TensorEntry* find_state(const WeightFolder& folder, const std::string& path) {
  const TensorEntry* nf4 = folder.find(path + kStatePrefix + "nf4");
  const TensorEntry* fp4 = folder.find(path + kStatePrefix + "fp4");
  require(nf4 == nullptr || fp4 == nullptr, "{}: {} has both a quant_state of nf4 and one of fp4",
          folder.path(), path);
  return nf4 != nullptr ? nf4 : fp4;
}

QuantState state_of(const WeightFolder& folder, const TensorEntry& entry) {
  const std::string source = fmt::format("{}: {}", folder.path(), entry.name);
  require(entry.dtype == "U8" && entry.data.size() <= kMaxStateBytes,
          "{}: {} bytes of {}: at most {} of U8 are read", source, entry.data.size(), entry.dtype,
          kMaxStateBytes);
  QuantState state =
      QuantState::parse({reinterpret_cast<const char*>(entry.data.data()), entry.data.size()}, source);
  require(entry.name.ends_with("__" + state.type), "{}: quant_type is {}, but the key's name says otherwise",
          source, state.type);
  return state;
}

// What the codes stand for, as our kernels have it.
std::vector<float> standard_map(Codes codes) {
  QuantizedWeight w =
      QuantizedWeight::empty({codes, kernels::kFlatBlock}, 1, kernels::kFlatBlock, DType::f32, Device::cpu);
  for (std::size_t i = 0; i < w.codes.span<std::uint8_t>().size(); ++i)
    w.codes.span<std::uint8_t>()[i] = static_cast<std::uint8_t>(0x22 * (i % 8) + 1);  // 01 23 45 ...
  w.scales.span<float>()[0] = 1;
  const Tensor values = dequantize(w, DType::f32);
  return {values.span<float>().begin(), values.span<float>().begin() + kMapSize};
}

void check_map(const TensorEntry& entry, Codes codes, const std::string& folder) {
  const std::vector<float> want = standard_map(codes);
  for (std::size_t i = 0; i < want.size(); ++i) {
    float got;
    std::memcpy(&got, entry.data.data() + 4 * i, 4);
    require(std::fabs(got - want[i]) <= 1e-6f,
            "{}: {}[{}] is {}, but the standard map has {}: others are not read", folder, entry.name, i, got,
            want[i]);
  }
}

// Bytes of the codes, whatever type they are stored as.
const TensorEntry& codes_of(const WeightFolder& folder, const LinearShape& linear,
                            const WeightFormat& format) {
  const std::string name = linear.path + ".weight";
  const TensorEntry* entry = folder.find(name);
  require(entry != nullptr, "{}: tensor {} is missing, but its quant_state is there", folder.path(), name);
  const auto bytes = static_cast<std::size_t>(kernels::code_bytes(format, linear.rows, linear.cols));
  require(entry->data.size() == bytes, "{}: tensor {} has {} bytes, but {} of [{}, {}] needs {}",
          folder.path(), name, entry->data.size(), name_of(format), linear.rows, linear.cols, bytes);
  return *entry;
}

std::int64_t nested_count(std::int64_t scales) {
  return (scales + kernels::kNestedBlock - 1) / kernels::kNestedBlock;
}

std::optional<WeightFormat> four_bit_format(const WeightFolder& folder, const LinearShape& linear,
                                            const TensorEntry& entry) {
  const QuantState state = state_of(folder, entry);
  require(state.block == kernels::kFlatBlock, "{}: {}: blocksize is {}: {} is read", folder.path(),
          entry.name, state.block, kernels::kFlatBlock);
  require(state.shape == std::vector<std::int64_t>{linear.rows, linear.cols},
          "{}: {}: shape is {}, but config.json says [{}, {}]", folder.path(), entry.name,
          shape_text(state.shape), linear.rows, linear.cols);
  require(!state.nested_block || *state.nested_block == kernels::kNestedBlock,
          "{}: {}: nested_blocksize is {}: {} is read", folder.path(), entry.name,
          state.nested_block.value_or(0), kernels::kNestedBlock);
  const WeightFormat format{state.type == "nf4" ? Codes::nf4 : Codes::fp4, kernels::kFlatBlock, false,
                            state.nested_block.has_value()};
  codes_of(folder, linear, format);
  const std::string weight = linear.path + ".weight";
  const std::int64_t scales = kernels::scale_count(format, linear.rows, linear.cols);
  const std::string why = fmt::format("{} says {} blocks of {}", entry.name, scales, state.block);
  stored(folder, weight + ".absmax", {format.double_quant ? "U8" : "F32"}, scales, why);
  stored(folder, weight + ".quant_map", {"F32"}, kMapSize, why);
  if (format.double_quant) {
    stored(folder, weight + ".nested_absmax", {"F32"}, nested_count(scales), why);
    stored(folder, weight + ".nested_quant_map", {"F32"}, 256, why);
  }
  return format;
}

// Every block's absmax as the second level gives it: finite, and below zero by no more than a block of zeros
// is rounded.
void check_sums(const QuantizedWeight& w, const std::string& folder, const std::string& weight,
                double offset) {
  const Tensor absmax = Tensor::empty({w.scale_codes.numel()}, DType::f32);
  kernels::dequantize_scales(current_stream(Device::cpu), w.view(), absmax.view<float>());
  const std::span<const float> sums = absmax.span<float>(), nested = w.nested_scales.span<float>();
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const float room = nested[i / kernels::kNestedBlock] * kNestedRounding;
    require(std::isfinite(sums[i]) && sums[i] >= -room,
            "{}: {}.absmax[{}] is {} with nested_offset {}: an absmax must be finite and at least 0", folder,
            weight, i, sums[i], offset);
  }
}

void read_nested(QuantizedWeight& w, const SharedFolder& folder, const std::string& weight, double offset) {
  w.scale_codes = as_tensor(folder->at(weight + ".absmax"), w.scale_codes.shape(), DType::u8, folder);
  w.nested_scales =
      as_scales(folder->at(weight + ".nested_absmax"), w.nested_scales.shape(), DType::f32, true, folder);
  w.nested_map = as_tensor(folder->at(weight + ".nested_quant_map"), {256}, DType::f32, folder);
  for (const float value : w.nested_map.span<float>())
    require(std::isfinite(value), "{}: {}.nested_quant_map holds {}", folder->path(), weight, value);
  w.nested_offset = Tensor::full({1}, offset, DType::f32);
  check_sums(w, folder->path(), weight, offset);
}

QuantizedWeight read_int8(const SharedFolder& folder, const LinearShape& linear, QuantizedWeight w) {
  w.codes = as_tensor(folder->at(linear.path + ".weight"), w.codes.shape(), DType::u8, folder);
  w.scales = as_scales(folder->at(linear.path + ".SCB"), w.scales.shape(), DType::f32, true, folder)
                 .contiguous_copy();
  for (float& scale : w.scales.span<float>()) scale /= kInt8Range;
  return w;
}

}  // namespace

QuantState QuantState::parse(std::string_view text, const std::string& source) {
  check_json_depth(text, source);
  const Json json = Json::parse(text.begin(), text.end(), nullptr, false);
  require(json.is_object(), "{}: not a JSON object", source);
  QuantState state;
  const Json& type = field_of(json, "quant_type", source);
  require(type == "nf4" || type == "fp4", "{}: quant_type is {}: nf4 and fp4 are read", source, type.dump());
  state.type = type.get<std::string>();
  state.block = integer_of(field_of(json, "blocksize", source), "blocksize", source);
  const Json& shape = field_of(json, "shape", source);
  require(shape.is_array() && shape.size() == 2, "{}: shape is {}, not two extents", source, shape.dump());
  for (const Json& extent : shape) state.shape.push_back(integer_of(extent, "an extent of shape", source));
  if (!json.contains("nested_blocksize")) return state;
  state.nested_block = integer_of(json.at("nested_blocksize"), "nested_blocksize", source);
  const Json& nested_type = field_of(json, "nested_dtype", source);
  require(nested_type == "float32", "{}: nested_dtype is {}: float32 is read", source, nested_type.dump());
  const Json& offset = field_of(json, "nested_offset", source);
  require(offset.is_number() && std::fabs(offset.get<double>()) <= 3e38,
          "{}: nested_offset is {}, not a finite number", source, offset.dump());
  state.nested_offset = offset.get<double>();
  return state;
}

std::optional<WeightFormat> bitsandbytes_format(const WeightFolder& folder, const LinearShape& linear) {
  const std::string weight = linear.path + ".weight", scb = linear.path + ".SCB";
  if (const TensorEntry* state = find_state(folder, linear.path)) {
    require(folder.find(scb) == nullptr, "{}: {} has both {} and {}", folder.path(), linear.path, state->name,
            scb);
    return four_bit_format(folder, linear, *state);
  }
  require(folder.find(weight + ".absmax") == nullptr && folder.find(weight + ".quant_map") == nullptr,
          "{}: tensor {}{}nf4 (or fp4) is missing, but {}.absmax is there", folder.path(), linear.path,
          kStatePrefix, weight);
  if (folder.find(scb) == nullptr) return std::nullopt;
  const std::string why = fmt::format("config.json says [{}, {}] in int8", linear.rows, linear.cols);
  const TensorEntry& codes = stored(folder, weight, {"I8"}, linear.rows * linear.cols, why);
  require(codes.shape == std::vector<std::int64_t>{linear.rows, linear.cols},
          "{}: tensor {} has shape {}, but config.json says [{}, {}]", folder.path(), weight,
          shape_text(codes.shape), linear.rows, linear.cols);
  stored(folder, scb, {"F32"}, linear.rows, why);
  if (const TensorEntry* layout = folder.find(linear.path + ".weight_format")) {
    const bool rows = layout->data.size() == 1 && layout->data[0] == std::byte{0};
    require(rows, "{}: {} does not say 0 (rows): other layouts are not read", folder.path(), layout->name);
  }
  return WeightFormat{Codes::int8};
}

QuantizedWeight read_bitsandbytes(const SharedFolder& folder, const LinearShape& linear,
                                  const WeightFormat& format) {
  QuantizedWeight w = QuantizedWeight::empty(format, linear.rows, linear.cols, DType::f32, Device::meta);
  if (format.codes == Codes::int8) return read_int8(folder, linear, std::move(w));
  const std::string weight = linear.path + ".weight";
  w.codes = as_tensor(codes_of(*folder, linear, format), w.codes.shape(), DType::u8, folder);
  check_map(folder->at(weight + ".quant_map"), format.codes, folder->path());
  if (format.double_quant) {
    read_nested(w, folder, weight, state_of(*folder, *find_state(*folder, linear.path)).nested_offset);
  } else {
    w.scales = as_scales(folder->at(weight + ".absmax"), w.scales.shape(), DType::f32, true, folder);
  }
  return w;
}

std::vector<std::string> bitsandbytes_keys(const std::string& path) {
  return {path + ".weight",
          path + ".weight.absmax",
          path + ".weight.quant_map",
          path + ".weight.nested_absmax",
          path + ".weight.nested_quant_map",
          path + kStatePrefix + "nf4",
          path + kStatePrefix + "fp4",
          path + ".SCB",
          path + ".weight_format"};
}

std::vector<WrittenTensor> bitsandbytes_tensors(const QuantizedWeight& w, const std::string& path,
                                                DType dtype) {
  const bool meta = w.codes.device() == Device::meta;
  const std::string weight = path + ".weight", type = w.format.codes == Codes::nf4 ? "nf4" : "fp4";
  const bool nested = w.format.double_quant;
  const std::int64_t bytes = w.codes.numel(), scales = (nested ? w.scale_codes : w.scales).numel();
  std::vector<WrittenTensor> all;
  all.push_back(written(weight, "U8", {bytes, 1}, w.codes));
  all.push_back(
      written(weight + ".absmax", nested ? "U8" : "F32", {scales}, nested ? w.scale_codes : w.scales));
  const Tensor map = meta ? Tensor::empty({kMapSize}, DType::f32, Device::meta)
                          : Tensor::from(standard_map(w.format.codes), {kMapSize});
  all.push_back(written(weight + ".quant_map", "F32", {kMapSize}, map));
  std::string state =
      fmt::format(R"({{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{}, {}])", type,
                  w.format.group, torch_name(dtype), w.shape[0], w.shape[1]);
  if (nested) {
    all.push_back(written(weight + ".nested_absmax", "F32", {w.nested_scales.numel()}, w.nested_scales));
    all.push_back(written(weight + ".nested_quant_map", "F32", {256}, w.nested_map));
    // Of one width whatever the value, since lengths are declared before it is known.
    state +=
        fmt::format(R"(, "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {:<24.17g})",
                    kernels::kNestedBlock, meta ? 0.0 : w.nested_offset.item());
  }
  state += "}";
  const auto length = static_cast<std::int64_t>(state.size());
  const Tensor text = meta ? Tensor::empty({length}, DType::u8, Device::meta)
                           : Tensor::from(std::vector<std::uint8_t>(state.begin(), state.end()), {length});
  all.push_back(written(path + kStatePrefix + type, "U8", {length}, text));
  return all;
}

}  // namespace ridge::models
