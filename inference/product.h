// Linear layers of one input, as decoding runs them.
#pragma once

#include <optional>
#include <vector>

#include "core/nn/linear.h"
#include "core/quantized_weight.h"

namespace ridge::inference {

/// Outputs lie side by side. Dense and quantized layers are products into memory that is given; a rank's
/// pieces and adapters run by their own forward, without gradients.
class Product {
 public:
  Product() = default;
  /// They must outlive it, in their places. Quantized weights may be laid side by side in memory.
  explicit Product(std::vector<nn::Linear*> layers);
  /// An output layer that is the embedding's table.
  explicit Product(const Tensor& table_VC);

  /// x [B, T, K] to [B, T, N]: in `room` [B T, N] where the layers are plain, else in memory of its own.
  Tensor run(const Tensor& x_BTK, const Tensor& room_RN) const;
  /// Columns of its output.
  std::int64_t outputs() const;
  /// Whether run() only ever writes into `room`, for few rows: no collective, nothing allocated.
  bool plain() const { return !parts_.empty(); }

 private:
  // A weight of one or more layers, dense or quantized.
  struct Part {
    Tensor weight_NK;
    std::optional<QuantizedWeight> quantized = std::nullopt;
    std::int64_t column = 0, columns = 0;
  };
  struct Bias {
    Tensor values;
    std::int64_t column = 0;
  };
  void add_part(const nn::Linear& layer, std::int64_t column);
  void join_dense();
  void join_quantized(const std::vector<nn::Linear*>& layers);
  bool takes(std::int64_t rows, Device device) const;
  void multiply(const Tensor& x_RK, const Tensor& room_RN) const;

  std::vector<const nn::Linear*> layers_;
  std::vector<Part> parts_;
  std::vector<Bias> biases_;
};

}  // namespace ridge::inference
