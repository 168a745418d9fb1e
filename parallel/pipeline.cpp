#include "parallel/pipeline.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <span>
#include <tuple>

#include "core/autograd.h"
#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/base/stream.h"

namespace ridge::parallel {
namespace {

// Receives are asked for as many forwards or backwards in advance: they arrive beside one.
constexpr std::size_t kAhead = 1;

Pipeline::Options resolved(Pipeline::Options options) {
  options.chunks = chunks_of(options.kind, options.chunks);
  return options;
}

// One run of a rank's list.
class Run {
 public:
  Run(const std::vector<Action>& list, int last_stage, bool with_backward, const Pipeline::Options& options,
      const PipelineWork& work, PipelineLinks& links)
      : list_(list),
        last_stage_(last_stage),
        with_backward_(with_backward),
        options_(options),
        work_(work),
        links_(links) {}

  void go(ActionClock* clock) {
    for (const Action& action : list_) {
      ask_ahead();
      if (is_compute(action.act)) {
        compute(action, clock);
      } else if (action.act == Act::send_activation || action.act == Act::send_gradient) {
        const bool forward = action.act == Act::send_activation;
        links_.send(action, take({!forward, action.stage + (forward ? 1 : -1), action.micro}));
      } else {
        arrive(action);
      }
    }
    links_.finish();
    check(values_.empty() && held_.empty() && put_off_.empty(), "a run that leaves nothing behind");
  }

  std::map<int, Tensor> losses;  // by micro-batch

 private:
  // What enters a stage: an activation, or (true) the gradient of its output.
  using Entry = std::tuple<bool, int, int>;
  using StageMicro = std::pair<int, int>;
  struct Held {
    autograd::Edge input;
    Tensor root;  // where backward begins; but for the loss, of one element: backward needs no values of it
  };
  struct Expected {
    Tensor tensor;
    std::unique_ptr<Pending> pending;
  };

  Tensor take(const Entry& entry) {
    auto node = values_.extract(entry);
    check(!node.empty(), "a value that a stage needs");
    return std::move(node.mapped());
  }

  void ask_ahead() {
    for (; asked_ < list_.size() && computes_asked_ <= computes_done_ + kAhead; ++asked_) {
      const Action& action = list_[asked_];
      if (is_compute(action.act)) {
        ++computes_asked_;
      } else if (action.act == Act::receive_activation || action.act == Act::receive_gradient) {
        const Tensor tensor = Tensor::empty(work_.shape(action.micro), options_.dtype, options_.device);
        expected_.push_back({tensor, links_.receive(action, tensor)});
      }
    }
  }

  void arrive(const Action& action) {
    Expected& first = expected_.front();
    first.pending->wait();
    values_[{action.act == Act::receive_gradient, action.stage, action.micro}] = first.tensor;
    expected_.pop_front();
  }

  void compute(const Action& action, ActionClock* clock) {
    if (work_.before) work_.before(action);
    if (clock != nullptr) clock->begin(action);
    if (action.act == Act::forward) {
      forward(action.stage, action.micro);
    } else if (action.act == Act::backward_weight) {
      const auto put_off = put_off_.extract({action.stage, action.micro});
      check(!put_off.empty(), "weight gradients that were put off");
      for (const auto& gradient : put_off.mapped()) gradient();
    } else {
      backward(action);
    }
    if (clock != nullptr) clock->end();
    if (work_.after) work_.after(action);
    ++computes_done_;
  }

  void forward(int stage, int micro) {
    Tensor x = stage == 0 ? Tensor() : take({false, stage, micro});
    if (with_backward_ && stage > 0) autograd::set_requires_grad(x, true);
    const Tensor y = work_.forward(stage, micro, x);
    Tensor root = y;
    if (stage == last_stage_) {
      if (y.numel() != 1) fail("the last stage gave {} and not a loss", to_string(y.shape()));
      losses[micro] = y.detached();
    } else {
      check_output(stage, micro, y);
      values_[{false, stage + 1, micro}] = y.detached().as_contiguous();
      root = Tensor::empty({1}, y.dtype(), y.device());
      root.set_edge(y.edge());
    }
    if (with_backward_) held_[{stage, micro}] = {x.edge(), root};
  }

