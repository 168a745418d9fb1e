#include "core/autograd.h"

#include <limits>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "core/base/stream.h"
#include "core/random_state.h"
#include "kernels/elementwise.h"

namespace ridge::autograd {
namespace {

bool& recording() {
  static thread_local bool enabled = true;
  return enabled;
}

bool& cheap_flag() {
  static thread_local bool on = false;
  return on;
}

std::vector<Edge>*& leaf_recorder() {
  static thread_local std::vector<Edge>* recorder = nullptr;
  return recorder;
}

int& passes() {
  static thread_local int under_way = 0;
  return under_way;
}

bool& early() {
  static thread_local bool on = false;
  return on;
}

DeferWeightGradients::Queue*& deferred() {
  static thread_local DeferWeightGradients::Queue* queue = nullptr;
  return queue;
}

// Counts the passes of this thread, one within another.
class PassScope {
 public:
  PassScope() { ++passes(); }
  ~PassScope() { --passes(); }
  PassScope(const PassScope&) = delete;
  PassScope& operator=(const PassScope&) = delete;
};

class LeafRecorder {
 public:
  LeafRecorder() : before_(leaf_recorder()) { leaf_recorder() = &leaves; }
  ~LeafRecorder() { leaf_recorder() = before_; }
  LeafRecorder(const LeafRecorder&) = delete;
  LeafRecorder& operator=(const LeafRecorder&) = delete;
  std::vector<Edge> leaves;

 private:
  std::vector<Edge>* before_;
};

void add_into(const Tensor& sum, const Tensor& dy) {
  Stream& stream = current_stream(sum.device());
  if (sum.dtype() == DType::f32 && dy.dtype() == DType::bf16) {
    kernels::accumulate<bf16, float>(stream, dy.view<bf16>(), sum.view<float>());
    return;
  }
  visit_compute(sum.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::add<T>(stream, sum.view<T>(), dy.view<T>(), sum.view<T>());
  });
}

// A gradient on its way to a node; `owned` once it is a sum that nobody else can see.
struct Pending {
  Tensor sum;
  bool owned = false;

  void add(Tensor dy) {
    if (!sum.defined()) {
      sum = std::move(dy);
    } else if (owned) {
      add_into(sum, dy);
    } else {
      const Tensor total = Tensor::empty(sum.shape(), sum.dtype(), sum.device());
      visit_compute(sum.dtype(), [&]<class T>(std::type_identity<T>) {
        kernels::add<T>(current_stream(sum.device()), sum.view<T>(), dy.view<T>(), total.view<T>());
      });
      sum = total;
      owned = true;
    }
  }
};

// One walk from a root back over the tape.
class Pass {
 public:
  /// Leaves' hooks wait for the pass that ends at them; a pass inside recompute calls none.
  explicit Pass(const std::vector<Edge>& captured, bool hooks = true) : hooks_(hooks) {
    for (const Edge& edge : captured) {
      if (edge.node != nullptr) captured_.insert(edge.node.get());
    }
  }

  /// `unit`: dy is known to be 1.
  void run(const Edge& root, Tensor dy, bool unit = false) {
    const PassScope under_way;
    unit_root_ = unit ? root.node.get() : nullptr;
    count_edges(root.node);
    missing_[root.node.get()] = 1;
    arrive(root, std::move(dy));
    while (!ready_.empty()) {
      const std::shared_ptr<Node> node = ready_.top();
      ready_.pop();
      visit(*node);
    }
  }

  Tensor captured(const Node* node) {
    const auto found = pending_.find(node);
    return found == pending_.end() ? Tensor() : found->second.front().sum;
  }

 private:
  struct Earlier {
    bool operator()(const std::shared_ptr<Node>& a, const std::shared_ptr<Node>& b) const {
      return a->sequence < b->sequence;
    }
  };

  void count_edges(const std::shared_ptr<Node>& root) {
    std::vector<Node*> stack{root.get()};
    std::unordered_set<Node*> seen{root.get()};
    while (!stack.empty()) {
      Node* node = stack.back();
      stack.pop_back();
      for (const Edge& edge : node->inputs) {
        if (edge.node == nullptr) continue;
        ++missing_[edge.node.get()];
        if (seen.insert(edge.node.get()).second) stack.push_back(edge.node.get());
      }
    }
  }

  void visit(Node& node) {
    if (captured_.count(&node) != 0) return;
    if (auto* leaf = dynamic_cast<Leaf*>(&node)) {
      if (!hooks_) return;
      for (const Leaf::Hook& hook : leaf->hooks) hook(*leaf);
      return;
    }
    const PassContext context(node, captured_, &node == unit_root_);
    Grads grads = backward_of(node, context);
    check(grads.size() == node.inputs.size(), node.name());
    for (std::size_t i = 0; i < grads.size(); ++i) arrive(node.inputs[i], std::move(grads[i]));
  }

