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
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "core/tensor.h"

namespace ridge::autograd {

/// Which inputs of an op want a gradient.
using Needs = std::vector<bool>;
using Grads = std::vector<Tensor>;

/// A step of the tape: takes the gradient of its output to those of its inputs.
class Node {
 public:
  virtual ~Node() = default;
  /// Called once in a backward pass; frees what was saved.
  virtual Grads backward(const Tensor& dy) = 0;
  virtual const char* name() const = 0;

  std::vector<Edge> inputs;
  std::uint64_t sequence = 0;  // position on the tape
};

/// The end of the tape: a parameter, whose gradient stays here. Gradients of bf16 leaves are kept in f32.
class Leaf final : public Node {
 public:
  using Hook = std::function<void(Leaf&)>;
  explicit Leaf(const Tensor& value);
  Grads backward(const Tensor& dy) override;
  const char* name() const override { return "leaf"; }

  /// Adds to the gradient: in place where there is one, else into `buffer`; without one it keeps `dy` itself.
  void accumulate(Tensor dy);

  Tensor grad;    // of the value's shape; undefined until a backward pass reaches it
  Tensor buffer;  // optional memory for grad, such as a slice of a reduction bucket
  /// Called when all of a backward pass's contributions have arrived.
  std::vector<Hook> hooks;

 private:
  Shape shape_;
  DType grad_dtype_;
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

/// Gradients of `root` at the tensors that made `inputs`, without touching any leaf's grad.
Grads gradients(const Tensor& root, const Tensor& dy, const std::vector<Edge>& inputs);

/// Computes `fn(inputs)` without keeping what is inside; the backward pass runs it again (Chen et al., 2016).
/// Random state at entry is restored, so results are the same bits.
Tensor recompute(std::function<Tensor(const std::vector<Tensor>&)> fn, const std::vector<Tensor>& inputs);

namespace detail {

std::uint64_t next_sequence();
/// Leaves that ops touched since a LeafRecorder began.
void note_leaf(const Edge& edge);

template <class Op>
class OpNode final : public Node {
 public:
  OpNode(Op op, Needs needs) : op_(std::move(op)), needs_(std::move(needs)) {}
  Grads backward(const Tensor& dy) override {
    check(op_.has_value(), "a second backward pass over freed tensors");
    const NoGradScope no_grad;
    Grads grads = op_->vjp(dy, needs_);
    op_.reset();
    return grads;
  }
  const char* name() const override { return Op::kName; }

 private:
  std::optional<Op> op_;
  Needs needs_;
};

}  // namespace detail

/// Runs an op, and puts it on the tape if any input wants a gradient. An op with `prepare(needs)` is told
/// before `forward` which inputs will; none where nothing is recorded.
template <class Op, class... Inputs>
Tensor apply(Op op, const Inputs&... inputs) {
  const bool record = grad_enabled() && (inputs.requires_grad() || ...);
  if constexpr (requires { op.prepare(Needs{}); }) op.prepare(Needs{(record && inputs.requires_grad())...});
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

}  // namespace ridge::autograd
