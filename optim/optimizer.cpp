#include "optim/optimizer.h"

#include <algorithm>
#include <cmath>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/adamw.h"
#include "kernels/reduce.h"

namespace ridge::optim {
namespace {

Tensor zeros_like(const Tensor& value) {
  const PurposeScope purpose(Purpose::moments);
  return Tensor::zeros(value.shape(), DType::f32, value.device());
}

// A bf16 parameter's f32 master; undefined for f32 parameters.
Tensor master_of(const Tensor& value) {
  const PurposeScope purpose(Purpose::moments);
  return value.dtype() == DType::f32 ? Tensor() : value.detached().to(DType::f32);
}

void check_parameters(const std::vector<TrainedParameter>& parameters) {
  for (const TrainedParameter& p : parameters) {
    const bool fits = p.value.dtype() == DType::f32 || p.value.dtype() == DType::bf16;
    if (!fits) fail("parameter {} is {}: f32 and bf16 are trained", p.name, name_of(p.value.dtype()));
  }
}

class AdamW final : public Optimizer {
 public:
  AdamW(const OptimizerOptions& options, std::vector<TrainedParameter> parameters)
      : options_(options), parameters_(std::move(parameters)) {
    for (const TrainedParameter& p : parameters_) {
      slots_.push_back({zeros_like(p.value), zeros_like(p.value), master_of(p.value)});
    }
  }

  void step(double lr, double grad_scale) override {
    ++steps_;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const TrainedParameter& p = parameters_[i];
      const Tensor grad = autograd::grad_of(p.value);
      if (!grad.defined()) continue;
      const Slot& s = slots_[i];
      const kernels::AdamWStep step{
          lr,     options_.beta1, options_.beta2, options_.eps, p.decay ? options_.weight_decay : 0,
          steps_, grad_scale};
      Stream& stream = current_stream(p.value.device());
      const View<const float> g = grad.view<float>();
      if (s.master.defined()) {
        kernels::adamw(stream, s.master.view<float>(), g, s.m.view<float>(), s.v.view<float>(),
                       p.value.view<bf16>(), step);
      } else {
        kernels::adamw(stream, p.value.view<float>(), g, s.m.view<float>(), s.v.view<float>(), step);
      }
    }
  }

  std::vector<StateTensor> state() const override {
    std::vector<StateTensor> all;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const std::string& name = parameters_[i].name;
      all.push_back({name + ".exp_avg", slots_[i].m});
      all.push_back({name + ".exp_avg_sq", slots_[i].v});
      if (slots_[i].master.defined()) all.push_back({name + ".master", slots_[i].master});
    }
    return all;
  }

 private:
  struct Slot {
    Tensor m, v, master;
  };
  OptimizerOptions options_;
  std::vector<TrainedParameter> parameters_;
  std::vector<Slot> slots_;
};

class Sgd final : public Optimizer {
 public:
  Sgd(const OptimizerOptions& options, std::vector<TrainedParameter> parameters)
      : options_(options), parameters_(std::move(parameters)) {
    for (const TrainedParameter& p : parameters_) {
      slots_.push_back({options_.momentum > 0 ? zeros_like(p.value) : Tensor(), master_of(p.value)});
    }
  }

  void step(double lr, double grad_scale) override {
    ++steps_;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const TrainedParameter& p = parameters_[i];
      const Tensor grad = autograd::grad_of(p.value);
      if (!grad.defined()) continue;
      const Slot& s = slots_[i];
      const kernels::SgdStep step{
          lr,     options_.momentum, 0, p.decay ? options_.weight_decay : 0, options_.nesterov,
          steps_, grad_scale};
      const View<float> momentum = s.momentum.defined() ? s.momentum.view<float>() : View<float>();
      Stream& stream = current_stream(p.value.device());
      if (s.master.defined()) {
        kernels::sgd(stream, s.master.view<float>(), grad.view<float>(), momentum, p.value.view<bf16>(),
                     step);
      } else {
        kernels::sgd(stream, p.value.view<float>(), grad.view<float>(), momentum, step);
      }
    }
  }

  std::vector<StateTensor> state() const override {
    std::vector<StateTensor> all;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (slots_[i].momentum.defined())
        all.push_back({parameters_[i].name + ".momentum", slots_[i].momentum});
      if (slots_[i].master.defined()) all.push_back({parameters_[i].name + ".master", slots_[i].master});
    }
    return all;
  }

 private:
  struct Slot {
    Tensor momentum, master;
  };
  OptimizerOptions options_;
  std::vector<TrainedParameter> parameters_;
  std::vector<Slot> slots_;
};

}  // namespace

std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options,
                                          std::vector<TrainedParameter> parameters) {
  check_parameters(parameters);
  if (options.name == "adamw") return std::make_unique<AdamW>(options, std::move(parameters));
  if (options.name == "sgd") return std::make_unique<Sgd>(options, std::move(parameters));
  fail_user("optim.name '{}' is unknown: use adamw or sgd", options.name);
}

double gradient_norm(const std::vector<TrainedParameter>& parameters) {
  double sum = 0;
  for (const TrainedParameter& p : parameters) {
    const Tensor grad = autograd::grad_of(p.value);
    if (!grad.defined()) continue;
    visit_compute(grad.dtype(), [&]<class T>(std::type_identity<T>) {
      sum += kernels::sum_of_squares<T>(current_stream(grad.device()), grad.view<T>());
    });
  }
  return std::sqrt(sum);
}

double clip_factor(double norm, double limit) {
  if (limit <= 0) return 1;
  return std::min(1.0, limit / (norm + 1e-6));
}

void clear_gradients(const std::vector<TrainedParameter>& parameters) {
  for (const TrainedParameter& p : parameters) autograd::leaf_of(p.value).grad = {};
}

}  // namespace ridge::optim
