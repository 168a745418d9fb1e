#include "parallel/overlapped_linear.h"

#include <optional>

#include "core/autograd.h"
#include "core/ops/weight_group.h"
#include "parallel/collective_ops.h"
#include "parallel/one_shot_reduce.h"
#include "parallel/peer_pieces.h"
#include "parallel/staged_collectives.h"

namespace ridge::parallel {
namespace {

using namespace ops::detail;
using autograd::Grads;
using autograd::Needs;
using autograd::PassContext;
using autograd::Saved;

bool cuts_sequence(const TensorParallelism& how) { return how.sequence_parallel && how.tp->size() > 1; }

bool pulls(const TensorParallelism& how) {
  return how.peers != nullptr && how.chunks > 1 && cuts_sequence(how);
}

/// All ranks' pieces of a sequence on their way here.
class SequenceGather {
 public:
  /// Starts it, in one stage or in the stages that `how` asks for. Without `own` this rank's piece may be
  /// missing in `whole`.
  SequenceGather(const TensorParallelism& how, const Tensor& piece_BtC, const Tensor& whole_BTC, bool staged,
                 bool own)
      : whole_(whole_BTC) {
    if (pulls(how)) pull_ = PeerPull::start(*how.peers, piece_BtC, whole_BTC, staged ? how.chunks : 2, own);
    if (pull_ == nullptr) gather_.emplace(*how.tp, piece_BtC, whole_BTC, staged ? how.chunks : 1);
  }

  /// Stage by stage.
  void for_each(const UseRows& use) {
    if (pull_ != nullptr) {
      for (int stage = 0; stage < pull_->stages(); ++stage) pull_->wait(stage, use);
      return;
    }
    for (std::size_t stage = 0; stage < gather_->stages(); ++stage) {
      for (const RowRange& r : gather_->wait(stage)) use(RowSelection(r).of(whole_), RowSelection(r));
    }
  }
  void wait() { pull_ != nullptr ? pull_->wait() : gather_->wait(); }

 private:
  Tensor whole_;
  std::unique_ptr<PeerPull> pull_;
  std::optional<StagedGather> gather_;
};

void start_sequence_scatter(const TensorParallelism& how, const Tensor& piece_BtC, const MakeRows& make,
                            InFlight& flight) {
  std::unique_ptr<PeerSum> sum = pulls(how) ? PeerSum::start(*how.peers, piece_BtC, make) : nullptr;
  if (sum == nullptr) return start_staged_scatter(*how.tp, how.chunks, piece_BtC, make, flight);
  flight.add(std::move(sum), {});
}

// Inputs: x, then the weights, then the biases.
struct ColumnOp {
  static constexpr const char* kName = "column_linear";
  TensorParallelism how;
  std::size_t count;
  Saved x_MK = {};  // the piece of the sequence, where that is cut
  WeightGroup group = {};
  Shape x_shape = {};

  Shape whole_shape() const {
    Shape shape = x_shape;
    if (cuts_sequence(how)) shape[1] *= how.tp->size();
    return shape;
  }

  // {y, x of all tokens where that is wanted}
  std::pair<Tensor, Tensor> forward(const std::vector<Tensor>& in, const Needs& needs, bool want_whole) {
    const Tensor& x = in[0];
    group = WeightGroup(x, {in.begin() + 1, in.begin() + 1 + static_cast<std::ptrdiff_t>(count)});
    x_shape = x.shape();
    const Tensor flat = rows(x);
    if (group.any_trained(needs)) x_MK = Saved(flat);
    const Tensor y = Tensor::empty(with_last(whole_shape(), group.outputs()), x.dtype(), x.device());
    const Tensor y_MN = y.reshaped({-1, group.outputs()});
    const Tensor whole = cuts_sequence(how) ? gather_and_multiply(flat, y, want_whole) : x;
    if (!cuts_sequence(how)) group.product(flat, y_MN);
    for (std::size_t i = 0; i < count; ++i) {
      if (in[1 + count + i].defined()) add_bias(group.columns(y_MN, i), in[1 + count + i]);
    }
    if (!needs[0]) group.drop();
    return {y, want_whole ? whole : Tensor()};
  }

