#include "quant/round_to_nearest.h"

#include <cmath>
#include <filesystem>

#include "core/io/file.h"
#include "core/models/saved_folder.h"
#include "core/models/weights.h"

namespace ridge::quant {
namespace {

using models::LinearShape;
using models::WrittenTensor;

// A parameter to write, and the layer whose weight it is where that is to be quantized.
struct Item {
  std::string name;
  Shape shape;
  std::optional<LinearShape> linear;
};

std::vector<Item> items_of(const models::ModelConfig& config, const kernels::WeightFormat& format,
                           bool head) {
  models::Llama model(config, DType::f32, Device::meta);
  std::map<std::string, LinearShape> linears;
  for (const nn::LinearSlot& slot : model.linears()) {
    if (slot.path == "lm_head" && !head) continue;
    const LinearShape linear{slot.path, (*slot.slot)->out_features(), (*slot.slot)->in_features()};
    kernels::check_divides(format, linear.rows, linear.cols, linear.path);
    linears[slot.path + ".weight"] = linear;
  }
  std::vector<Item> items;
  for (const nn::Parameter& p : model.parameters()) {
    const auto linear = linears.find(p.name);
    items.push_back(
        {p.name, p.value->shape(), linear == linears.end() ? std::nullopt : std::optional(linear->second)});
  }
  return items;
}

WrittenTensor as_stored(const std::string& name, const Tensor& value) {
  return models::written(name, safetensors_name(value.dtype()), models::extents(value.shape()), value);
}

// What will be written, from shapes alone.
std::vector<TensorEntry> declarations(const std::vector<Item>& items, const models::ModelWeights& weights,
                                      const kernels::WeightFormat& format) {
  std::vector<TensorEntry> declared;
  for (const Item& item : items) {
    const DType dtype = weights.read(item.name, item.shape).dtype();
    std::vector<WrittenTensor> tensors;
    if (item.linear) {
      const Tensor value = Tensor::empty(item.shape, dtype, Device::meta);
      const DType scale = dtype == DType::bf16 ? dtype : DType::f32;  // as quantize() gives them
      tensors = models::quantized_tensors(
          QuantizedWeight::empty(format, item.shape[0], item.shape[1], scale, Device::meta),
          item.linear->path, weights.config().dtype);
    } else {
      tensors = {as_stored(item.name, Tensor::empty(item.shape, dtype, Device::meta))};
    }
    for (WrittenTensor& tensor : tensors) declared.push_back(std::move(tensor.entry));
  }
  return declared;
}

std::vector<WrittenTensor> quantized(const Item& item, const Tensor& value,
                                     const kernels::WeightFormat& format, DType dtype, Device device,
                                     RoundToNearestReport& report) {
  const QuantizedWeight q = quantize(value.on(device), format);
  const double error = relative_error(value, dequantize(q, DType::f32));
  require(std::isfinite(error), "{} holds values that are not finite: it cannot be quantized", item.name);
  if (error >= report.worst_error) {
    report.worst_error = error;
    report.worst_layer = item.linear->path;
  }
  ++report.layers;
  return models::quantized_tensors(q.on(Device::cpu), item.linear->path, dtype);
}

}  // namespace

double relative_error(const Tensor& want, const Tensor& got) {
  const Tensor x = want.detached().to(DType::f32).on(Device::cpu).as_contiguous();
  const Tensor y = got.detached().to(DType::f32).on(Device::cpu).as_contiguous();
  check(x.shape() == y.shape(), "tensors of one shape");
  const std::span<const float> wanted = x.span<float>(), found = y.span<float>();
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double a = static_cast<double>(wanted[i]), difference = a - static_cast<double>(found[i]);
    error += difference * difference;
    norm += a * a;
  }
  return norm == 0 && error == 0 ? 0 : std::sqrt(error / norm);
}

RoundToNearestReport quantize_folder(const std::string& source, const kernels::WeightFormat& format,
                                     bool head, const std::string& out, Device device) {
  const models::ModelWeights weights(source);
  require(!weights.is_quantized(),
          "{}: the model is quantized already: give the folder that it was made from", source);
  const std::vector<Item> items = items_of(weights.config(), format, head && !weights.config().tied);
  weights.prefetch();
  RoundToNearestReport report;
  AtomicFolder target(out);
  const std::vector<TensorEntry> declared = declarations(items, weights, format);
  WeightFolderWriter writer(target.path(), declared);
  for (const Item& item : items) {
    const Tensor value = weights.read(item.name, item.shape);
    report.bytes_before += value.bytes();
    const DType dtype = weights.config().dtype;
    const std::vector<WrittenTensor> tensors = item.linear
                                                   ? quantized(item, value, format, dtype, device, report)
                                                   : std::vector{as_stored(item.name, value)};
    for (const WrittenTensor& tensor : tensors) {
      writer.write(tensor.entry.name, tensor.entry.data);
      report.bytes_after += static_cast<std::int64_t>(tensor.entry.data.size());
    }
  }
  writer.finish();
  write_file_atomically(target.path() + "/config.json",
                        config_text(weights.config(), weights.config().dtype,
                                    models::quantization_config_json(format, weights.config().dtype,
                                                                     head && !weights.config().tied)));
  models::copy_companions(source, target.path());
  target.commit();
  return report;
}

}  // namespace ridge::quant
