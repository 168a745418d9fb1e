#include "parallel/vocab_loss.h"

#include <algorithm>
#include <functional>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/ops/elementwise.h"
#include "core/ops/loss.h"
#include "core/ops/reduce.h"
#include "core/ops/weight_group.h"
#include "kernels/matmul.h"
#include "parallel/collective_ops.h"
#include "parallel/tensor_collectives.h"

namespace ridge::parallel {
namespace {

using autograd::Grads;
using autograd::Needs;
using kernels::VocabPiece;
using ops::detail::rows;

DType acc_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

double scalar(const Tensor& x) { return x.device() == Device::meta ? 1.0 : x.item(); }

Tensor scaled(const Tensor& x, double factor) { return factor == 1 ? x : ops::scale(x, factor); }

Tensor total(const Tensor& losses_R, double scale) { return scaled(ops::sum(losses_R), scale); }

// Of every rank, [P, 3, R].
template <class T>
Tensor statistics_of(Communicator& tp, const Tensor& logits, const Tensor& targets, VocabPiece piece) {
  using Acc = acc_t<T>;
  const Tensor all = Tensor::empty({tp.size(), 3, logits.dim(0)}, dtype_of<Acc>, logits.device());
  const Tensor mine = all.sliced(0, tp.rank(), tp.rank() + 1).reshaped({3, logits.dim(0)});
  kernels::vocab_statistics<T>(current_stream(logits.device()), logits.view<T>(),
                               targets.view<std::int32_t>(), piece, mine.view<Acc>());
  InFlight flight;
  if (tp.size() > 1) start_all_gather(tp, mine, all, flight);
  flight.wait();
  return all;
}

// One chunk of rows, [r, C] hidden states. Losses alone take logits in the accumulation type.
template <class T>
void chunk_losses(Communicator& tp, const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                  VocabPiece piece, const Tensor& losses) {
  using Acc = acc_t<T>;
  Stream& stream = current_stream(hidden.device());
  const Tensor logits = Tensor::empty({hidden.dim(0), weight.dim(0)}, dtype_of<Acc>, hidden.device());
  kernels::matmul<T, Acc>(stream, hidden.view<T>(), weight.transposed(0, 1).view<T>(), logits.view<Acc>());
  const Tensor statistics = statistics_of<Acc>(tp, logits, targets, piece);
  kernels::vocab_losses<Acc>(stream, statistics.view<Acc>(), targets.view<std::int32_t>(),
                             losses.view<Acc>());
}

// With gradients logits are in T, and turn into their own gradient in place.
template <class T>
Tensor chunk_gradients(Communicator& tp, const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                       VocabPiece piece, double scale, const Tensor& losses) {
  Stream& stream = current_stream(hidden.device());
  const Tensor d = Tensor::empty({hidden.dim(0), weight.dim(0)}, dtype_of<T>, hidden.device());
  kernels::matmul<T>(stream, hidden.view<T>(), weight.transposed(0, 1).view<T>(), d.view<T>());
  const Tensor statistics = statistics_of<T>(tp, d, targets, piece);
  kernels::vocab_cross_entropy_in_place<T>(stream, d.view<T>(), targets.view<std::int32_t>(), piece,
                                           statistics.view<acc_t<T>>(), scale, losses.view<acc_t<T>>());
  return d;
}

// Chunks are the same on all ranks, whatever they hold of the vocabulary.
void for_each_chunk(const Tensor& hidden_RC, VocabPiece piece, int ranks,
                    const std::function<void(std::int64_t begin, std::int64_t end)>& body) {
  const std::int64_t step = ops::loss_chunk_rows(hidden_RC.device(), (piece.vocabulary + ranks - 1) / ranks);
  for (std::int64_t begin = 0; begin < hidden_RC.dim(0); begin += step)
    body(begin, std::min(hidden_RC.dim(0), begin + step));
}

bool cuts_sequence(const TensorParallelism& how) { return how.sequence_parallel && how.tp->size() > 1; }

// All tokens' hidden states [R, C].
Tensor whole_rows(const TensorParallelism& how, const Tensor& hidden) {
  return rows(cuts_sequence(how) ? gather_sequence(hidden, *how.tp) : hidden);
}

void check_shapes(const Tensor& hidden_RC, const Tensor& weight, const Tensor& targets) {
  const bool fits =
      weight.ndim() == 2 && hidden_RC.dim(1) == weight.dim(1) && targets.shape() == Shape{hidden_RC.dim(0)};
  if (!fits) {
    fail("cross entropy: hidden {}, weight {}, targets {}", to_string(hidden_RC.shape()),
         to_string(weight.shape()), to_string(targets.shape()));
  }
}

// The gradient of hidden states, made a chunk at a time and reduced as soon as it can be.
class HiddenGradient {
 public:
  HiddenGradient(const TensorParallelism& how, const Tensor& hidden, const Tensor& whole_RC)
      : how_(how), whole_(Tensor::empty(whole_RC.shape(), whole_RC.dtype(), whole_RC.device())) {
    if (cuts_sequence(how)) {
      result_ = Tensor::empty(hidden.shape(), hidden.dtype(), hidden.device());
      tokens_ = hidden.dim(1) * how.tp->size();
    } else {
      result_ = whole_.reshaped(hidden.shape());
    }
  }
  Tensor chunk(std::int64_t begin, std::int64_t end) const { return whole_.sliced(0, begin, end); }
  // Rows begin .. end - 1 are there.
  void made(std::int64_t begin, std::int64_t end) {
    if (how_.tp->size() == 1) return;
    if (!cuts_sequence(how_)) return start_all_reduce(*how_.tp, chunk(begin, end), flight_);
    for (; end >= (sent_ + 1) * tokens_ && sent_ < result_.dim(0); ++sent_) {
      const Tensor mine = result_.sliced(0, sent_, sent_ + 1);
      start_reduce_scatter(*how_.tp, chunk(sent_ * tokens_, (sent_ + 1) * tokens_), mine, flight_);
    }
  }
  Tensor finish() {
    flight_.wait();
    return result_;
  }

