// Low-rank adaptation (Hu et al., 2021) around any linear layer.
#pragma once

#include "core/nn/linear.h"

namespace ridge::lora {

/// y = base(x) + scaling * B A dropout(x). A and B are kept in f32 and take part in x's dtype.
/// Dropout acts where A is trained and a gradient may be asked for: not in evaluation or generation.
class LoraLinear final : public nn::Linear {
 public:
  /// A [rank, in] and B [out, rank] are f32; uninitialised. `dropout` in [0, 1).
  LoraLinear(std::unique_ptr<nn::Linear> base, std::int64_t rank, double scaling, double dropout,
             Device device);
  Tensor forward(const Tensor& x) const override;
  const nn::DenseLinear* dense() const override { return base_->dense(); }
  const nn::QuantizedLinear* quantized() const override { return base_->quantized(); }
  Tensor add_extra(const Tensor& x, const Tensor& y, std::int64_t column) const override;
  std::int64_t in_features() const override { return base_->in_features(); }
  std::int64_t out_features() const override { return base_->out_features(); }
  /// The base's parameters under `path`, then `path.lora_A.weight` and `path.lora_B.weight`.
  void collect(const std::string& path, nn::Parameters& out) override;

  /// A: uniform in +-1/sqrt(in) (Kaiming's with a = sqrt(5)); B: zero.
  void initialize(std::uint64_t seed, std::uint64_t index);
  /// Adds scaling * B A to the weight of a dense base, in f32 and rounded once, and returns the base.
  std::unique_ptr<nn::Linear> merge();

  std::int64_t rank() const { return a_.dim(0); }
  double scaling() const { return scaling_; }
  Tensor& a() { return a_; }
  Tensor& b() { return b_; }

 private:
  std::unique_ptr<nn::Linear> base_;
  Tensor a_;  // [rank, in]
  Tensor b_;  // [out, rank]
  double scaling_;
  double dropout_;
};

}  // namespace ridge::lora
