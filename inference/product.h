// Linear layers of one input, as decoding runs them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/nn/linear.h"
#include "core/quantized_weight.h"
#include "kernels/decode_product.h"

namespace ridge::parallel {
struct TensorParallelism;
}

namespace ridge::inference {

/// Outputs lie side by side. Dense and quantized layers, and a rank's pieces of them, are products into
/// memory that is given; adapters run by their own forward, without gradients.
class Product {
 public:
  Product() = default;
  /// They must outlive it, in their places. Quantized weights may be laid side by side in memory.
  explicit Product(std::vector<nn::Linear*> layers);
  /// An output layer that is the embedding's table.
  explicit Product(const Tensor& table_VC);

  /// x [B, T, K] to [B, T, N]: in `room` [B T, N] where it is made by kernels alone, else in memory of its
  /// own.
  Tensor run(const Tensor& x_BTK, const Tensor& room_RN) const;
  /// Whether run_steps() has kernels for so many rows.
  bool has_steps(std::int64_t rows, const kernels::ProductSteps& steps, Device device) const;
  /// What this rank multiplies of x [R, K], and `steps` around it (kernels/decode_product.h), into `room`; a
  /// bias comes with it unless the sum of ranks gets it. bf16.
  void run_steps(const Tensor& x_RK, const kernels::ProductSteps& steps, const Tensor& room_RN) const;
  /// Columns of its output.
  std::int64_t outputs() const;
  /// Whether run() only ever writes into `room`, for few rows, with what this rank holds: no collective,
  /// nothing allocated.
  bool plain() const { return !parts_.empty() && !meets_ranks(); }
  /// The same, or ranks meet by a kernel that is queued as any other.
  bool recordable(const Tensor& room_RN) const;
  /// Whether what this rank multiplies is a part of the output: of the sum, or of its columns.
  bool meets_ranks() const { return how_ != nullptr; }
  /// `room` [R, N], where this rank's part lies, becomes the output, the same on all ranks, with the bias of
  /// a sum. Nothing where they do not meet.
  void make_whole(const Tensor& room_RN) const;
  /// y [R, N], dense, += the output of which `room` has this rank's part.
  void add_whole(const Tensor& room_RN, const Tensor& y_RN) const;

 private:
  // A weight of one or more layers, dense or quantized; no columns where a rank has no ids.
  struct Part {
    Tensor weight_NK;
    std::optional<QuantizedWeight> quantized = std::nullopt;
    std::int64_t column = 0, columns = 0;
  };
  struct Bias {
    Tensor values;
    std::int64_t column = 0;
  };
  nn::Linear* within(nn::Linear* layer);
  void add_part(const nn::Linear& layer, std::int64_t column);
  void join_dense();
  void join_quantized(const std::vector<nn::Linear*>& pieces);
  void join_biases(std::size_t layers);
  bool sums() const { return how_ != nullptr && vocabulary_ == 0; }
  bool takes(std::int64_t rows, Device device) const;
  kernels::DecodeWeight weight_of(const Part& part) const;
  const Bias* bias_of(const Part& part) const;
  bool is_pair(const kernels::ProductSteps& steps) const;
  kernels::ProductSteps steps_of(const Part& part, kernels::ProductSteps steps) const;
  void multiply(const Tensor& x_RK, const Tensor& room_RN) const;
  void add_biases(const Tensor& room_RN) const;

  std::vector<const nn::Linear*> layers_;
  std::vector<Part> parts_;
  std::vector<Bias> biases_;
  const parallel::TensorParallelism* how_ = nullptr;  // of the ranks whose parts make a whole
  nn::Linear* piece_ = nullptr;                       // of them, this rank's layer
  std::int64_t first_id_ = 0, vocabulary_ = 0;        // above 0: columns are gathered, else values are summed
};

}  // namespace ridge::inference