 private:
  const TensorParallelism& how_;
  Tensor whole_, result_;    // [R, C]; as the hidden states
  std::int64_t tokens_ = 0;  // of a sample
  std::int64_t sent_ = 0;    // samples
  InFlight flight_;
};

struct VocabLinearCrossEntropy {
  static constexpr const char* kName = "vocab_linear_cross_entropy";
  TensorParallelism how;
  Tensor targets;
  VocabPiece piece;
  double scale;
  Needs needs = {};
  Tensor dhidden = {}, dweight = {};

  void prepare(const Needs& wanted) { needs = wanted; }

  Tensor forward(const Tensor& hidden, const Tensor& weight) {
    const Tensor whole = whole_rows(how, hidden);
    check_shapes(whole, weight, targets);
    const Tensor losses = Tensor::empty({whole.dim(0)}, acc_dtype(hidden.dtype()), hidden.device());
    if (needs[0] || needs[1]) {
      make_gradients(hidden, whole, weight, losses);
    } else {
      token_losses(whole, weight, losses);
    }
    return total(losses, scale);
  }

  void token_losses(const Tensor& whole, const Tensor& weight, const Tensor& losses) const {
    for_each_chunk(whole, piece, how.tp->size(), [&](std::int64_t begin, std::int64_t end) {
      visit_compute(whole.dtype(), [&]<class T>(std::type_identity<T>) {
        chunk_losses<T>(*how.tp, whole.sliced(0, begin, end), weight, targets.sliced(0, begin, end), piece,
                        losses.sliced(0, begin, end));
      });
    });
  }

  void make_gradients(const Tensor& hidden, const Tensor& whole, const Tensor& weight, const Tensor& losses) {
    HiddenGradient gradient(how, hidden, whole);
    if (needs[1]) {
      const PurposeScope purpose(Purpose::gradients);
      dweight = Tensor::empty(weight.shape(), losses.dtype(), hidden.device());
    }
    for_each_chunk(whole, piece, how.tp->size(), [&](std::int64_t begin, std::int64_t end) {
      visit_compute(whole.dtype(), [&]<class T>(std::type_identity<T>) {
        Stream& stream = current_stream(whole.device());
        const Tensor h = whole.sliced(0, begin, end);
        const Tensor d = chunk_gradients<T>(*how.tp, h, weight, targets.sliced(0, begin, end), piece, scale,
                                            losses.sliced(0, begin, end));
        if (needs[0]) {
          kernels::matmul<T>(stream, d.view<T>(), weight.view<T>(), gradient.chunk(begin, end).view<T>());
          gradient.made(begin, end);
        }
        if (needs[1]) {
          kernels::matmul<T, acc_t<T>>(stream, d.transposed(0, 1).view<T>(), h.view<T>(),
                                       dweight.view<acc_t<T>>(), 1, begin == 0 ? 0 : 1);
        }
      });
    });
    if (needs[0]) dhidden = gradient.finish();
  }

