// Reverse-mode differentiation: eager, a tape of op nodes, hooks on leaves.
//
// An op is a struct with `forward` and `vjp` side by side:
//   struct Scale {
//     double factor;
//     Tensor forward(const Tensor& x);                            // may keep what vjp needs in its fields
//     std::vector<Tensor> vjp(const Tensor& dy, const Needs& needs);  // one gradient an input, undefined
//     where not needed
//   };
//   Tensor scale(const Tensor& x, double factor) { return autograd::apply(Scale{factor}, x); }
// A vjp may take a third argument, `const PassContext& pass`: then it can write gradients of parameters to
// their place at once.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <unordered_set>
#include <vector>

#include "core/tensor.h"

namespace ridge::autograd {

/// Which inputs of an op want a gradient.
using Needs = std::vector<bool>;
using Grads = std::vector<Tensor>;

class Leaf;
class Node;

/// Memory for the gradient of a leaf: an op writes there, or adds, in place of returning a tensor.
struct GradSink {
  Tensor grad;
  bool add = false;  // whether the memory holds a gradient already
};

/// What a backward pass offers to the op that it visits.
class PassContext {
 public:
  PassContext(const Node& node, const std::unordered_set<const Node*>& captured, bool unit)
      : node_(node), captured_(captured), unit_(unit) {}
  /// The gradient memory of input `i` where that is a leaf. Once taken, the op must fill it.
  std::optional<GradSink> take_leaf(std::size_t i) const;
  /// Whether input `i` is one whose gradient the caller of gradients() wants as a tensor.
  bool captured(std::size_t i) const;
  /// Whether the gradient that arrives is known to be 1, so that nothing need be multiplied by it.
  bool unit() const { return unit_; }

 private:
  const Node& node_;
  const std::unordered_set<const Node*>& captured_;
  bool unit_;
};

/// A step of the tape: takes the gradient of its output to those of its inputs.
class Node {
 public:
  virtual ~Node() = default;
  /// Called once in a backward pass; frees what was saved.
  virtual Grads backward(const Tensor& dy, const PassContext& pass) = 0;
  /// For nodes of several outputs: a gradient each, undefined where none arrived.
  virtual Grads backward_all(const std::vector<Tensor>& dys, const PassContext& pass) {
    return backward(dys.front(), pass);
  }
  virtual const char* name() const = 0;

  std::vector<Edge> inputs;
  std::uint64_t sequence = 0;  // position on the tape
};

/// The end of the tape: a parameter, whose gradient stays here. Gradients of bf16 leaves are kept in f32.
class Leaf final : public Node {
 public:
  using Hook = std::function<void(Leaf&)>;
  explicit Leaf(const Tensor& value);
  Grads backward(const Tensor& dy, const PassContext& pass) override;
  const char* name() const override { return "leaf"; }

  /// Adds to the gradient: in place where there is one, else into `buffer`; without one it keeps `dy` itself.
  void accumulate(Tensor dy);
  /// The gradient's memory, for an op that fills it itself.
  GradSink open();

  Tensor grad;    // of the value's shape; undefined until a backward pass reaches it
  Tensor buffer;  // optional memory for grad, such as a slice of what ranks sum
  /// Called when all of a backward pass's contributions have arrived.
  std::vector<Hook> hooks;

 private:
  Shape shape_;
  DType grad_dtype_;
  Device device_;
};

bool grad_enabled();
/// Whether what runs now may be differentiated: it is recorded, or recompute will run it again.
bool grad_wanted();

/// Records nothing for a scope.
class NoGradScope {
 public:
  NoGradScope();
  ~NoGradScope();
  NoGradScope(const NoGradScope&) = delete;
  NoGradScope& operator=(const NoGradScope&) = delete;

 private:
  bool before_;
};

/// Records again for a scope, inside a NoGradScope: recompute's backward needs it.
class EnableGradScope {
 public:
  EnableGradScope();
  ~EnableGradScope();
  EnableGradScope(const EnableGradScope&) = delete;
  EnableGradScope& operator=(const EnableGradScope&) = delete;