  Tensor gather_and_multiply(const Tensor& piece_MK, const Tensor& y, bool own) const {
    const Tensor whole = Tensor::empty(whole_shape(), piece_MK.dtype(), piece_MK.device());
    SequenceGather gather(how, piece_MK.reshaped(x_shape), whole, true, own);
    gather.for_each([&](const Tensor& x, const RowSelection& where) { group.product(x, where.of(y)); });
    if (own) gather.wait();
    return whole;
  }

  // The sum over ranks of dy w + dwhole, this rank's piece where the sequence is cut; dwhole may be
  // undefined.
  Tensor start_input_gradient(const Tensor& dy, const Tensor& dwhole, InFlight& flight) const {
    const Tensor dx = Tensor::empty(x_shape, dy.dtype(), dy.device());
    const Tensor extra = dwhole.defined() ? dwhole.as_contiguous() : dwhole;
    const auto make = [&](const RowSelection& selected, const Tensor& to) {
      if (extra.defined()) to.copy_from(selected.of(extra));
      group.input_gradient(selected.of(dy), to, extra.defined() ? 1 : 0);
    };
    if (cuts_sequence(how)) {
      start_sequence_scatter(how, dx, make, flight);
    } else {
      start_staged_reduce(*how.tp, how.chunks, rows(dx), make, flight);
    }
    return dx;
  }

  Grads vjp(const Tensor& dy_any, const Tensor& dwhole, const Needs& needs, const PassContext& pass) const {
    const Tensor dy = dy_any.as_contiguous();
    Grads grads(1 + 2 * count);
    std::optional<SequenceGather> gather;
    Saved whole = x_MK;
    if (cuts_sequence(how) && group.any_trained(needs)) {
      const Tensor x = x_MK.get().reshaped(x_shape);
      const Tensor all = Tensor::empty(whole_shape(), x.dtype(), x.device());
      gather.emplace(how, x, all, false, true);
      whole = Saved(rows(all));
    }
    InFlight flight;
    if (needs[0]) grads[0] = start_input_gradient(dy, dwhole, flight);
    if (gather) gather->wait();
    group.weight_gradients(rows(dy), whole, needs, pass, grads);
    flight.wait();
    return grads;
  }
};

// The step of the tape for both outputs.
class ColumnNode final : public autograd::Node {
 public:
  ColumnNode(ColumnOp op, Needs needs) : op_(std::move(op)), needs_(std::move(needs)) {}
  Grads backward(const Tensor& dy, const PassContext& pass) override { return backward_all({dy}, pass); }
  Grads backward_all(const std::vector<Tensor>& dys, const PassContext& pass) override {
    check(op_.has_value(), "a second backward pass over freed tensors");
    check(dys.front().defined(), "column_linear: what is added to y uses y");
    const autograd::NoGradScope no_grad;
    Grads grads = op_->vjp(dys.front(), dys.size() > 1 ? dys[1] : Tensor(), needs_, pass);
    op_.reset();
    return grads;
  }
  const char* name() const override { return ColumnOp::kName; }

 private:
  std::optional<ColumnOp> op_;
  Needs needs_;
};

// Inputs: x, the weight, the bias.
struct RowOp {
  static constexpr const char* kName = "row_linear";
  TensorParallelism how;
  Needs needs = {};
  Saved x_MK = {};
  WeightGroup group = {};
  Shape x_shape = {};

  void prepare(const Needs& wanted) { needs = wanted; }

  Tensor forward(const std::vector<Tensor>& in) {
    const Tensor x = in[0].as_contiguous();
    group = WeightGroup(x, {in[1]});
    x_shape = x.shape();
    if (needs[1]) x_MK = Saved(rows(in[0]));
    const Tensor y = Tensor::empty(y_shape(), x.dtype(), x.device());
    const auto make = [&](const RowSelection& selected, const Tensor& to) {
      group.product(selected.of(x), to);
    };
    InFlight flight;
    if (cuts_sequence(how)) {
      start_sequence_scatter(how, y, make, flight);
    } else if (how.one_shot != nullptr && how.one_shot->takes(y)) {
      group.product(rows(x), rows(y));
      how.one_shot->all_reduce(y);
    } else {
      start_staged_reduce(*how.tp, how.chunks, rows(y), make, flight);
    }
    flight.wait();
    if (in[2].defined()) add_bias(rows(y), in[2]);
    if (!needs[0]) group.drop();
    return y;
  }

