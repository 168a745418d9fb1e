#include "core/ops/elementwise.h"

#include "core/ops/reduce.h"
#include "core/ops/shape.h"
#include "core/random_state.h"
#include "tests/core/ops/jacobian.h"

namespace ridge {
namespace {

using test::check_vjp;
using test::random_tensor;

TEST(ElementwiseVjp, BinaryOpsBroadcast) {
  const std::vector<Tensor> in{random_tensor({2, 3, 5}, 1, 0.5, 2), random_tensor({3, 1}, 2, 0.5, 2)};
  check_vjp([](auto& x) { return ops::add(x[0], x[1]); }, in);
  check_vjp([](auto& x) { return ops::sub(x[0], x[1]); }, in);
  check_vjp([](auto& x) { return ops::mul(x[0], x[1]); }, in);
  check_vjp([](auto& x) { return ops::div(x[0], x[1]); }, in);
}

TEST(ElementwiseVjp, UnaryOps) {
  const std::vector<Tensor> in{random_tensor({3, 7}, 1, 0.5, 2)};
  check_vjp([](auto& x) { return ops::exp(x[0]); }, in);
  check_vjp([](auto& x) { return ops::log(x[0]); }, in);
  check_vjp([](auto& x) { return ops::sqrt(x[0]); }, in);
  check_vjp([](auto& x) { return ops::tanh(x[0]); }, in);
  check_vjp([](auto& x) { return ops::sigmoid(x[0]); }, in);
  check_vjp([](auto& x) { return ops::scale(x[0], -2.5); }, in);
}

TEST(ElementwiseVjp, AddScaled) {
  check_vjp([](auto& x) { return ops::add_scaled(x[0], x[1], 0.3); },
            {random_tensor({3, 5}, 1), random_tensor({3, 5}, 2)});
}

TEST(ElementwiseVjp, TheSameInputTwice) {
  check_vjp([](auto& x) { return ops::mul(x[0], x[0]); }, {random_tensor({3, 5}, 1)});
}

TEST(DropoutVjp, TheMaskOfTheForwardPass) {
  check_vjp(
      [](auto& x) {
        random_state() = {1, 2, 0, 0};
        return ops::dropout(x[0], 0.4);
      },
      {random_tensor({5, 7}, 1)});
}

TEST(Dropout, RowsDependOnTheirPlaceInTheGlobalBatchAlone) {
  const Tensor x = Tensor::full({6, 50}, 1, DType::f32, test::test_device());
  random_state() = {1, 2, 0, 0};
  const Tensor whole = ops::dropout(x, 0.5);
  random_state() = {1, 2, 4, 0};
  const Tensor tail = ops::dropout(x.sliced(0, 4, 6), 0.5);
  test::expect_close(tail, whole.sliced(0, 4, 6), 0, "last rows");
  double sum = 0;
  const Tensor here = whole.on(Device::cpu);
  for (const float value : here.span<float>()) sum += static_cast<double>(value);
  EXPECT_NEAR(sum / 300, 1, 0.2);
}

TEST(ReduceVjp, SumMeanAndSumTo) {
  const std::vector<Tensor> in{random_tensor({2, 3, 5}, 1)};
  check_vjp([](auto& x) { return ops::sum(x[0]); }, in);
  check_vjp([](auto& x) { return ops::mean(x[0]); }, in);
  check_vjp([](auto& x) { return ops::sum_to(x[0], {3, 1}); }, in);
}

TEST(ShapeVjp, Views) {
  const std::vector<Tensor> in{random_tensor({2, 3, 5}, 1)};
  check_vjp([](auto& x) { return ops::reshape(x[0], {6, -1}); }, in);
  check_vjp([](auto& x) { return ops::transpose(x[0], 0, 2); }, in);
  check_vjp([](auto& x) { return ops::slice(x[0], 1, 1, 3); }, in);
  check_vjp([](auto& x) { return ops::concat(x[0], ops::scale(x[0], 2), 1); }, in);
  check_vjp([](auto& x) { return ops::cast(ops::cast(x[0], DType::f64), DType::f64); }, in);
}

TEST(Broadcast, ShapesThatDoNotFitAreNamed) {
  EXPECT_THROW(ops::add(random_tensor({2, 3}, 1), random_tensor({4}, 2)), Error);
}

}  // namespace
}  // namespace ridge
