// Linear layers: one interface, whatever the weight's format and whatever is added to it.
#pragma once

#include "core/nn/module.h"

namespace ridge::nn {

class DenseLinear;
class QuantizedLinear;

/// y [..., out] = x [..., in] W' + b. Adapters and quantized layers are further implementations.
class Linear {
 public:
  virtual ~Linear() = default;
  virtual Tensor forward(const Tensor& x) const = 0;
  /// Those that are held here: a rank's piece of a larger layer counts its own.
  virtual std::int64_t in_features() const = 0;
  virtual std::int64_t out_features() const = 0;
  /// Appends this layer's parameters under `path`.
  virtual void collect(const std::string& path, Parameters& out) = 0;

  /// Of layers of one input, of which this is the first: their outputs side by side [..., sum of out]. A
  /// layer that is a rank's piece of a larger one brings its input here once for all of them.
  virtual Tensor forward_together(const std::vector<const Linear*>& layers, const Tensor& x) const;

  /// Of a wrapper that adapters go inside of: the slot of the layer within; else null.
  virtual std::unique_ptr<Linear>* inner() { return nullptr; }

  /// A layer of the form dense(x) + extra(x): its dense part, or null where there is none.
  virtual const DenseLinear* dense() const { return nullptr; }
  /// The same where that part's weight is in a weight format.
  virtual const QuantizedLinear* quantized() const { return nullptr; }
  /// Adds extra(x) to the columns from `column` on of y, which holds dense parts side by side; gives y back.
  virtual Tensor add_extra(const Tensor& x, const Tensor& y, std::int64_t column) const;

  /// As an output layer: scale * sum of the rows' cross-entropy, hidden [..., in] of R rows, targets [R] i32.
  /// A rank that holds a piece of every sequence has more targets than rows.
  virtual Tensor cross_entropy(const Tensor& hidden, const Tensor& targets_R, double scale) const;
  /// The rows' losses [R], without gradients.
  virtual Tensor token_losses(const Tensor& hidden, const Tensor& targets_R) const;
};

/// A weight [out, in] in f32, bf16 or f64, with or without a bias [out].
class DenseLinear final : public Linear {
 public:
  DenseLinear(std::int64_t in, std::int64_t out, bool bias, DType dtype, Device device);
  /// Over given memory; the bias may be undefined.
  DenseLinear(Tensor weight, Tensor bias) : weight_(std::move(weight)), bias_(std::move(bias)) {}
  Tensor forward(const Tensor& x) const override;
  std::int64_t in_features() const override { return weight_.dim(1); }
  std::int64_t out_features() const override { return weight_.dim(0); }
  void collect(const std::string& path, Parameters& out) override;
  Tensor cross_entropy(const Tensor& hidden, const Tensor& targets_R, double scale) const override;
  Tensor token_losses(const Tensor& hidden, const Tensor& targets_R) const override;

  const DenseLinear* dense() const override { return this; }

  Tensor& weight() { return weight_; }
  Tensor& bias() { return bias_; }
  const Tensor& weight() const { return weight_; }
  const Tensor& bias() const { return bias_; }

 private:
  Tensor weight_;  // [out, in]
  Tensor bias_;    // [out] or undefined
};

/// Layers of one input, their outputs side by side [..., sum of out].
Tensor forward_group(const std::vector<const Linear*>& layers, const Tensor& x);

/// Dense layers over one block of memory, so that a group of them is one product.
std::vector<std::unique_ptr<Linear>> dense_group(std::int64_t in, const std::vector<std::int64_t>& outs,
                                                 bool bias, DType dtype, Device device);

/// An output layer that is the embedding's table [V, C], which must outlive it.
class TiedLinear final : public Linear {
 public:
  explicit TiedLinear(const Tensor& table_VC) : table_(&table_VC) {}
  Tensor forward(const Tensor& x) const override;
  std::int64_t in_features() const override { return table_->dim(1); }
  std::int64_t out_features() const override { return table_->dim(0); }
  void collect(const std::string&, Parameters&) override {}
  Tensor cross_entropy(const Tensor& hidden, const Tensor& targets_R, double scale) const override;
  Tensor token_losses(const Tensor& hidden, const Tensor& targets_R) const override;

 private:
  const Tensor* table_;
};

}  // namespace ridge::nn
