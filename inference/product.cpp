#include "inference/product.h"

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/nn/quantized_linear.h"
#include "inference/quantized_rows.h"
#include "kernels/elementwise.h"
#include "kernels/few_rows_product.h"
#include "kernels/matmul.h"
#include "kernels/quant_matmul.h"
#include "parallel/collective_ops.h"
#include "parallel/one_shot_reduce.h"
#include "parallel/parallel_linear.h"

namespace ridge::inference {
namespace {

bool multiplies_at_once(const parallel::TensorParallelism& how) {
  return !how.sequence_parallel && how.chunks <= 1;
}

}  // namespace

Product::Product(std::vector<nn::Linear*> layers) : layers_(layers.begin(), layers.end()) {
  std::vector<nn::Linear*> pieces;
  for (nn::Linear* layer : layers) pieces.push_back(within(layer));
  std::int64_t column = first_id_;
  for (const nn::Linear* piece : pieces) {
    add_part(*piece, column);
    column += piece->out_features();
  }
  if (parts_.size() != layers_.size()) {
    parts_.clear();
    biases_.clear();
    how_ = nullptr;  // layers that add to their piece make themselves whole
  }
  join_dense();
  join_quantized(pieces);
}

Product::Product(const Tensor& table_VC) { parts_.push_back({table_VC, std::nullopt, 0, table_VC.dim(0)}); }

// This rank's piece, and how the ranks' outputs of it are one; `layer` itself where it is whole.
nn::Linear* Product::within(nn::Linear* layer) {
  if (auto* column = dynamic_cast<parallel::ColumnParallelLinear*>(layer))
    return multiplies_at_once(column->how()) ? column->inner()->get() : layer;
  if (auto* row = dynamic_cast<parallel::RowParallelLinear*>(layer)) {
    if (!multiplies_at_once(row->how())) return layer;
    check(layers_.size() == 1, "sums over ranks are of one layer");
    how_ = &row->how();
    if (row->bias().defined()) biases_.push_back({row->bias().detached(), 0});
    return piece_ = row->inner()->get();
  }
  if (auto* head = dynamic_cast<parallel::VocabParallelHead*>(layer)) {
    vocabulary_ = head->ids().vocabulary;
    if (!multiplies_at_once(head->how())) return layer;
    check(layers_.size() == 1, "a vocabulary is of one layer");
    how_ = &head->how();
    first_id_ = head->ids().first;
    return piece_ = &head->piece();
  }
  return layer;
}

void Product::add_part(const nn::Linear& layer, std::int64_t column) {
  const std::int64_t columns = layer.out_features();
  Tensor bias;
  if (const auto* dense = dynamic_cast<const nn::DenseLinear*>(&layer)) {
    parts_.push_back({dense->weight().detached(), std::nullopt, column, columns});
    bias = dense->bias();
  } else if (const auto* coded = dynamic_cast<const nn::QuantizedLinear*>(&layer)) {
    parts_.push_back({{}, coded->weight(), column, columns});
    bias = coded->bias();
  } else if (dynamic_cast<const nn::TiedLinear*>(&layer) != nullptr && vocabulary_ > 0) {
    const auto& head = dynamic_cast<const parallel::VocabParallelHead&>(*layers_.front());
    parts_.push_back({head.table()->detached(), std::nullopt, column, columns});
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

void Product::join_quantized(const std::vector<nn::Linear*>& pieces) {
  std::vector<QuantizedWeight*> weights;
  for (nn::Linear* piece : pieces) {
    if (auto* coded = dynamic_cast<nn::QuantizedLinear*>(piece)) weights.push_back(&coded->weight());
  }
  if (weights.size() != pieces.size()) return;
  if (auto all = join_rows(weights)) {
    const std::int64_t rows = all->shape[0];
    parts_.clear();
    parts_.push_back({{}, std::move(all), 0, rows});
    join_biases(pieces.size());
  }
}

// Those of all layers, as one of the joined part; frozen, so that a copy of them stays true.
void Product::join_biases(std::size_t layers) {
  if (sums() || biases_.size() != layers) return;
  std::vector<Tensor*> values;
  for (Bias& bias : biases_) values.push_back(&bias.values);
  biases_ = {{join_tensors(values), 0}};
}

std::int64_t Product::outputs() const {
  if (vocabulary_ > 0) return vocabulary_;
  if (!parts_.empty()) return parts_.back().column + parts_.back().columns;
  std::int64_t sum = 0;
  for (const nn::Linear* layer : layers_) sum += layer->out_features();
  return sum;
}

bool Product::takes(std::int64_t rows, Device device) const {
  if (parts_.empty()) return false;
  for (const Part& part : parts_) {
    if (part.columns > 0 && part.quantized.has_value() &&
        !kernels::has_quant_matmul(part.quantized->view(), rows, device))
      return false;
  }
  return true;
}

bool Product::recordable(const Tensor& room_RN) const {
  if (parts_.empty() || how_ == nullptr) return !parts_.empty();
  const parallel::OneShotReduce* ranks = how_->one_shot.get();
  return ranks != nullptr && (sums() ? ranks->takes(room_RN) : ranks->gathers(room_RN));
}

kernels::DecodeWeight Product::weight_of(const Part& part) const {
  if (part.quantized.has_value()) return part.quantized->view();
  return View<const bf16>(part.weight_NK.view<bf16>());
}

// The one that lies over the part's columns; null where there is none.
const Product::Bias* Product::bias_of(const Part& part) const {
  for (const Bias& bias : biases_) {
    if (!sums() && bias.column == part.column && bias.values.dim(0) == part.columns) return &bias;
  }
  return nullptr;
}

// A gate and an up projection that are not one matrix.
bool Product::is_pair(const kernels::ProductSteps& steps) const {
  return steps.end == kernels::ProductEnd::swiglu && parts_.size() == 2 &&
         parts_[0].columns == parts_[1].columns;
}

kernels::ProductSteps Product::steps_of(const Part& part, kernels::ProductSteps steps) const {
  const auto values = [&](const Part& of) {
    const Bias* bias = bias_of(of);
    return bias == nullptr ? View<const bf16>() : View<const bf16>(bias->values.view<bf16>());
  };
  steps.bias_N = values(part);
  if (!is_pair(steps)) return steps;
  steps.up_NK = weight_of(parts_[1]);
  steps.up_bias_N = values(parts_[1]);
  return steps;
}

bool Product::has_steps(std::int64_t rows, const kernels::ProductSteps& steps, Device device) const {
  const bool pair = is_pair(steps);
  if (parts_.empty() || (steps.end == kernels::ProductEnd::swiglu && parts_.size() > 1 && !pair))
    return false;
  if (steps.end == kernels::ProductEnd::add && sums()) return false;
  std::size_t biases = 0;
  for (const Part& part : parts_) {
    if (part.columns == 0) continue;
    if (part.weight_NK.defined() && part.weight_NK.dtype() != DType::bf16) return false;
    biases += bias_of(part) != nullptr;
    if (pair && &part != &parts_.front()) continue;
    if (!kernels::has_decode_product(weight_of(part), rows, steps_of(part, steps), device)) return false;
  }
  return sums() || biases == biases_.size();
}

void Product::run_steps(const Tensor& x_RK, const kernels::ProductSteps& steps, const Tensor& room_RN) const {
  Stream& stream = current_stream(x_RK.device());
  for (const Part& part : parts_) {
    if (part.columns == 0) continue;
    const bool whole = steps.end == kernels::ProductEnd::swiglu;
    const Tensor y = whole ? room_RN : room_RN.sliced(1, part.column, part.column + part.columns);
    kernels::decode_product(stream, x_RK.view<bf16>(), weight_of(part), steps_of(part, steps),
                            y.view<bf16>());
    if (is_pair(steps)) return;
  }
}

void Product::multiply(const Tensor& x_RK, const Tensor& room_RN) const {
  Stream& stream = current_stream(x_RK.device());
  const auto run = [&]<class T>(std::type_identity<T>) {
    for (const Part& part : parts_) {
      if (part.columns == 0) continue;
      const View<T> y = room_RN.sliced(1, part.column, part.column + part.columns).view<T>();
      if (part.quantized.has_value()) {
        const bool early = true;  // nothing writes the weights while tokens are made
        kernels::quant_matmul<T>(stream, x_RK.view<T>(), part.quantized->view(), y, early);
        continue;
      }
      if constexpr (std::is_same_v<T, float>) {
        if (kernels::has_few_rows_product(x_RK.dim(0), x_RK.device())) {
          kernels::few_rows_product(stream, x_RK.view<T>(), part.weight_NK.view<T>(), y);
          continue;
        }
      }
      kernels::matmul<T>(stream, x_RK.view<T>(), part.weight_NK.transposed(0, 1).view<T>(), y);
    }
  };
  if (x_RK.dtype() == DType::bf16) return run(std::type_identity<bf16>{});
  run(std::type_identity<float>{});
}

void Product::add_biases(const Tensor& room_RN) const {
  Stream& stream = current_stream(room_RN.device());
  const auto run = [&]<class T>(std::type_identity<T>) {
    for (const Bias& bias : biases_) {
      const Tensor part = room_RN.sliced(1, bias.column, bias.column + bias.values.dim(0));
      const View<T> y = part.view<T>();
      kernels::add<T>(stream, y, bias.values.expanded(part.shape()).view<T>(), y);
    }
  };
  if (room_RN.dtype() == DType::bf16) return run(std::type_identity<bf16>{});
  run(std::type_identity<float>{});
}

void Product::make_whole(const Tensor& room_RN) const {
  if (how_ == nullptr) return;
  const autograd::NoGradScope no_grad;
  if (sums()) {
    parallel::reduce_from_tp(room_RN, *how_->tp, how_->one_shot.get());
    return add_biases(room_RN);
  }
  if (how_->one_shot != nullptr && how_->one_shot->gathers(room_RN))
    return how_->one_shot->gather_columns(room_RN);
  const Tensor mine = room_RN.sliced(1, first_id_, first_id_ + piece_->out_features());
  room_RN.copy_from(parallel::gather_columns(mine, vocabulary_, *how_->tp));
}

void Product::add_whole(const Tensor& room_RN, const Tensor& y_RN) const {
  const parallel::OneShotReduce* ranks = how_ == nullptr ? nullptr : how_->one_shot.get();
  if (sums() && biases_.empty() && ranks != nullptr && ranks->takes(room_RN))
    return ranks->add_all_reduced(room_RN, y_RN);
  make_whole(room_RN);
  const auto add = [&]<class T>(std::type_identity<T>) {
    kernels::add<T>(current_stream(y_RN.device()), y_RN.view<T>(), room_RN.view<T>(), y_RN.view<T>());
  };
  if (y_RN.dtype() == DType::bf16) return add(std::type_identity<bf16>{});
  add(std::type_identity<float>{});
}

// A piece whose product is not into `room` here may be so on another rank: they meet in the same way.
Tensor Product::run(const Tensor& x_BTK, const Tensor& room_RN) const {
  const std::int64_t B = x_BTK.dim(0), T = x_BTK.dim(1);
  const Tensor x_RK = x_BTK.reshaped({B * T, x_BTK.dim(2)});
  const autograd::NoGradScope no_grad;
  if (takes(B * T, x_BTK.device())) {
    multiply(x_RK, room_RN);
    if (!sums()) add_biases(room_RN);
  } else if (how_ != nullptr) {
    room_RN.sliced(1, first_id_, first_id_ + piece_->out_features()).copy_from(piece_->forward(x_RK));
  } else {
    return nn::forward_group(layers_, x_BTK);
  }
  make_whole(room_RN);
  return room_RN.reshaped({B, T, room_RN.dim(1)});
}

}  // namespace ridge::inference
