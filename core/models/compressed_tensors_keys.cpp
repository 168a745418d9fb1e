#include "core/models/compressed_tensors_keys.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/base/threads.h"

namespace ridge::models {
namespace {

using kernels::Codes;
using kernels::WeightFormat;
using Weights = QuantizationConfig::Weights;

constexpr std::int64_t kPerWord = 8;        // int4 codes of an I32
constexpr std::uint8_t kInt8Offset = 0x80;  // of 8-bit codes that are packed
constexpr std::int64_t kCodesPerTask = 1 << 20;
constexpr std::int64_t kGroups[] = {128, 64, 32};

std::int64_t parts(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

std::string config_shape(const LinearShape& linear) {
  return fmt::format("config.json says [{}, {}]", linear.rows, linear.cols);
}

const TensorEntry* find(const WeightFolder& folder, const LinearShape& linear, const char* key) {
  return folder.find(linear.path + key);
}

const TensorEntry* find_scale(const WeightFolder& folder, const LinearShape& linear) {
  const TensorEntry* scale = find(folder, linear, ".weight_scale");
  const TensorEntry* inverse = find(folder, linear, ".weight_scale_inv");
  require(scale == nullptr || inverse == nullptr, "{}: {} has both weight_scale and weight_scale_inv",
          folder.path(), linear.path);
  return scale != nullptr ? scale : inverse;
}

// How many scales a row has, by their shape: 0 for one of the whole tensor, -1 for tiles.
std::int64_t scales_a_row(const WeightFolder& folder, const LinearShape& linear, bool tiles_allowed,
                          bool prefers_tiles) {
  const TensorEntry* entry = find_scale(folder, linear);
  require(entry != nullptr,
          "{}: tensor {}.weight_scale (or SCB of bitsandbytes) is missing, but the weight is stored in codes",
          folder.path(), linear.path);
  const bool floating = entry->dtype == "F32" || entry->dtype == "BF16" || entry->dtype == "F16";
  require(floating, "{}: tensor {} is stored as {}: F32, BF16 or F16 are read", folder.path(), entry->name,
          entry->dtype);
  const std::vector<std::int64_t>& shape = entry->shape;
  const std::vector<std::int64_t> tiles{parts(linear.rows, kernels::kTile),
                                        parts(linear.cols, kernels::kTile)};
  if (tiles_allowed && shape == tiles && (prefers_tiles || element_count(*entry) > 1)) return -1;
  if (element_count(*entry) == 1) return 0;
  if (shape == std::vector{linear.rows}) return 1;
  const bool rows = shape.size() == 2 && shape[0] == linear.rows && shape[1] > 0;
  require(rows, "{}: tensor {} has shape {}, which fits no groups of [{}, {}]", folder.path(), entry->name,
          shape_text(shape), linear.rows, linear.cols);
  return shape[1];
}

// What the tensors say, in the words of the config.
Weights weights_of(std::int64_t bits, bool floating, bool symmetric, std::int64_t scales,
                   const LinearShape& linear) {
  const char* strategy = scales < 0 ? "block" : scales == 0 ? "tensor" : scales == 1 ? "channel" : "group";
  return {bits, floating, symmetric, strategy, scales > 1 ? linear.cols / scales : 0};
}

bool same(const Weights& config, const Weights& tensors, std::int64_t cols) {
  const bool one_group = config.strategy == "group" && config.group == cols && tensors.strategy == "channel";
  const bool groups =
      config.strategy == tensors.strategy && (config.strategy != "group" || config.group == tensors.group);
  return config.bits == tensors.bits && config.floating == tensors.floating &&
         config.symmetric == tensors.symmetric && (groups || one_group);
}

void require_agreement(const QuantizationConfig& config, const Weights& tensors, const WeightFolder& folder,
                       const LinearShape& linear) {
  if (config.method == QuantizationConfig::Method::fp8 || config.groups.empty()) return;
  for (const Weights& group : config.groups) {
    if (same(group, tensors, linear.cols)) return;
  }
  fail_user("{}: the tensors of {} hold {}, but quantization_config says {}", folder.path(), linear.path,
            tensors.text(), config.groups.front().text());
}

// Bits of each code in X.weight_packed, by its width.
std::int64_t packed_bits(const WeightFolder& folder, const TensorEntry& packed, const LinearShape& linear) {
  require(packed.dtype == "I32", "{}: tensor {} is stored as {}: I32 is read", folder.path(), packed.name,
          packed.dtype);
  for (const std::int64_t bits : {4, 8}) {
    if (packed.shape == std::vector{linear.rows, parts(linear.cols * bits, 32)}) return bits;
  }
  fail_user(
      "{}: tensor {} has shape {}, but [{}, {}] needs [{}, {}] for 4 bits or [{}, {}] for 8: other "
      "widths are not read",
      folder.path(), packed.name, shape_text(packed.shape), linear.rows, linear.cols, linear.rows,
      parts(linear.cols * 4, 32), linear.rows, parts(linear.cols * 8, 32));
}

// X.weight_shape says what the config says.
void check_weight_shape(const WeightFolder& folder, const LinearShape& linear) {
  const TensorEntry& entry =
      stored(folder, linear.path + ".weight_shape", {"I64", "I32"}, 2, config_shape(linear));
  std::int64_t shape[2] = {};
  for (std::size_t i = 0; i < 2; ++i) {
    if (entry.dtype == "I64") {
      std::memcpy(&shape[i], entry.data.data() + 8 * i, 8);
    } else {
      std::int32_t narrow;
      std::memcpy(&narrow, entry.data.data() + 4 * i, 4);
      shape[i] = narrow;
    }
  }
  require(shape[0] == linear.rows && shape[1] == linear.cols,
          "{}: {} says [{}, {}], but config.json says [{}, {}]", folder.path(), entry.name, shape[0],
          shape[1], linear.rows, linear.cols);
}

// The group of our formats that cuts theirs.
std::int64_t our_group(const WeightFolder& folder, const LinearShape& linear, std::int64_t theirs) {
  for (const std::int64_t group : kGroups) {
    if (theirs % group == 0) return group;
  }
  fail_user("{}: {} [{}, {}] has groups of {} columns: multiples of 32 are read", folder.path(), linear.path,
            linear.rows, linear.cols, theirs);
}

WeightFormat packed_format(const WeightFolder& folder, const LinearShape& linear, const TensorEntry& packed,
                           const QuantizationConfig& config) {
  const std::int64_t bits = packed_bits(folder, packed, linear);
  check_weight_shape(folder, linear);
  require(find(folder, linear, ".weight_g_idx") == nullptr,
          "{}: {}.weight_g_idx: columns in another order are not read", folder.path(), linear.path);
  const TensorEntry* zeros = find(folder, linear, ".weight_zero_point");
  const std::int64_t scales = scales_a_row(folder, linear, false, false);
  require(scales == 0 || linear.cols % scales == 0,
          "{}: {} has {} scales a row, which do not divide {} columns", folder.path(), linear.path, scales,
          linear.cols);
  require_agreement(config, weights_of(bits, false, zeros == nullptr, scales, linear), folder, linear);
  if (bits == 8) {
    require(scales <= 1 && zeros == nullptr && linear.cols % 4 == 0,
            "{}: {} has packed codes of 8 bits with {} scales a row{}: one a row without zero points, of "
            "multiples of 4 columns, is read",
            folder.path(), linear.path, scales, zeros != nullptr ? " and zero points" : "");
    return {Codes::int8};
  }
  const std::int64_t theirs = linear.cols / std::max<std::int64_t>(1, scales);
  const WeightFormat format{Codes::int4, our_group(folder, linear, theirs), false, false, zeros != nullptr};
  if (zeros != nullptr) {
    require(scales > 0, "{}: {} has zero points but one scale: not read", folder.path(), linear.path);
    const std::vector<std::int64_t> want{parts(linear.rows, kPerWord), scales};
    stored(folder, zeros->name, {"I32"}, want[0] * want[1], config_shape(linear));
    require(zeros->shape == want || (scales == 1 && zeros->shape.size() == 1),
            "{}: tensor {} has shape {}, not {}: {} in {} groups a row", folder.path(), zeros->name,
            shape_text(zeros->shape), shape_text(want), config_shape(linear), scales);
  }
  return format;
}

void require_no_zeros(const WeightFolder& folder, const LinearShape& linear) {
  const TensorEntry* zeros = find(folder, linear, ".weight_zero_point");
  if (zeros == nullptr) return;
  const bool none =
      std::all_of(zeros->data.begin(), zeros->data.end(), [](std::byte b) { return b == std::byte{}; });
  require(none, "{}: {} is not zero: 8-bit codes with zero points are not read", folder.path(), zeros->name);
}

std::optional<WeightFormat> byte_format(const WeightFolder& folder, const LinearShape& linear,
                                        const QuantizationConfig& config) {
  const TensorEntry* weight = find(folder, linear, ".weight");
  if (weight == nullptr || (weight->dtype != "I8" && weight->dtype != "F8_E4M3")) return std::nullopt;
  require(weight->shape == std::vector{linear.rows, linear.cols}, "{}: tensor {} has shape {}, but {}",
          folder.path(), weight->name, shape_text(weight->shape), config_shape(linear));
  const bool floating = weight->dtype == "F8_E4M3";
  const bool by_blocks = std::any_of(config.groups.begin(), config.groups.end(),
                                     [](const Weights& w) { return w.strategy == "block"; });
  const bool inverse = find(folder, linear, ".weight_scale_inv") != nullptr;
  const std::int64_t scales = scales_a_row(folder, linear, floating, by_blocks || inverse);
  require(scales <= 1, "{}: {} has {} scales a row of 8-bit codes: one a row, one in all, or blocks are read",
          folder.path(), linear.path, scales);
  require_no_zeros(folder, linear);
  require_agreement(config, weights_of(8, floating, true, scales, linear), folder, linear);
  if (!floating) return WeightFormat{Codes::int8};
  return scales < 0 ? WeightFormat{Codes::fp8, kernels::kTile, true} : WeightFormat{Codes::fp8};
}

// [N, G] of ours from fewer of theirs a row, or one of all.
template <class T>
Tensor spread(const Tensor& theirs, const Shape& shape) {
  if (theirs.numel() == numel(shape)) return theirs.reshaped(shape);
  const Tensor ours = Tensor::empty(shape, theirs.dtype());
  const std::span<const T> from = theirs.span<T>();
  const std::span<T> to = ours.span<T>();
  const std::size_t copies =
      to.size() / from.size();  // of each, in order: groups of a row follow one another
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = from[i / copies];
  return ours;
}

Tensor read_scales(const SharedFolder& folder, const LinearShape& linear, const WeightFormat& format,
                   const Shape& shape) {
  const TensorEntry& entry = *find_scale(*folder, linear);
  const DType dtype = compressed_scale_dtype(*folder, linear, format);
  const Tensor theirs = as_scales(entry, {element_count(entry)}, dtype, false, folder);
  return dtype == DType::bf16 ? spread<bf16>(theirs, shape) : spread<float>(theirs, shape);
}

// e4m3fn has no infinities, and NaN twice.
bool is_nan_code(std::uint8_t code) { return (code & 0x7f) == 0x7f; }

void require_numbers(const Tensor& codes_NK, const TensorEntry& entry, const WeightFolder& folder) {
  const std::span<const std::uint8_t> codes = codes_NK.span<std::uint8_t>();
  std::atomic<bool> any = false;
  parallel_for(codes_NK.numel(), kCodesPerTask, [&](std::int64_t begin, std::int64_t end) {
    int bad = 0;  // without a branch, so that the loop takes a vector at a time
    for (std::int64_t i = begin; i < end; ++i) bad |= is_nan_code(codes[static_cast<std::size_t>(i)]);
    if (bad != 0) any = true;
  });
  if (!any) return;
  const std::int64_t at = std::find_if(codes.begin(), codes.end(), is_nan_code) - codes.begin();
  fail_user("{}: {}[{}, {}] is the code {:#x}, which is NaN: quantize the model again", folder.path(),
            entry.name, at / codes_NK.dim(1), at % codes_NK.dim(1), codes[static_cast<std::size_t>(at)]);
}

// Nibbles of words that are packed along the rows: [N, G].
Tensor read_zeros(const SharedFolder& folder, const LinearShape& linear, const Shape& shape) {
  const TensorEntry& entry = *find(*folder, linear, ".weight_zero_point");
  const std::int64_t groups = element_count(entry) / parts(linear.rows, kPerWord);
  const Tensor zeros = Tensor::empty({linear.rows, groups}, DType::u8);
  for (std::int64_t row = 0; row < linear.rows; ++row) {
    for (std::int64_t g = 0; g < groups; ++g) {
      std::uint32_t word;
      std::memcpy(&word, entry.data.data() + 4 * (row / kPerWord * groups + g), 4);
      zeros.span<std::uint8_t>()[static_cast<std::size_t>(row * groups + g)] =
          static_cast<std::uint8_t>(word >> (4 * (row % kPerWord)) & 15);
    }
  }
  return spread<std::uint8_t>(zeros.reshaped({-1}), shape);
}

Tensor packed_zeros(const Tensor& zeros) {
  const std::int64_t rows = zeros.dim(0), groups = zeros.dim(1);
  const Tensor words = Tensor::zeros({parts(rows, kPerWord), groups}, DType::i32);
  const std::span<const std::uint8_t> from = zeros.span<std::uint8_t>();
  for (std::int64_t i = 0; i < zeros.numel(); ++i) {
    const std::int64_t row = i / groups, word = row / kPerWord * groups + i % groups;
    std::int32_t& at = words.span<std::int32_t>()[static_cast<std::size_t>(word)];
    at =
        static_cast<std::int32_t>(static_cast<std::uint32_t>(at) |
                                  std::uint32_t{from[static_cast<std::size_t>(i)]} << (4 * (row % kPerWord)));
  }
  return words;
}

}  // namespace

std::optional<WeightFormat> compressed_format(const WeightFolder& folder, const LinearShape& linear,
                                              const QuantizationConfig& config) {
  if (const TensorEntry* packed = find(folder, linear, ".weight_packed")) {
    require(find(folder, linear, ".weight") == nullptr, "{}: {} has both weight and weight_packed",
            folder.path(), linear.path);
    return packed_format(folder, linear, *packed, config);
  }
  return byte_format(folder, linear, config);
}

DType compressed_scale_dtype(const WeightFolder& folder, const LinearShape& linear,
                             const WeightFormat& format) {
  const bool narrow = format.codes == Codes::int4 && find_scale(folder, linear)->dtype == "BF16";
  return narrow ? DType::bf16 : DType::f32;
}

QuantizedWeight read_compressed(const SharedFolder& folder, const LinearShape& linear,
                                const WeightFormat& format) {
  QuantizedWeight w = QuantizedWeight::empty(format, linear.rows, linear.cols, DType::f32, Device::meta);
  const TensorEntry* packed = find(*folder, linear, ".weight_packed");
  const TensorEntry& codes = packed != nullptr ? *packed : *find(*folder, linear, ".weight");
  w.codes = as_tensor(codes, w.codes.shape(), DType::u8, folder);
  if (packed != nullptr && format.codes == Codes::int8) {
    w.codes = w.codes.contiguous_copy();
    for (std::uint8_t& code : w.codes.span<std::uint8_t>()) code ^= kInt8Offset;
  }
  if (format.codes == Codes::fp8) require_numbers(w.codes, codes, *folder);
  w.scales = read_scales(folder, linear, format, w.scales.shape());
  if (format.zero_points) w.zeros = read_zeros(folder, linear, w.zeros.shape());
  return w;
}

std::vector<std::string> compressed_keys(const std::string& path) {
  std::vector<std::string> keys;
  for (const char* key : {".weight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight_shape",
                          ".weight_zero_point", ".input_scale", ".input_zero_point", ".output_scale"})
    keys.push_back(path + key);
  return keys;
}

std::vector<WrittenTensor> compressed_tensors(const QuantizedWeight& w, const std::string& path) {
  const WeightFormat& f = w.format;
  const bool meta = w.codes.device() == Device::meta;
  const std::string_view scale_type = safetensors_name(w.scales.dtype());
  std::vector<WrittenTensor> all;
  if (f.codes != Codes::int4) {
    all.push_back(
        written(path + ".weight", f.codes == Codes::fp8 ? "F8_E4M3" : "I8", extents(w.shape), w.codes));
    all.push_back(written(path + ".weight_scale", scale_type, extents(w.scales.shape()), w.scales));
    return all;
  }
  const std::int64_t rows = w.shape[0];
  all.push_back(written(path + ".weight_packed", "I32", {rows, w.shape[1] / kPerWord}, w.codes));
  all.push_back(written(path + ".weight_scale", scale_type, extents(w.scales.shape()), w.scales));
  const Tensor shape = meta ? Tensor::empty({2}, DType::i64, Device::meta)
                            : Tensor::from(std::vector<std::int64_t>{rows, w.shape[1]}, {2});
  all.push_back(written(path + ".weight_shape", "I64", {2}, shape));
  if (f.zero_points) {
    const Shape words{parts(rows, kPerWord), w.zeros.dim(1)};
    const Tensor zeros = meta ? Tensor::empty(words, DType::i32, Device::meta)
                              : packed_zeros(w.zeros.on(Device::cpu).as_contiguous());
    all.push_back(written(path + ".weight_zero_point", "I32", extents(words), zeros));
  }
  return all;
}

}  // namespace ridge::models
