#include "parallel/fsdp.h"

#include <exception>

#include "core/base/error.h"

namespace ridge::parallel {

struct Fsdp::UnitState {
  std::vector<HeldParameter> parameters;
  std::vector<std::unique_ptr<FlatGroup>> groups;  // by dtype, and by whether they train
  std::size_t leaves = 0;
  std::size_t arrived = 0;  // leaves whose gradients of this micro-batch are there
  bool reduced = false;     // in this micro-batch
};

Fsdp::Fsdp(std::vector<std::vector<HeldParameter>> units, Communicator& shard, Communicator& replicas,
           const FsdpOptions& options, Device device, std::unique_ptr<PeerGroup> peers)
    : shard_(shard), replicas_(replicas), options_(options) {
  if (peers) sharing_ = std::make_unique<PeerSharing>(std::move(peers));
  for (std::vector<HeldParameter>& parameters : units) {
    auto unit = std::make_unique<UnitState>();
    unit->parameters = std::move(parameters);
    std::map<std::pair<DType, bool>, std::vector<HeldParameter*>> by_kind;
    for (HeldParameter& p : unit->parameters) by_kind[{p.value->dtype(), p.trains}].push_back(&p);
    const std::size_t index = units_.size();
    for (auto& [kind, held] : by_kind) {
      unit->groups.push_back(
          std::make_unique<FlatGroup>(std::move(held), shard, options, device, sharing_.get()));
      for (autograd::Leaf* leaf : unit->groups.back()->leaves()) {
        leaf->hooks.push_back([this, index](autograd::Leaf&) { arrived(index); });
        ++unit->leaves;
      }
    }
    units_.push_back(std::move(unit));
  }
  for (const auto& unit : units_) {
    for (const auto& group : unit->groups) {
      for (OwnedPiece& piece : group->pieces()) pieces_.push_back(&piece);
    }
  }
}

// What is still being gathered writes to memory that goes now. While an error unwinds, others may never come.
Fsdp::~Fsdp() {
  if (std::uncaught_exceptions() > 0) return;
  try {
    for (const auto& unit : units_) {
      for (const auto& group : unit->groups) group->wait_gather();
    }
  } catch (const std::exception&) {  // the ranks are broken: what they do next says why
  }
}

void Fsdp::write(const std::string& name, const Tensor& local) {
  for (const auto& unit : units_) {
    for (const HeldParameter& p : unit->parameters) {
      if (p.name != name) continue;
      for (const auto& group : unit->groups) {
        if (group->holds(p)) return group->write(p, local);
      }
    }
  }
  fail("parameter {} is not held here", name);
}

std::map<std::string, Placement> Fsdp::placements() const {
  std::map<std::string, Placement> all;
  for (const auto& unit : units_) {
    for (const HeldParameter& p : unit->parameters) all[p.name] = p.placement;
  }
  return all;
}

void Fsdp::gather(std::size_t unit) {
  for (const auto& group : units_.at(unit)->groups) group->start_gather();
}

// In the direction of the walk. A unit of another pipeline stage holds nothing.
void Fsdp::prefetch(std::size_t unit, bool forward) {
  if (forward && unit + 1 < units_.size()) gather(unit + 1);
  if (!forward && unit > 0) gather(unit - 1);
}

Tensor Fsdp::enter(std::size_t unit, const Tensor& x) {
  gather(unit);
  for (const auto& group : units_[unit]->groups) group->wait_gather();
  prefetch(unit, !autograd::in_backward());
  // The output layer may make its gradients in the forward pass.
  if (unit + 1 == units_.size() && autograd::grad_enabled()) {
    for (const auto& group : units_[unit]->groups) group->prepare_gradients();
  }
  return autograd::when_backward(x, [this, unit] { after_backward(unit); });
}

bool Fsdp::freed_after_forward(std::size_t unit) const {
  if (autograd::in_backward()) return false;  // recompute: the backward pass follows at once
  if (options_.keep_gathered && autograd::grad_wanted()) return false;
  return unit + 2 < units_.size() || !autograd::grad_wanted();  // the last ones are needed again at once
}

Tensor Fsdp::leave(std::size_t unit, const Tensor& y) {
  const bool loss = autograd::grad_enabled() && y.requires_grad() && y.numel() == 1;
  if (loss) {  // its backward pass is next
    for (const auto& group : units_[unit]->groups) group->prepare_gradients();
    return y;
  }
  if (freed_after_forward(unit)) {
    for (const auto& group : units_[unit]->groups) group->drop_parameters();
  }
  if (!autograd::grad_enabled() || !y.requires_grad()) return y;
  return autograd::when_backward(y, [this, unit] { before_backward(unit); });
}

void Fsdp::before_backward(std::size_t unit) {
  gather(unit);
  for (const auto& group : units_[unit]->groups) {
    group->wait_gather();
    group->prepare_gradients();
  }
  prefetch(unit, false);
}

void Fsdp::after_backward(std::size_t unit) {
  if (options_.reduce_at_end) return;  // other micro-batches are under way
  for (const auto& group : units_[unit]->groups) group->drop_parameters();
}

void Fsdp::begin(bool last) {
  last_ = last;
  for (const auto& unit : units_) {
    unit->arrived = 0;
    unit->reduced = false;
  }
}

bool Fsdp::reduces_now() const {
  if (options_.reduce_at_end) return finishing_;
  const bool whole_stays = options_.stage < 2 || options_.no_sync || shard_.size() == 1;
  return last_ || !whole_stays;
}

void Fsdp::arrived(std::size_t index) {
  UnitState& unit = *units_[index];
  if (++unit.arrived < unit.leaves || !reduces_now() || unit.reduced) return;
  reduce(index);
}

// One sum at a time is under way beside the computation.
void Fsdp::reduce(std::size_t index) {
  units_[index]->reduced = true;
  settle();
  for (const auto& group : units_[index]->groups) group->start_reduce();
  reducing_.push_back(index);
}

void Fsdp::settle() {
  for (const std::size_t unit : reducing_) {
    for (const auto& group : units_[unit]->groups) group->settle_reduce(last_ || finishing_, replicas_);
  }
  reducing_.clear();
}

void Fsdp::finish() {
  finishing_ = last_ || options_.reduce_at_end;
  for (std::size_t unit = units_.size(); unit-- > 0;) {
    if (reduces_now() && !units_[unit]->reduced) reduce(unit);
  }
  settle();
  for (const auto& unit : units_) {
    for (const auto& group : unit->groups) {
      if (finishing_) group->hand_over();
      group->drop_parameters();
    }
  }
  if (finishing_ && sharing_) sharing_->gather().before_change();  // the optimizer is next
  finishing_ = false;
}

std::vector<Tensor> Fsdp::counted_gradients() const {
  std::vector<Tensor> all;
  for (const OwnedPiece* piece : pieces_) {
    if (!piece->parameter->trains || !piece->parameter->counts) continue;
    const Tensor grad = autograd::grad_of(piece->value);
    if (!grad.defined()) continue;
    const Tensor run = all.empty() ? Tensor() : Tensor::joined({all.back(), grad});
    if (run.defined()) {
      all.back() = run;
    } else {
      all.push_back(grad);
    }
  }
  return all;
}

void Fsdp::publish() {
  if (sharing_) sharing_->gather().before_change();  // a change that was not a step's is one too
  if (sharing_) sharing_->gather().sources_changed();
  for (const auto& unit : units_) {
    for (const auto& group : unit->groups) group->start_publish();
  }
}

}  // namespace ridge::parallel