  Grads vjp(const Tensor& dy, const Needs& wanted, const autograd::PassContext& pass) {
    const double factor = pass.unit() ? 1 : scalar(dy);
    Grads grads(2);
    if (wanted[0]) grads[0] = scaled(std::exchange(dhidden, {}), factor);
    if (wanted[1]) grads[1] = scaled(std::exchange(dweight, {}), factor);
    return grads;
  }
};

struct VocabCrossEntropy {
  static constexpr const char* kName = "vocab_cross_entropy";
  Communicator* tp;
  Tensor targets;
  VocabPiece piece;
  double scale;
  Tensor logits = {}, statistics = {};

  Tensor forward(const Tensor& logits_Rv) { return total(losses_of(logits_Rv), scale); }

  Tensor losses_of(const Tensor& logits_Rv) {
    logits = logits_Rv.as_contiguous();
    const Tensor losses = Tensor::empty({logits.dim(0)}, acc_dtype(logits.dtype()), logits.device());
    visit_compute(logits.dtype(), [&]<class T>(std::type_identity<T>) {
      statistics = statistics_of<T>(*tp, logits, targets, piece);
      kernels::vocab_losses<acc_t<T>>(current_stream(logits.device()), statistics.view<acc_t<T>>(),
                                      targets.view<std::int32_t>(), losses.view<acc_t<T>>());
    });
    return losses;
  }

  Grads vjp(const Tensor& dy, const Needs&) const {
    const Tensor d = logits.contiguous_copy();
    const Tensor losses = Tensor::empty({d.dim(0)}, acc_dtype(d.dtype()), d.device());
    visit_compute(d.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::vocab_cross_entropy_in_place<T>(
          current_stream(d.device()), d.view<T>(), targets.view<std::int32_t>(), piece,
          statistics.view<acc_t<T>>(), scale * scalar(dy), losses.view<acc_t<T>>());
    });
    return {d};
  }
};

}  // namespace

Tensor vocab_linear_cross_entropy(const TensorParallelism& how, const Tensor& hidden, const Tensor& weight_vC,
                                  const Tensor& targets_R, VocabPiece piece, double scale) {
  return autograd::apply(VocabLinearCrossEntropy{how, targets_R.as_contiguous(), piece, scale}, hidden,
                         weight_vC);
}

Tensor vocab_token_losses(const TensorParallelism& how, const Tensor& hidden, const Tensor& weight_vC,
                          const Tensor& targets_R, VocabPiece piece) {
  const autograd::NoGradScope no_grad;
  const Tensor whole = whole_rows(how, hidden.detached());
  check_shapes(whole, weight_vC, targets_R);
  const Tensor losses = Tensor::empty({whole.dim(0)}, acc_dtype(hidden.dtype()), hidden.device());
  VocabLinearCrossEntropy{how, targets_R.as_contiguous(), piece, 1}.token_losses(whole, weight_vC, losses);
  return losses;
}

Tensor vocab_cross_entropy(Communicator& tp, const Tensor& logits_Rv, const Tensor& targets_R,
                           VocabPiece piece, double scale) {
  return autograd::apply(VocabCrossEntropy{&tp, targets_R.as_contiguous(), piece, scale}, logits_Rv);
}

Tensor vocab_row_losses(Communicator& tp, const Tensor& logits_Rv, const Tensor& targets_R,
                        VocabPiece piece) {
  return VocabCrossEntropy{&tp, targets_R.as_contiguous(), piece, 1}.losses_of(logits_Rv.detached());
}

}  // namespace ridge::parallel
