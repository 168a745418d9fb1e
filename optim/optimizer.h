// Optimizers: what moves parameters along their gradients.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace ridge::optim {

/// A parameter to be trained: a leaf in f32, or in bf16 with an f32 master copy beside it.
struct TrainedParameter {
  std::string name;
  Tensor value;
  bool decay = true;  // whether weight decay applies
};

/// A tensor of the optimizer's state, by a name such as "NAME.exp_avg": f32.
struct StateTensor {
  std::string name;
  Tensor value;
};

struct OptimizerOptions {
  std::string name = "adamw";  // adamw | sgd
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.01;  // decoupled for adamw, L2 for sgd, as in PyTorch
  double momentum = 0;         // sgd
  bool nesterov = false;       // sgd
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// Moves every parameter that has a gradient; gradients are multiplied by `grad_scale` first.
  virtual void step(double lr, double grad_scale) = 0;
  /// Everything but the step count that a resumed run needs.
  virtual std::vector<StateTensor> state() const = 0;
  std::int64_t steps() const { return steps_; }
  void set_steps(std::int64_t steps) { steps_ = steps; }

 protected:
  std::int64_t steps_ = 0;
};

/// State starts at zero; master copies at the parameters' values.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options,
                                          std::vector<TrainedParameter> parameters);

/// The 2-norm over all gradients, summed in f64 in the order of parameters.
double gradient_norm(const std::vector<TrainedParameter>& parameters);

/// The factor that brings `norm` to at most `limit`, as torch.nn.utils.clip_grad_norm_ has it; 1 where limit
/// is 0.
double clip_factor(double norm, double limit);

/// Forgets all gradients.
void clear_gradients(const std::vector<TrainedParameter>& parameters);

}  // namespace ridge::optim