 private:
  bool before_;
};

/// Makes `tensor` a leaf that collects a gradient, or a constant again.
void set_requires_grad(Tensor& tensor, bool requires_grad);
/// The leaf of a parameter; an Error where it is none.
Leaf& leaf_of(const Tensor& parameter);
/// The collected gradient; undefined where there is none.
Tensor grad_of(const Tensor& parameter);

/// Runs the tape back from `root` with gradient `dy` (default: ones) and adds into the leaves.
void backward(const Tensor& root, const Tensor& dy = {});

/// Gradients of `root` at the tensors that made `inputs`; leaves that are not among these collect theirs.
Grads gradients(const Tensor& root, const Tensor& dy, const std::vector<Edge>& inputs);

/// For a scope of forward passes whose backward passes are sure to follow, from a root with gradient 1: an op
/// that makes a leaf's gradient in its forward pass puts it there at once.
class EarlyGradientsScope {
 public:
  EarlyGradientsScope();
  ~EarlyGradientsScope();
  EarlyGradientsScope(const EarlyGradientsScope&) = delete;
  EarlyGradientsScope& operator=(const EarlyGradientsScope&) = delete;

 private:
  bool before_;
};
/// In such a scope: the gradient memory of a leaf that has some. Once taken, the op must fill it.
std::optional<GradSink> take_early(const Edge& input);

/// Whether a backward pass is under way on this thread.
bool in_backward();

/// `x` itself; `fn` is called when its gradient has arrived, before that goes on.
Tensor when_backward(const Tensor& x, std::function<void()> fn);

/// For a scope of backward passes, gradients of weights that can wait are put into `queue`, to be run in that
/// order: pipelines fill their bubbles with them (Qi et al., 2023).
class DeferWeightGradients {
 public:
  using Queue = std::vector<std::function<void()>>;
  explicit DeferWeightGradients(Queue& queue);
  ~DeferWeightGradients();
  DeferWeightGradients(const DeferWeightGradients&) = delete;
  DeferWeightGradients& operator=(const DeferWeightGradients&) = delete;

 private:
  Queue* before_;
};
/// The queue of the innermost such scope; null outside.
DeferWeightGradients::Queue* deferred_weight_gradients();

/// Computes `fn(inputs)` without keeping what is inside; the backward pass runs it again (Chen et al., 2016).
/// Random state at entry is restored, so results are the same bits.
Tensor recompute(std::function<Tensor(const std::vector<Tensor>&)> fn, const std::vector<Tensor>& inputs);

/// How to make a tensor again from what is kept anyway: a cheap op's output need not be saved.
class Recipe {
 public:
  explicit Recipe(std::function<Tensor()> make) : make_(std::move(make)) {}
  Tensor make() const { return make_(); }

 private:
  std::function<Tensor()> make_;
};

/// Whether cheap ops give their outputs a recipe: selective recompute (Korthikanti et al., 2022).
bool cheap_recompute();
class CheapRecomputeScope {
 public:
  explicit CheapRecomputeScope(bool on);
  ~CheapRecomputeScope();
  CheapRecomputeScope(const CheapRecomputeScope&) = delete;
  CheapRecomputeScope& operator=(const CheapRecomputeScope&) = delete;

 private:
  bool before_;
};

/// A tensor kept for the backward pass: the tensor itself, or its recipe.
class Saved {
 public:
  Saved() = default;
  explicit Saved(const Tensor& value);
  Tensor get() const;

 private:
  Tensor value_;
  std::shared_ptr<const Recipe> recipe_;
  Shape shape_;
};

namespace detail {

std::uint64_t next_sequence();
/// Leaves that ops touched since a LeafRecorder began.
void note_leaf(const Edge& edge);

template <class Op>
class OpNode final : public Node {
 public:
  OpNode(Op op, Needs needs) : op_(std::move(op)), needs_(std::move(needs)) {}
  Grads backward(const Tensor& dy, const PassContext& pass) override {
    check(op_.has_value(), "a second backward pass over freed tensors");
    const NoGradScope no_grad;
    Grads grads;
    if constexpr (requires { op_->vjp(dy, needs_, pass); }) {
      grads = op_->vjp(dy, needs_, pass);
    } else {
      grads = op_->vjp(dy, needs_);
    }
    op_.reset();
    return grads;
  }
  const char* name() const override { return Op::kName; }

