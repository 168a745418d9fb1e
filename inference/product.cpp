#include "inference/product.h"

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/nn/quantized_linear.h"
#include "inference/quantized_rows.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/quant_matmul.h"

namespace ridge::inference {

Product::Product(std::vector<nn::Linear*> layers) : layers_(layers.begin(), layers.end()) {
  std::int64_t column = 0;
  for (const nn::Linear* layer : layers_) {
    add_part(*layer, column);
    column += layer->out_features();
  }
  if (parts_.size() != layers_.size()) {
    parts_.clear();
    biases_.clear();
  }
  join_dense();
  join_quantized(layers);
}

Product::Product(const Tensor& table_VC) { parts_.push_back({table_VC, std::nullopt, 0, table_VC.dim(0)}); }

void Product::add_part(const nn::Linear& layer, std::int64_t column) {
  const std::int64_t columns = layer.out_features();
  Tensor bias;
  if (const auto* dense = dynamic_cast<const nn::DenseLinear*>(&layer)) {
    parts_.push_back({dense->weight().detached(), std::nullopt, column, columns});
    bias = dense->bias();
  } else if (const auto* coded = dynamic_cast<const nn::QuantizedLinear*>(&layer)) {
    parts_.push_back({{}, coded->weight(), column, columns});
    bias = coded->bias();
  }
  if (bias.defined()) biases_.push_back({bias.detached(), column});
}

// Dense weights that lie side by side are one product.
void Product::join_dense() {
  std::vector<Tensor> weights, biases;
  for (const Part& part : parts_) {
    if (part.weight_NK.defined()) weights.push_back(part.weight_NK);
  }
  if (weights.size() < 2 || weights.size() != parts_.size()) return;
  const Tensor all = Tensor::joined(weights);
  if (!all.defined()) return;
  parts_ = {{all, std::nullopt, 0, all.dim(0)}};
  if (biases_.size() != weights.size()) return;
  for (const Bias& bias : biases_) biases.push_back(bias.values);
  const Tensor row = Tensor::joined(biases);
  if (row.defined()) biases_ = {{row, 0}};
}

void Product::join_quantized(const std::vector<nn::Linear*>& layers) {
  std::vector<QuantizedWeight*> weights;
  for (nn::Linear* layer : layers) {
    if (auto* coded = dynamic_cast<nn::QuantizedLinear*>(layer)) weights.push_back(&coded->weight());
  }
  if (weights.size() != layers.size()) return;
  if (auto all = join_rows(weights)) {
    const std::int64_t rows = all->shape[0];
    parts_.clear();
    parts_.push_back({{}, std::move(all), 0, rows});
  }
}

std::int64_t Product::outputs() const {
  if (!parts_.empty()) return parts_.back().column + parts_.back().columns;
  std::int64_t sum = 0;
  for (const nn::Linear* layer : layers_) sum += layer->out_features();
  return sum;
}

bool Product::takes(std::int64_t rows, Device device) const {
  if (parts_.empty()) return false;
  for (const Part& part : parts_) {
    if (part.quantized.has_value() && !kernels::has_quant_matmul(part.quantized->view(), rows, device))
      return false;
  }
  return true;
}

void Product::multiply(const Tensor& x_RK, const Tensor& room_RN) const {
  Stream& stream = current_stream(x_RK.device());
  const auto run = [&]<class T>(std::type_identity<T>) {
    for (const Part& part : parts_) {
      const View<T> y = room_RN.sliced(1, part.column, part.column + part.columns).view<T>();
      if (part.quantized.has_value()) {
        kernels::quant_matmul<T>(stream, x_RK.view<T>(), part.quantized->view(), y);
      } else {
        kernels::matmul<T>(stream, x_RK.view<T>(), part.weight_NK.transposed(0, 1).view<T>(), y);
      }
    }
    for (const Bias& bias : biases_) {
      const Tensor part = room_RN.sliced(1, bias.column, bias.column + bias.values.dim(0));
      const View<T> y = part.view<T>();
      kernels::add<T>(stream, y, bias.values.expanded(part.shape()).view<T>(), y);
    }
  };
  if (x_RK.dtype() == DType::bf16) return run(std::type_identity<bf16>{});
  run(std::type_identity<float>{});
}

Tensor Product::run(const Tensor& x_BTK, const Tensor& room_RN) const {
  const std::int64_t B = x_BTK.dim(0), T = x_BTK.dim(1);
  if (takes(B * T, x_BTK.device())) {
    multiply(x_BTK.reshaped({B * T, x_BTK.dim(2)}), room_RN);
    return room_RN.reshaped({B, T, room_RN.dim(1)});
  }
  const autograd::NoGradScope no_grad;
  return nn::forward_group(layers_, x_BTK);
}

}  // namespace ridge::inference
