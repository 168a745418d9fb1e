// What ops that multiply by weights are made of: products, and the gradients of weights in their place.
#pragma once

#include <vector>

#include "core/autograd.h"
#include "core/tensor.h"

namespace ridge::ops::detail {

/// [..., C] as [R, C]; copies where x is not contiguous.
Tensor rows(const Tensor& x);
Shape with_last(Shape shape, std::int64_t last);
void check_same(const Tensor& a, const Tensor& b, const char* op);

/// c = alpha a b + beta c in the inputs' dtype; a and c [M, .], or [P, M, .] for a batch with one b.
void multiply(const Tensor& a, const Tensor& b, const Tensor& c, double alpha = 1, double beta = 0);
/// [M, K] [K, N]
Tensor product(const Tensor& a, const Tensor& b);
/// y [..., N] += bias [N]
void add_bias(const Tensor& y, const Tensor& bias);
/// [R, N] to [N]
Tensor sum_rows(const Tensor& dy_RN);
/// alpha a b as the gradient of input i, in the accumulation type: written or added to its leaf where it is
/// one, else returned.
Tensor weight_gradient(const autograd::PassContext& pass, std::size_t i, const Tensor& a, const Tensor& b,
                       double alpha = 1);

/// Weights [N_i, K] of one input, whose outputs lie side by side; those that do so in memory too take part in
/// one product. M rows, N = sum of N_i.
class WeightGroup {
 public:
  WeightGroup() = default;
  /// An Error where a weight does not fit x [..., K].
  WeightGroup(const Tensor& x, std::vector<Tensor> weights);

  std::size_t count() const { return first_.size() - 1; }
  std::int64_t outputs() const { return first_.back(); }
  /// The columns of member i in [..., N].
  Tensor columns(const Tensor& t, std::size_t i) const;
  /// Forgets the weights: no more products.
  void drop() { weights_.clear(); }

  /// y [M, N] = x [M, K] w'; both may be batches [P, M, .] with dense rows.
  void product(const Tensor& x, const Tensor& y) const;
  /// dx [M, K] = dy [M, N] w + beta dx; both may be batches.
  void input_gradient(const Tensor& dy, const Tensor& dx, double beta = 0) const;

  /// Of an op whose inputs are x, the weights, the biases: whether a weight wants a gradient.
  bool any_trained(const autograd::Needs& needs) const;
  /// Its gradients of weights, now or when the queue of deferred ones is run, and of biases.
  void weight_gradients(const Tensor& dy_MN, const autograd::Saved& x_MK, const autograd::Needs& needs,
                        const autograd::PassContext& pass, autograd::Grads& grads) const;

 private:
  std::vector<Tensor> weights_;
  std::vector<std::int64_t> first_ = {0};  // column where a member begins, then their sum
};

}  // namespace ridge::ops::detail