  void backward(const Action& action) {
    const auto [act, stage, micro] = action;
    const Tensor dy = stage == last_stage_ ? Tensor() : take({true, stage, micro});
    const auto held = held_.extract(StageMicro{stage, micro});
    check(!held.empty(), "a backward after its forward");
    Tensor dx;
    if (act == Act::backward_input) {
      const autograd::DeferWeightGradients scope(put_off_[{stage, micro}]);
      dx = autograd::gradients(held.mapped().root, dy, {held.mapped().input}).front();
    } else {
      dx = autograd::gradients(held.mapped().root, dy, {held.mapped().input}).front();
    }
    if (stage == 0) return;
    if (!dx.defined()) fail("stage {} gives its input no gradient", stage);
    values_[{true, stage - 1, micro}] = dx.to(options_.dtype).as_contiguous();
  }

  void check_output(int stage, int micro, const Tensor& y) const {
    const Shape expected = work_.shape(micro);
    if (y.shape() == expected && y.dtype() == options_.dtype && y.device() == options_.device) return;
    fail("stage {} gave {} {} on {}, its neighbour expects {} {} on {}", stage, name_of(y.dtype()),
         to_string(y.shape()), name_of(y.device()), name_of(options_.dtype), to_string(expected),
         name_of(options_.device));
  }

  const std::vector<Action>& list_;
  const int last_stage_;
  const bool with_backward_;
  const Pipeline::Options& options_;
  const PipelineWork& work_;
  PipelineLinks& links_;
  std::size_t asked_ = 0, computes_asked_ = 0, computes_done_ = 0;
  std::deque<Expected> expected_;  // receives under way, in the list's order
  std::map<Entry, Tensor> values_;
  std::map<StageMicro, Held> held_;  // from forward to backward
  std::map<StageMicro, autograd::DeferWeightGradients::Queue> put_off_;
};

}  // namespace

Pipeline::Pipeline(Communicator& pp, const Options& options)
    : pp_(pp), options_(resolved(options)), links_(pp, options_.kind, options_.chunks, options_.device) {}

std::vector<int> Pipeline::local_stages() const {
  return stages_of_rank(options_.kind, pp_.size(), options_.chunks, pp_.rank());
}

const std::vector<Action>& Pipeline::list(int micro_batches, bool with_backward) {
  const auto [found, fresh] = lists_.try_emplace({micro_batches, with_backward});
  if (fresh) {
    auto all = schedules(options_.kind, pp_.size(), options_.chunks, micro_batches);
    if (!with_backward) {
      for (auto& list : all) list = forward_only(list);
    }
    check_schedule(all, stages(), micro_batches, with_backward);
    found->second = std::move(all[static_cast<std::size_t>(pp_.rank())]);
  }
  return found->second;
}

std::vector<Tensor> Pipeline::run(int micro_batches, const PipelineWork& work) {
  return run(micro_batches, work, true);
}

std::vector<Tensor> Pipeline::evaluate(int micro_batches, const PipelineWork& work) {
  const autograd::NoGradScope no_grad;
  return run(micro_batches, work, false);
}

std::vector<Tensor> Pipeline::run(int micro_batches, const PipelineWork& work, bool with_backward) {
  Run run(list(micro_batches, with_backward), stages() - 1, with_backward, options_, work, links_);
  std::optional<ActionClock> clock;
  if (measure_) {
    clock.emplace(options_.device);
    if (options_.device == Device::cuda) cuda::synchronize(current_stream(Device::cuda));
    pp_.barrier();
    clock->start();
  }
  run.go(clock ? &*clock : nullptr);
  if (clock) timeline_ = clock->read();
  std::vector<Tensor> losses;
  for (auto& [micro, loss] : run.losses) losses.push_back(std::move(loss));
  return losses;
}

double Pipeline::bubble_share() {
  double busy = 0, end = 0;
  for (const TimedAction& action : timeline_) {
    busy += action.end - action.begin;
    end = std::max(end, action.end);
  }
  pp_.all_reduce(std::span(&busy, 1), Reduce::sum);
  pp_.all_reduce(std::span(&end, 1), Reduce::max);
  return end > 0 ? 1 - busy / (end * pp_.size()) : 0;
}

}  // namespace ridge::parallel
