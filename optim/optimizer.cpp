#include "optim/optimizer.h"

#include <algorithm>
#include <cmath>

#include "core/autograd.h"
#include "core/base/cuda.h"
#include "core/base/stream.h"
#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "kernels/reduce.h"
#include "optim/offload.h"

namespace ridge::optim {
namespace {

Tensor state_zeros(const Shape& shape, DType dtype, Device device, bool offload) {
  const PurposeScope purpose(Purpose::moments);
  return offload ? offloaded_zeros(shape, dtype, device) : Tensor::zeros(shape, dtype, device);
}

// Two bytes an element, zero: the master of a bf16 parameter begins at its value. Undefined for f32
// parameters.
Tensor low_half_of(const Tensor& value, bool offload) {
  if (value.dtype() == DType::f32) return {};
  Shape shape = value.shape();
  shape[-1] *= 2;
  return state_zeros(shape, DType::i8, value.device(), offload);
}

View<std::int16_t> halves(const Tensor& low, const Tensor& value) {
  return {static_cast<std::int16_t*>(low.data()), value.shape()};
}

void check_parameters(const std::vector<TrainedParameter>& parameters) {
  for (const TrainedParameter& p : parameters) {
    const bool fits = p.value.dtype() == DType::f32 || p.value.dtype() == DType::bf16;
    if (!fits) fail("parameter {} is {}: f32 and bf16 are trained", p.name, name_of(p.value.dtype()));
  }
}

// What a rule keeps of each parameter, and the walk over those that have gradients.
class Rule : public Optimizer {
 public:
  struct Slot {
    std::vector<Tensor> moments;
    Tensor low;  // of bf16 parameters
  };

  Rule(const OptimizerOptions& options, std::vector<TrainedParameter> parameters,
       std::vector<std::string> moments)
      : options_(options), parameters_(std::move(parameters)), moments_(std::move(moments)) {
    for (const TrainedParameter& p : parameters_) {
      // State of the CPU's parameters is in host memory as it is.
      offload_ = options.offload && planned_device(p.value.device()) == Device::cuda;
      Slot slot{{}, low_half_of(p.value, offload_)};
      for (std::size_t i = 0; i < moments_.size(); ++i)
        slot.moments.push_back(state_zeros(p.value.shape(), options.moments, p.value.device(), offload_));
      slots_.push_back(std::move(slot));
    }
  }

  using Optimizer::step;
  void step(double lr, const GradientScale& scale) override {
    ++steps_;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const Tensor grad = autograd::grad_of(parameters_[i].value);
      if (!grad.defined()) continue;
      if (!offload_) {
        update(i, slots_[i], grad.view<float>(), lr, scale);
        continue;
      }
      const Slot visitor = fetched(i);
      update(i, visitor, grad.view<float>(), lr, scale);
      put_back(visitor, slots_[i]);
    }
  }

  std::vector<StateTensor> state() const override {
    std::vector<StateTensor> all;
    if (offload_ && !parameters_.empty() && parameters_.front().value.device() == Device::cuda)
      cuda::synchronize(current_stream(Device::cuda));  // what comes back is there
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const std::string& name = parameters_[i].name;
      for (std::size_t m = 0; m < moments_.size(); ++m)
        all.push_back({name + "." + moments_[m], slots_[i].moments[m]});
      if (slots_[i].low.defined()) all.push_back({name + ".master_low", slots_[i].low});
    }
    return all;
  }

 protected:
  virtual void update(std::size_t i, const Slot& state, View<const float> grad, double lr,
                      const GradientScale& scale) = 0;

  Slot fetched(std::size_t i) const {
    const Device device = parameters_[i].value.device();
    Slot visitor;
    for (const Tensor& moment : slots_[i].moments) visitor.moments.push_back(fetch_state(moment, device));
    if (slots_[i].low.defined()) visitor.low = fetch_state(slots_[i].low, device);
    return visitor;
  }
  static void put_back(const Slot& visitor, const Slot& kept) {
    for (std::size_t m = 0; m < kept.moments.size(); ++m) return_state(visitor.moments[m], kept.moments[m]);
    if (kept.low.defined()) return_state(visitor.low, kept.low);
  }

  // The fields that every rule's kernel takes.
  template <class Step>
  Step common(std::size_t i, double lr, const GradientScale& scale) const {
    Step step;
    step.lr = lr;
    step.weight_decay = parameters_[i].decay ? options_.weight_decay : 0;
    step.step = steps_;
    step.grad_scale = scale.factor;
    step.norm = scale.norm.defined() ? scale.norm.view<double>().data : nullptr;
    step.clip = scale.clip;
    return step;
  }

