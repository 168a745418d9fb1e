#include "core/nn/embedding.h"

#include "core/ops/embedding.h"

namespace ridge::nn {

Tensor Embedding::forward(const Tensor& ids_BT) const { return ops::embedding(table_, ids_BT); }

}  // namespace ridge::nn
