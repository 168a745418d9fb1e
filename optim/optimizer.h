// Optimizers: what moves parameters along their gradients.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace ridge::optim {

/// A parameter to be trained: a leaf in f32, or in bf16 with the rest of an f32 master beside it.
struct TrainedParameter {
  std::string name;
  Tensor value;
  bool decay = true;        // whether weight decay applies
  std::uint64_t index = 0;  // its place among the model's parameters: names its noise
  std::int64_t first = 0;   // of a shard: the place of its element 0 in the parameter, a multiple of 4
};

/// A tensor of the optimizer's state, by a name such as "NAME.exp_avg": f32 or bf16. "NAME.master_low" holds
/// the 16 bits (i8 [..., 2 C]) by which an f32 master differs from the bf16 parameter: kernels/adamw.h.
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
  DType moments = DType::f32;  // adamw: or bf16, rounded stochastically
  bool offload = false;        // of a GPU: state lives in host memory, and visits for each update
};

/// What gradients are multiplied by before they are used: `factor`, and, where `norm` is there (f64 [1] on
/// the parameters' device), min(1, clip / norm). Nothing moves where that norm is not finite.
struct GradientScale {
  double factor = 1;
  Tensor norm = {};
  double clip = 0;  // 0: no limit
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// Moves every parameter that has a gradient. Queued: the host does not wait.
  virtual void step(double lr, const GradientScale& scale) = 0;
  void step(double lr, double factor) { step(lr, GradientScale{factor}); }
  /// Everything but the step count that a resumed run needs; on the CPU where it is offloaded.
  virtual std::vector<StateTensor> state() const = 0;
  std::int64_t steps() const { return steps_; }
  void set_steps(std::int64_t steps) { steps_ = steps; }

 protected:
  std::int64_t steps_ = 0;
};

/// State starts at zero; master copies at the parameters' values.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options,
                                          std::vector<TrainedParameter> parameters);

/// The 2-norm over all elements of `tensors`, of one device: f64 [1] there.
Tensor norm_of(const std::vector<Tensor>& tensors);
/// The 2-norm over all gradients, summed in f64 in the order of parameters: f64 [1] on their device.
Tensor gradient_norm_tensor(const std::vector<TrainedParameter>& parameters);
/// Its value; waits for a GPU.
double gradient_norm(const std::vector<TrainedParameter>& parameters);

/// The factor that brings `norm` to at most `limit`, as torch.nn.utils.clip_grad_norm_ has it; 1 where limit
/// is 0.
double clip_factor(double norm, double limit);

/// Forgets all gradients.
void clear_gradients(const std::vector<TrainedParameter>& parameters);

}  // namespace ridge::optim