  // Gradients that arrived live no longer than the call.
  Grads backward_of(Node& node, const PassContext& context) {
    const auto found = pending_.find(&node);
    if (found == pending_.end()) return Grads(node.inputs.size());
    std::vector<Tensor> dys;
    for (Pending& slot : found->second) dys.push_back(std::move(slot.sum));
    pending_.erase(found);
    return dys.size() == 1 ? node.backward(dys.front(), context) : node.backward_all(dys, context);
  }

  void arrive(const Edge& edge, Tensor dy) {
    Node* node = edge.node.get();
    if (node == nullptr) return;
    if (dy.defined()) {
      auto* leaf = captured_.count(node) == 0 ? dynamic_cast<Leaf*>(node) : nullptr;
      if (leaf != nullptr) {
        leaf->accumulate(std::move(dy));
      } else {
        std::vector<Pending>& slots = pending_[node];
        const auto slot = static_cast<std::size_t>(edge.slot);
        if (slots.size() <= slot) slots.resize(slot + 1);
        slots[slot].add(std::move(dy));
      }
    }
    if (--missing_[node] == 0) ready_.push(edge.node);
  }

  bool hooks_;
  const Node* unit_root_ = nullptr;
  std::unordered_set<const Node*> captured_;
  std::unordered_map<const Node*, int> missing_;
  std::unordered_map<const Node*, std::vector<Pending>> pending_;  // by output
  std::priority_queue<std::shared_ptr<Node>, std::vector<std::shared_ptr<Node>>, Earlier> ready_;
};

Tensor ones_like(const Tensor& root) {
  check(root.numel() == 1, "backward from a tensor of one element, or with a gradient given");
  return Tensor::full(root.shape(), 1.0, root.dtype(), root.device());
}

// Says when a gradient comes by.
struct WhenBackward {
  static constexpr const char* kName = "when_backward";
  std::function<void()> fn;

  Tensor forward(const Tensor& x) { return x; }
  Grads vjp(const Tensor& dy, const Needs&) {
    fn();
    return {dy};
  }
};

class RecomputeNode final : public Node {
 public:
  using Fn = std::function<Tensor(const std::vector<Tensor>&)>;
  RecomputeNode(Fn fn, std::vector<Tensor> saved, RandomState state)
      : fn_(std::move(fn)), saved_(std::move(saved)), state_(state) {}
  const char* name() const override { return "recompute"; }

  Grads backward(const Tensor& dy, const PassContext& outer) override {
    check(fn_ != nullptr, "a second backward pass over freed tensors");
    const EnableGradScope record;
    const RandomState outside = random_state();
    random_state() = state_;
    std::vector<Edge> wanted(inputs.size());  // other leaves collect their gradients themselves
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].node == nullptr) continue;
      if (i < saved_.size()) {
        set_requires_grad(saved_[i], true);
        wanted[i] = saved_[i].edge();
      } else if (outer.captured(i)) {
        wanted[i] = inputs[i];
      }
    }
    const Tensor y = fn_(saved_);
    random_state() = outside;
    fn_ = nullptr;
    Grads grads = gradients_within(y, dy, wanted);
    saved_.clear();
    return grads;
  }

 private:
  static Grads gradients_within(const Tensor& y, const Tensor& dy, const std::vector<Edge>& wanted) {
    Grads grads(wanted.size());
    if (!y.requires_grad()) return grads;
    const NoGradScope no_grad;
    Pass pass(wanted, false);
    pass.run(y.edge(), dy);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if (wanted[i].node != nullptr) grads[i] = pass.captured(wanted[i].node.get());
    }
    return grads;
  }

 private:
  Fn fn_;
  std::vector<Tensor> saved_;
  RandomState state_;
};

}  // namespace

Leaf::Leaf(const Tensor& value)
    : shape_(value.shape()),
      grad_dtype_(value.dtype() == DType::bf16 ? DType::f32 : value.dtype()),
      device_(value.device()) {
  sequence = std::numeric_limits<std::uint64_t>::max();  // hooks run as soon as the gradient is whole
}

Grads Leaf::backward(const Tensor&, const PassContext&) { return {}; }

GradSink Leaf::open() {
  const bool add = grad.defined();
  if (!add) {
    const PurposeScope purpose(Purpose::gradients);
    grad = buffer.defined() ? buffer : Tensor::empty(shape_, grad_dtype_, device_);
  }
  return {grad, add};
}

std::optional<GradSink> PassContext::take_leaf(std::size_t i) const {
  auto* leaf = captured(i) ? nullptr : dynamic_cast<Leaf*>(node_.inputs.at(i).node.get());
  return leaf == nullptr ? std::nullopt : std::optional(leaf->open());
}

bool PassContext::captured(std::size_t i) const {
  return captured_.count(node_.inputs.at(i).node.get()) != 0;
}