  OptimizerOptions options_;
  std::vector<TrainedParameter> parameters_;
  std::vector<std::string> moments_;
  std::vector<Slot> slots_;
  bool offload_ = false;
};

class AdamW final : public Rule {
 public:
  AdamW(const OptimizerOptions& options, std::vector<TrainedParameter> parameters)
      : Rule(options, std::move(parameters), {"exp_avg", "exp_avg_sq"}) {}

 private:
  void update(std::size_t i, const Slot& s, View<const float> grad, double lr,
              const GradientScale& scale) override {
    if (options_.moments == DType::bf16) return update_as<bf16>(i, s, grad, lr, scale);
    update_as<float>(i, s, grad, lr, scale);
  }

  template <class M>
  void update_as(std::size_t i, const Slot& s, View<const float> grad, double lr,
                 const GradientScale& scale) {
    auto step = common<kernels::AdamWStep>(i, lr, scale);
    step.beta1 = options_.beta1;
    step.beta2 = options_.beta2;
    step.eps = options_.eps;
    step.parameter = parameters_[i].index;
    step.first = parameters_[i].first;
    const Tensor& value = parameters_[i].value;
    Stream& stream = current_stream(value.device());
    const View<M> m = s.moments[0].view<M>(), v = s.moments[1].view<M>();
    if (s.low.defined())
      return kernels::adamw<M>(stream, value.view<bf16>(), halves(s.low, value), grad, m, v, step);
    kernels::adamw<M>(stream, value.view<float>(), grad, m, v, step);
  }
};

class Sgd final : public Rule {
 public:
  Sgd(const OptimizerOptions& options, std::vector<TrainedParameter> parameters)
      : Rule(options, std::move(parameters),
             options.momentum > 0 ? std::vector<std::string>{"momentum"} : std::vector<std::string>{}) {}

 private:
  void update(std::size_t i, const Slot& s, View<const float> grad, double lr,
              const GradientScale& scale) override {
    auto step = common<kernels::SgdStep>(i, lr, scale);
    step.momentum = options_.momentum;
    step.nesterov = options_.nesterov;
    const Tensor& value = parameters_[i].value;
    Stream& stream = current_stream(value.device());
    const View<float> momentum = s.moments.empty() ? View<float>() : s.moments[0].view<float>();
    if (s.low.defined())
      return kernels::sgd(stream, value.view<bf16>(), halves(s.low, value), grad, momentum, step);
    kernels::sgd(stream, value.view<float>(), grad, momentum, step);
  }
};

}  // namespace

std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options,
                                          std::vector<TrainedParameter> parameters) {
  check_parameters(parameters);
  if (options.name == "adamw") return std::make_unique<AdamW>(options, std::move(parameters));
  require(options.moments == DType::f32, "optim.moments bf16 is for adamw, not {}", options.name);
  if (options.name == "sgd") return std::make_unique<Sgd>(options, std::move(parameters));
  fail_user("optim.name '{}' is unknown: use adamw or sgd", options.name);
}

Tensor norm_of(const std::vector<Tensor>& tensors) {
  check(!tensors.empty(), "a norm over tensors");
  const Device device = tensors.front().device();
  const Tensor sum = Tensor::zeros({1}, DType::f64, device);
  for (const Tensor& t : tensors) {
    visit_compute(t.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::add_sum_of_squares<T>(current_stream(device), t.view<T>(), sum.view<double>());
    });
  }
  kernels::sqrt<double>(current_stream(device), sum.view<double>(), sum.view<double>());
  return sum;
}

Tensor gradient_norm_tensor(const std::vector<TrainedParameter>& parameters) {
  check(!parameters.empty(), "a norm over parameters");
  std::vector<Tensor> grads;
  for (const TrainedParameter& p : parameters) {
    if (const Tensor grad = autograd::grad_of(p.value); grad.defined()) grads.push_back(grad);
  }
  return grads.empty() ? Tensor::zeros({1}, DType::f64, parameters.front().value.device()) : norm_of(grads);
}

double gradient_norm(const std::vector<TrainedParameter>& parameters) {
  if (parameters.empty()) return 0;
  const Tensor norm = gradient_norm_tensor(parameters);
  return norm.device() == Device::meta ? 0 : norm.item();
}

double clip_factor(double norm, double limit) {
  if (limit <= 0) return 1;
  return std::min(1.0, limit / (norm + 1e-6));
}

void clear_gradients(const std::vector<TrainedParameter>& parameters) {
  for (const TrainedParameter& p : parameters) autograd::leaf_of(p.value).grad = {};
}

}  // namespace ridge::optim
