#include "core/ops/loss.h"

#include "core/ops/linear.h"
#include "tests/core/ops/jacobian.h"

namespace ridge {
namespace {

using test::check_vjp;
using test::random_tensor;

Tensor targets(std::vector<std::int32_t> ids) {
  const auto n = static_cast<std::int64_t>(ids.size());
  return Tensor::from(ids, {n}).on(test::test_device());
}

TEST(CrossEntropyVjp, WithIgnoredRows) {
  const Tensor t = targets({2, -100, 0, 10});
  check_vjp([&](auto& in) { return ops::cross_entropy(in[0], t, 0.25); }, {random_tensor({4, 11}, 1, -3, 3)});
}

TEST(LinearCrossEntropyVjp, HiddenAndWeight) {
  const Tensor t = targets({2, -100, 0, 10, 4});
  check_vjp([&](auto& in) { return ops::linear_cross_entropy(in[0], in[1], t, 0.5); },
            {random_tensor({5, 3}, 1), random_tensor({11, 3}, 2)});
}

TEST(LinearCrossEntropy, ChunksGiveWhatThePlainLossGives) {
  // Enough rows and ids for several chunks.
  const std::int64_t R = 300, V = 40000, C = 8;
  std::vector<std::int32_t> ids;
  for (std::int64_t r = 0; r < R; ++r)
    ids.push_back(r % 7 == 0 ? -100 : static_cast<std::int32_t>(r * 131 % V));
  const Tensor t = targets(ids);
  Tensor hidden = random_tensor({R, C}, 1, -1, 1, DType::f32),
         weight = random_tensor({V, C}, 2, -1, 1, DType::f32);
  const auto run = [&](bool fused) {
    Tensor h = hidden.contiguous_copy(), w = weight.contiguous_copy();
    autograd::set_requires_grad(h, true);
    autograd::set_requires_grad(w, true);
    const Tensor loss =
        fused ? ops::linear_cross_entropy(h, w, t, 0.01) : ops::cross_entropy(ops::linear(h, w), t, 0.01);
    autograd::backward(loss);
    return std::vector<Tensor>{loss.detached(), autograd::grad_of(h), autograd::grad_of(w)};
  };
  const auto fused = run(true), plain = run(false);
  for (std::size_t i = 0; i < fused.size(); ++i)
    test::expect_close(fused[i], plain[i], 1e-5, "result " + std::to_string(i));
}

TEST(LinearCrossEntropy, UpstreamGradientScales) {
  const Tensor t = targets({1, 0});
  Tensor h = random_tensor({2, 3}, 1), w = random_tensor({4, 3}, 2);
  autograd::set_requires_grad(h, true);
  autograd::backward(ops::linear_cross_entropy(h, w, t, 1),
                     Tensor::full({}, 3, DType::f64, test::test_device()));
  Tensor h2 = h.detached();
  autograd::set_requires_grad(h2, true);
  autograd::backward(ops::linear_cross_entropy(h2, w, t, 3));
  test::expect_close(autograd::grad_of(h), autograd::grad_of(h2), 1e-12, "scaled gradient");
}

TEST(TokenLosses, SumToTheLoss) {
  const Tensor t = targets({2, -100, 0, 10, 4});
  const Tensor h = random_tensor({5, 3}, 1), w = random_tensor({11, 3}, 2);
  double sum = 0;
  const Tensor losses = ops::token_losses(h, w, t);
  const Tensor here = losses.on(Device::cpu);
  for (const double loss : here.span<double>()) sum += loss;
  EXPECT_EQ(here.span<double>()[1], 0);
  EXPECT_NEAR(sum, ops::linear_cross_entropy(h, w, t).item(), 1e-12);
}

}  // namespace
}  // namespace ridge
