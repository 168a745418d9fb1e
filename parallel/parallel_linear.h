// A rank's pieces of linear layers and of the vocabulary, with the collectives that make them whole (Shoeybi
// et al., 2019). Adapters go inside: around the piece, whose inputs and outputs they then are a piece of.
#pragma once

#include <memory>

#include "core/nn/embedding.h"
#include "core/nn/linear.h"
#include "kernels/vocab_cross_entropy.h"
#include "parallel/overlapped_linear.h"

namespace ridge::parallel {

/// What the layers of one model share; sequence parallelism may be turned off and on for all at once.
using SharedParallelism = std::shared_ptr<TensorParallelism>;

/// Some rows of the weight: x is whole, y is this rank's columns.
class ColumnParallelLinear final : public nn::Linear {
 public:
  ColumnParallelLinear(SharedParallelism how, std::unique_ptr<nn::Linear> piece)
      : how_(std::move(how)), piece_(std::move(piece)) {}
  Tensor forward(const Tensor& x) const override { return forward_together({this}, x); }
  /// All of this kind: x is brought here once, and their dense parts are one product beside it.
  Tensor forward_together(const std::vector<const nn::Linear*>& layers, const Tensor& x) const override;
  std::int64_t in_features() const override { return piece_->in_features(); }
  std::int64_t out_features() const override { return piece_->out_features(); }
  void collect(const std::string& path, nn::Parameters& out) override { piece_->collect(path, out); }
  std::unique_ptr<nn::Linear>* inner() override { return &piece_; }
  TensorParallelism& how() { return *how_; }

 private:
  SharedParallelism how_;
  std::unique_ptr<nn::Linear> piece_;
};

/// Some columns of the weight: x is this rank's columns, y the sum over ranks, to which the bias is added
/// once. With sequence parallelism y is a piece of the sequence. Masks inside are those columns of one
/// rank's.
class RowParallelLinear final : public nn::Linear {
 public:
  /// `piece` has no bias; `bias` [out] may be undefined. Of `width` columns in all this rank's begin with
  /// `first_column`.
  RowParallelLinear(SharedParallelism how, std::unique_ptr<nn::Linear> piece, Tensor bias,
                    std::int64_t first_column, std::int64_t width)
      : how_(std::move(how)),
        piece_(std::move(piece)),
        bias_(std::move(bias)),
        first_column_(first_column),
        width_(width) {}
  Tensor forward(const Tensor& x) const override;
  std::int64_t in_features() const override { return piece_->in_features(); }
  std::int64_t out_features() const override { return piece_->out_features(); }
  void collect(const std::string& path, nn::Parameters& out) override;
  std::unique_ptr<nn::Linear>* inner() override { return &piece_; }
  const TensorParallelism& how() const { return *how_; }
  /// Of the whole sum; may be undefined.
  const Tensor& bias() const { return bias_; }

 private:
  SharedParallelism how_;
  std::unique_ptr<nn::Linear> piece_;
  Tensor bias_;  // [out] or undefined
  std::int64_t first_column_, width_;
};

/// Rows first .. of the table. With sequence parallelism its output is a piece of the sequence.
class VocabParallelEmbedding final : public nn::Embedding {
 public:
  VocabParallelEmbedding(SharedParallelism how, Tensor table_vC, kernels::VocabPiece piece)
      : nn::Embedding(std::move(table_vC)), how_(std::move(how)), piece_(piece) {}
  Tensor forward(const Tensor& ids_BT) const override;
  const TensorParallelism& how() const { return *how_; }
  kernels::VocabPiece ids() const { return piece_; }

 private:
  SharedParallelism how_;
  kernels::VocabPiece piece_;
};

/// An output layer of some ids. Losses never gather logits; forward() does, [..., V].
class VocabParallelHead final : public nn::Linear {
 public:
  VocabParallelHead(SharedParallelism how, std::unique_ptr<nn::Linear> piece, kernels::VocabPiece ids)
      : how_(std::move(how)), piece_(std::move(piece)), ids_(ids) {}
  /// That is the embedding's table [v, C], which must outlive it.
  VocabParallelHead(SharedParallelism how, const Tensor& table_vC, kernels::VocabPiece ids)
      : how_(std::move(how)),
        piece_(std::make_unique<nn::TiedLinear>(table_vC)),
        table_(&table_vC),
        ids_(ids) {}
  Tensor forward(const Tensor& x) const override;
  std::int64_t in_features() const override { return piece_->in_features(); }
  std::int64_t out_features() const override { return piece_->out_features(); }
  void collect(const std::string& path, nn::Parameters& out) override { piece_->collect(path, out); }
  std::unique_ptr<nn::Linear>* inner() override { return table_ == nullptr ? &piece_ : nullptr; }
  Tensor cross_entropy(const Tensor& hidden, const Tensor& targets_R, double scale) const override;
  Tensor token_losses(const Tensor& hidden, const Tensor& targets_R) const override;
  const TensorParallelism& how() const { return *how_; }
  kernels::VocabPiece ids() const { return ids_; }
  /// Makes this rank's logits.
  nn::Linear& piece() const { return *piece_; }
  /// Where that is the embedding's table, else null.
  const Tensor* table() const { return table_; }

 private:
  const Tensor* plain_weight() const;
  Tensor local_logits(const Tensor& hidden) const;

  SharedParallelism how_;
  std::unique_ptr<nn::Linear> piece_;
  const Tensor* table_ = nullptr;
  kernels::VocabPiece ids_;
};

}  // namespace ridge::parallel