  Shape y_shape() const {
    Shape shape = with_last(x_shape, group.outputs());
    if (cuts_sequence(how)) {
      check_sequence(shape[1], how.tp->size());
      shape[1] /= how.tp->size();
    }
    return shape;
  }

  Grads vjp(const Tensor& dy_any, const Needs& wanted, const PassContext& pass) const {
    const Tensor dy = dy_any.as_contiguous();
    Grads grads(3);
    const Tensor dx = wanted[0] ? Tensor::empty(x_shape, dy.dtype(), dy.device()) : Tensor();
    const Tensor whole = cuts_sequence(how) ? gather_and_multiply(dy, dx) : dy;
    if (!cuts_sequence(how) && wanted[0]) group.input_gradient(rows(dy), rows(dx));
    grads[0] = dx;
    group.weight_gradients(rows(whole), x_MK, {wanted[0], wanted[1], false}, pass, grads);
    if (wanted[2]) grads[2] = sum_rows(rows(dy));
    return grads;
  }

  // The whole dy, and dx from it where that is defined.
  Tensor gather_and_multiply(const Tensor& dy, const Tensor& dx) const {
    const Tensor whole = Tensor::empty(with_last(x_shape, group.outputs()), dy.dtype(), dy.device());
    SequenceGather gather(how, dy, whole, dx.defined(), true);
    gather.for_each([&](const Tensor& rows, const RowSelection& where) {
      if (dx.defined()) group.input_gradient(rows, where.of(dx));
    });
    gather.wait();
    return whole;
  }
};

std::vector<Tensor> inputs_of(const Tensor& x, const std::vector<Tensor>& weights,
                              const std::vector<Tensor>& biases) {
  check(!weights.empty() && biases.size() == weights.size(), "a bias, or none, for each weight");
  std::vector<Tensor> inputs{x};
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  inputs.insert(inputs.end(), biases.begin(), biases.end());
  return inputs;
}

}  // namespace

std::pair<Tensor, Tensor> column_linear(const TensorParallelism& how, const Tensor& x,
                                        const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                        bool want_whole) {
  check(!cuts_sequence(how) || x.ndim() == 3, "column_linear: a piece of the sequence is [B, T, C]");
  Needs needs;
  std::vector<Tensor> values;
  const std::vector<Tensor> inputs = inputs_of(x, weights, biases);
  bool any = false;
  for (const Tensor& input : inputs) {
    needs.push_back(autograd::grad_enabled() && input.requires_grad());
    any = any || needs.back();
    values.push_back(input.detached());
  }
  ColumnOp op{how, weights.size()};
  std::pair<Tensor, Tensor> out;
  {
    const autograd::NoGradScope no_grad;
    out = op.forward(values, needs, want_whole);
  }
  if (!autograd::grad_enabled()) {
    for (const Tensor& input : inputs) autograd::detail::note_leaf(input.edge());
  }
  if (!any) return out;
  const auto node = std::make_shared<ColumnNode>(std::move(op), needs);
  for (const Tensor& input : inputs) node->inputs.push_back(input.edge());
  node->sequence = autograd::detail::next_sequence();
  out.first.set_edge({node, 0});
  if (want_whole) out.second.set_edge({node, 1});
  return out;
}

Tensor row_linear(const TensorParallelism& how, const Tensor& x, const Tensor& w_NK, const Tensor& bias_N) {
  check(!cuts_sequence(how) || x.ndim() == 3, "row_linear: a sequence that is to be cut is [B, T, C]");
  return autograd::apply_all(RowOp{how}, {x, w_NK, bias_N});
}

}  // namespace ridge::parallel
