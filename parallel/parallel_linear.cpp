#include "parallel/parallel_linear.h"

#include "core/autograd.h"
#include "core/ops/elementwise.h"
#include "core/ops/embedding.h"
#include "core/ops/shape.h"
#include "core/random_state.h"
#include "parallel/collective_ops.h"
#include "parallel/vocab_loss.h"

namespace ridge::parallel {
namespace {

// Random ops inside see columns of what one rank would.
class ColumnsScope {
 public:
  ColumnsScope(std::int64_t first, std::int64_t width) {
    random_state().first_column = first;
    random_state().width = width;
  }
  ~ColumnsScope() { random_state().first_column = random_state().width = 0; }
  ColumnsScope(const ColumnsScope&) = delete;
  ColumnsScope& operator=(const ColumnsScope&) = delete;
};

Tensor brought_here(const TensorParallelism& how, const Tensor& x) {
  return how.sequence_parallel ? gather_sequence(x, *how.tp) : copy_to_tp(x, *how.tp);
}

Tensor summed(const TensorParallelism& how, const Tensor& y) {
  return how.sequence_parallel ? scatter_sequence(y, *how.tp)
                               : reduce_from_tp(y, *how.tp, how.one_shot.get());
}

bool is_plain(const nn::Linear& layer) { return layer.dense() == &layer; }

}  // namespace

Tensor ColumnParallelLinear::forward_together(const std::vector<const nn::Linear*>& layers,
                                              const Tensor& x) const {
  std::vector<const nn::Linear*> pieces;
  std::vector<Tensor> weights, biases;
  bool plain = true;
  for (const nn::Linear* layer : layers) {
    const auto* column = dynamic_cast<const ColumnParallelLinear*>(layer);
    check(column != nullptr, "layers of one input are cut alike");
    pieces.push_back(column->piece_.get());
    plain = plain && is_plain(*pieces.back());
    const nn::DenseLinear* dense = pieces.back()->dense();
    if (dense == nullptr) continue;
    weights.push_back(dense->weight());
    biases.push_back(dense->bias());
  }
  if (weights.size() < layers.size()) return nn::forward_group(pieces, brought_here(*how_, x));
  auto [y, whole] = column_linear(*how_, x, weights, biases, !plain);
  std::int64_t column = 0;
  for (const nn::Linear* piece : pieces) {
    if (!plain) y = piece->add_extra(whole, y, column);
    column += piece->out_features();
  }
  return y;
}

Tensor RowParallelLinear::forward(const Tensor& x) const {
  if (is_plain(*piece_)) return row_linear(*how_, x, piece_->dense()->weight(), bias_);
  Tensor y;
  {
    const ColumnsScope scope(first_column_, width_);
    y = piece_->forward(x);
  }
  y = summed(*how_, y);
  return bias_.defined() ? ops::add(y, bias_) : y;
}

void RowParallelLinear::collect(const std::string& path, nn::Parameters& out) {
  piece_->collect(path, out);
  if (bias_.defined()) out.push_back({path + ".bias", &bias_});
}

Tensor VocabParallelEmbedding::forward(const Tensor& ids_BT) const {
  return summed(*how_, ops::embedding(table(), ids_BT, {piece_.first, piece_.vocabulary}));
}

// Where the layer is a product with a weight and nothing more.
const Tensor* VocabParallelHead::plain_weight() const {
  if (table_ != nullptr) return table_;
  const nn::DenseLinear* dense = piece_->dense();
  return is_plain(*piece_) && !dense->bias().defined() ? &dense->weight() : nullptr;
}

Tensor VocabParallelHead::local_logits(const Tensor& hidden) const {
  return piece_->forward(brought_here(*how_, hidden));
}

Tensor VocabParallelHead::forward(const Tensor& x) const {
  return gather_columns(local_logits(x), ids_.vocabulary, *how_->tp);
}

Tensor VocabParallelHead::cross_entropy(const Tensor& hidden, const Tensor& targets_R, double scale) const {
  if (const Tensor* weight = plain_weight())
    return vocab_linear_cross_entropy(*how_, hidden, *weight, targets_R, ids_, scale);
  const Tensor logits = ops::reshape(local_logits(hidden), {targets_R.dim(0), out_features()});
  return vocab_cross_entropy(*how_->tp, ops::cast(logits, DType::f32), targets_R, ids_, scale);
}

Tensor VocabParallelHead::token_losses(const Tensor& hidden, const Tensor& targets_R) const {
  if (const Tensor* weight = plain_weight())
    return vocab_token_losses(*how_, hidden, *weight, targets_R, ids_);
  const autograd::NoGradScope no_grad;
  const Tensor logits = ops::reshape(local_logits(hidden), {targets_R.dim(0), out_features()});
  return vocab_row_losses(*how_->tp, logits.to(DType::f32), targets_R, ids_);
}

}  // namespace ridge::parallel