void Leaf::accumulate(Tensor dy) {
  if (dy.shape() != shape_) fail("gradient of {} for a leaf of {}", to_string(dy.shape()), to_string(shape_));
  if (grad.defined()) {
    add_into(grad, dy);
  } else if (buffer.defined()) {
    buffer.copy_from(dy);
    grad = buffer;
  } else {
    const bool own = dy.dtype() == grad_dtype_ && dy.contiguous() && dy.storage().use_count() == 1;
    const PurposeScope purpose(Purpose::gradients);
    grad = own ? std::move(dy) : Tensor::empty(shape_, grad_dtype_, dy.device());
    if (!own) grad.copy_from(dy);
    grad.storage()->retag(Purpose::gradients);
  }
}

EarlyGradientsScope::EarlyGradientsScope() : before_(early()) { early() = true; }
EarlyGradientsScope::~EarlyGradientsScope() { early() = before_; }

std::optional<GradSink> take_early(const Edge& input) {
  auto* leaf = early() && grad_enabled() ? dynamic_cast<Leaf*>(input.node.get()) : nullptr;
  const bool there = leaf != nullptr && leaf->buffer.defined() && !leaf->buffer.storage()->dropped();
  return there ? std::optional(leaf->open()) : std::nullopt;
}

bool in_backward() { return passes() > 0; }

Tensor when_backward(const Tensor& x, std::function<void()> fn) {
  return x.requires_grad() && grad_enabled() ? apply(WhenBackward{std::move(fn)}, x) : x;
}

DeferWeightGradients::DeferWeightGradients(Queue& queue) : before_(deferred()) { deferred() = &queue; }
DeferWeightGradients::~DeferWeightGradients() { deferred() = before_; }
DeferWeightGradients::Queue* deferred_weight_gradients() { return deferred(); }

bool cheap_recompute() { return cheap_flag(); }
CheapRecomputeScope::CheapRecomputeScope(bool on) : before_(cheap_flag()) { cheap_flag() = on; }
CheapRecomputeScope::~CheapRecomputeScope() { cheap_flag() = before_; }

Saved::Saved(const Tensor& value) : recipe_(value.recipe()), shape_(value.shape()) {
  if (recipe_ == nullptr) value_ = value;
}

Tensor Saved::get() const { return recipe_ == nullptr ? value_ : recipe_->make().reshaped(shape_); }

bool grad_enabled() { return recording(); }

bool grad_wanted() { return recording() || leaf_recorder() != nullptr; }

NoGradScope::NoGradScope() : before_(recording()) { recording() = false; }
NoGradScope::~NoGradScope() { recording() = before_; }
EnableGradScope::EnableGradScope() : before_(recording()) { recording() = true; }
EnableGradScope::~EnableGradScope() { recording() = before_; }

void set_requires_grad(Tensor& tensor, bool requires_grad) {
  tensor.set_edge(requires_grad ? Edge{std::make_shared<Leaf>(tensor), 0} : Edge{});
}

Leaf& leaf_of(const Tensor& parameter) {
  auto* leaf = dynamic_cast<Leaf*>(parameter.edge().node.get());
  check(leaf != nullptr, "leaf of a parameter that requires a gradient");
  return *leaf;
}

Tensor grad_of(const Tensor& parameter) {
  return parameter.requires_grad() ? leaf_of(parameter).grad : Tensor();
}

void backward(const Tensor& root, const Tensor& dy) {
  check(root.requires_grad(), "backward from a tensor with history");
  const NoGradScope no_grad;
  Pass({}).run(root.edge(), dy.defined() ? dy : ones_like(root), !dy.defined());
}

Grads gradients(const Tensor& root, const Tensor& dy, const std::vector<Edge>& inputs) {
  if (!root.requires_grad()) return Grads(inputs.size());
  const NoGradScope no_grad;
  Pass pass(inputs);
  pass.run(root.edge(), dy.defined() ? dy : ones_like(root), !dy.defined());
  Grads grads;
  for (const Edge& edge : inputs) grads.push_back(edge.node ? pass.captured(edge.node.get()) : Tensor());
  return grads;
}

Tensor recompute(std::function<Tensor(const std::vector<Tensor>&)> fn, const std::vector<Tensor>& inputs) {
  if (!grad_enabled()) return fn(inputs);
  const RandomState state = random_state();
  std::vector<Tensor> saved;
  for (const Tensor& input : inputs) saved.push_back(input.detached());
  LeafRecorder recorder;
  Tensor y;
  {
    const NoGradScope no_grad;
    y = fn(saved);
  }
  auto node = std::make_shared<RecomputeNode>(std::move(fn), std::move(saved), state);
  for (const Tensor& input : inputs) node->inputs.push_back(input.edge());
  std::unordered_set<const Node*> seen;
  for (const Edge& leaf : recorder.leaves) {
    if (seen.insert(leaf.node.get()).second) node->inputs.push_back(leaf);
  }
  node->sequence = detail::next_sequence();
  y.set_edge({std::move(node), 0});
  return y;
}

std::uint64_t detail::next_sequence() {
  static thread_local std::uint64_t sequence = 0;
  return ++sequence;
}

void detail::note_leaf(const Edge& edge) {
  if (edge.node != nullptr && leaf_recorder() != nullptr) leaf_recorder()->push_back(edge);
}

}  // namespace ridge::autograd