 private:
  std::optional<Op> op_;
  Needs needs_;
};

template <class Op>
class PairNode final : public Node {
 public:
  PairNode(Op op, Needs needs) : op_(std::move(op)), needs_(std::move(needs)) {}
  Grads backward(const Tensor& dy, const PassContext& pass) override { return backward_all({dy, {}}, pass); }
  Grads backward_all(const std::vector<Tensor>& dys, const PassContext&) override {
    check(op_.has_value(), "a second backward pass over freed tensors");
    const NoGradScope no_grad;
    Grads grads = op_->vjp(dys[0], dys.size() > 1 ? dys[1] : Tensor(), needs_);
    op_.reset();
    return grads;
  }
  const char* name() const override { return Op::kName; }

 private:
  std::optional<Op> op_;
  Needs needs_;
};

}  // namespace detail

/// Runs an op, and puts it on the tape if any input wants a gradient. An op with `prepare(needs)`, or
/// `prepare(needs, edges)`, is told before `forward` which inputs will; none where nothing is recorded.
template <class Op, class... Inputs>
Tensor apply(Op op, const Inputs&... inputs) {
  const bool record = grad_enabled() && (inputs.requires_grad() || ...);
  if constexpr (requires { op.prepare(Needs{}); }) op.prepare(Needs{(record && inputs.requires_grad())...});
  if constexpr (requires { op.prepare(Needs{}, std::vector<Edge>{}); })
    op.prepare(Needs{(record && inputs.requires_grad())...}, std::vector<Edge>{inputs.edge()...});
  Tensor y;
  {
    const NoGradScope no_grad;
    y = op.forward(inputs.detached()...);
  }
  if (!grad_enabled()) (detail::note_leaf(inputs.edge()), ...);
  if (!record) return y;
  auto node = std::make_shared<detail::OpNode<Op>>(std::move(op), Needs{inputs.requires_grad()...});
  node->inputs = {inputs.edge()...};
  node->sequence = detail::next_sequence();
  y.set_edge({std::move(node), 0});
  return y;
}

/// As apply, for an op with two outputs: forward returns a pair, vjp takes a gradient for each.
template <class Op, class... Inputs>
std::pair<Tensor, Tensor> apply_pair(Op op, const Inputs&... inputs) {
  const bool record = grad_enabled() && (inputs.requires_grad() || ...);
  std::pair<Tensor, Tensor> y;
  {
    const NoGradScope no_grad;
    y = op.forward(inputs.detached()...);
  }
  if (!grad_enabled()) (detail::note_leaf(inputs.edge()), ...);
  if (!record) return y;
  const std::shared_ptr<Node> node =
      std::make_shared<detail::PairNode<Op>>(std::move(op), Needs{inputs.requires_grad()...});
  node->inputs = {inputs.edge()...};
  node->sequence = detail::next_sequence();
  y.first.set_edge({node, 0});
  y.second.set_edge({node, 1});
  return y;
}

/// As apply, for an op whose forward takes all its inputs as one vector; some may be undefined.
template <class Op>
Tensor apply_all(Op op, const std::vector<Tensor>& inputs) {
  Needs needs;
  std::vector<Tensor> values;
  bool any = false;
  for (const Tensor& input : inputs) {
    needs.push_back(grad_enabled() && input.requires_grad());
    any = any || needs.back();
    values.push_back(input.detached());
  }
  if constexpr (requires { op.prepare(Needs{}); }) op.prepare(needs);
  Tensor y;
  {
    const NoGradScope no_grad;
    y = op.forward(values);
  }
  auto node = any ? std::make_shared<detail::OpNode<Op>>(std::move(op), needs) : nullptr;
  for (const Tensor& input : inputs) {
    if (!grad_enabled()) detail::note_leaf(input.edge());
    if (any) node->inputs.push_back(input.edge());
  }
  if (!any) return y;
  node->sequence = detail::next_sequence();
  y.set_edge({std::move(node), 0});
  return y;
}

}  // namespace ridge::autograd
