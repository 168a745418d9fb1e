// The table that turns ids into vectors.
#pragma once

#include "core/nn/module.h"

namespace ridge::nn {

/// V ids, C channels; of a table that is cut among ranks, the rows that are held here.
class Embedding {
 public:
  explicit Embedding(Tensor table_VC) : table_(std::move(table_VC)) {}
  virtual ~Embedding() = default;
  /// [B, T] ids (i32) to [B, T, C]
  virtual Tensor forward(const Tensor& ids_BT) const;
  Tensor& table() { return table_; }
  const Tensor& table() const { return table_; }

 private:
  Tensor table_;  // [V, C]
};

}  // namespace ridge::nn
