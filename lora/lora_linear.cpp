#include "lora/lora_linear.h"

#include <cmath>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/ops/elementwise.h"
#include "core/ops/linear.h"
#include "kernels/fill.h"
#include "kernels/matmul.h"

namespace ridge::lora {

LoraLinear::LoraLinear(std::unique_ptr<nn::Linear> base, std::int64_t rank, double scaling, double dropout,
                       Device device)
    : base_(std::move(base)), scaling_(scaling), dropout_(dropout) {
  const PurposeScope purpose(Purpose::weights);
  a_ = Tensor::empty({rank, base_->in_features()}, DType::f32, device);
  b_ = Tensor::empty({base_->out_features(), rank}, DType::f32, device);
}

Tensor LoraLinear::forward(const Tensor& x) const { return add_extra(x, base_->forward(x), 0); }

Tensor LoraLinear::add_extra(const Tensor& x, const Tensor& y, std::int64_t column) const {
  const bool trains = a_.requires_grad() && autograd::grad_wanted();
  return ops::add_low_rank(y, ops::dropout(x, trains ? dropout_ : 0), a_, b_, column, scaling_);
}

void LoraLinear::collect(const std::string& path, nn::Parameters& out) {
  base_->collect(path, out);
  out.push_back({path + ".lora_A.weight", &a_});
  out.push_back({path + ".lora_B.weight", &b_});
}

void LoraLinear::initialize(std::uint64_t seed, std::uint64_t index) {
  Stream& stream = current_stream(a_.device());
  const double bound = 1 / std::sqrt(static_cast<double>(in_features()));
  kernels::uniform<float>(stream, a_.view<float>(), -bound, bound, {mix_seed(seed, 1), index});
  kernels::fill<float>(stream, b_.view<float>(), 0);
}

std::unique_ptr<nn::Linear> LoraLinear::merge() {
  auto* dense = dynamic_cast<nn::DenseLinear*>(base_.get());
  check(dense != nullptr, "merge into a dense base");
  const Tensor weight = dense->weight().detached();
  const Tensor sum = weight.dtype() == DType::f32 ? weight.contiguous_copy() : weight.to(DType::f32);
  kernels::matmul<float>(current_stream(sum.device()), b_.view<float>(), a_.view<float>(), sum.view<float>(),
                         scaling_, 1);
  const PurposeScope purpose(Purpose::weights);
  dense->weight() = sum.to(weight.dtype());
  return std::move(base_);
}

}  // namespace ridge::lora
