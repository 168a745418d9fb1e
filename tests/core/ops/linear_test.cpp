#include "core/ops/linear.h"

#include <algorithm>
#include <cstring>

#include "core/base/profiler.h"
#include "core/ops/elementwise.h"
#include "core/ops/shape.h"
#include "tests/core/ops/jacobian.h"

namespace ridge {
namespace {

using test::check_vjp;
using test::random_tensor;

TEST(LinearVjp, OddSizesWithBias) {
  check_vjp([](auto& in) { return ops::linear(in[0], in[1], in[2]); },
            {random_tensor({2, 3, 5}, 1), random_tensor({7, 5}, 2), random_tensor({7}, 3)});
}

TEST(LinearVjp, WithoutBias) {
  check_vjp([](auto& in) { return ops::linear(in[0], in[1]); },
            {random_tensor({1, 9}, 1), random_tensor({3, 9}, 2)});
}

TEST(MatmulVjp, PlainAndTransposed) {
  check_vjp([](auto& in) { return ops::matmul(in[0], in[1]); },
            {random_tensor({3, 5}, 1), random_tensor({5, 4}, 2)});
}

TEST(Linear, FrozenWeightGetsNoGradient) {
  Tensor x = random_tensor({2, 3}, 1);
  const Tensor w = random_tensor({4, 3}, 2);
  autograd::set_requires_grad(x, true);
  autograd::backward(ops::linear(x, w), random_tensor({2, 4}, 3));
  EXPECT_TRUE(autograd::grad_of(x).defined());
  EXPECT_FALSE(autograd::grad_of(w).defined());
}

TEST(Linear, Bf16WeightsHaveF32GradientsCloseToF64) {
  const Tensor x = random_tensor({33, 65}, 1), w = random_tensor({17, 65}, 2),
               dy = random_tensor({33, 17}, 3);
  const auto gradient = [&](DType dtype) {
    Tensor weight = w.to(dtype);
    autograd::set_requires_grad(weight, true);
    autograd::backward(ops::linear(x.to(dtype), weight), dy.to(dtype));
    return autograd::grad_of(weight);
  };
  EXPECT_EQ(gradient(DType::bf16).dtype(), DType::f32);
  test::expect_close(gradient(DType::bf16), gradient(DType::f64), 1e-2, "bf16 weight gradient");
}

const std::vector<std::int64_t> kOuts{4, 3, 2};  // outputs of the members of a group
constexpr std::int64_t kIn = 5, kAllOuts = 9;

TEST(LinearGroupVjp, WeightsApart) {
  check_vjp(
      [](auto& in) {
        return ops::linear_group(in[0], {in[1], in[2], in[3]}, {in[4], {}, in[5]});
      },
      {random_tensor({2, 3, kIn}, 1), random_tensor({4, kIn}, 2), random_tensor({3, kIn}, 3),
       random_tensor({2, kIn}, 4), random_tensor({4}, 5), random_tensor({2}, 6)});
}

TEST(LinearGroupVjp, WeightsSideBySide) {
  check_vjp(
      [](auto& in) {
        const Tensor &w = in[1], &b = in[2];
        return ops::linear_group(in[0],
                                 {ops::slice(w, 0, 0, 4), ops::slice(w, 0, 4, 7), ops::slice(w, 0, 7, 9)},
                                 {ops::slice(b, 0, 0, 4), ops::slice(b, 0, 4, 7), ops::slice(b, 0, 7, 9)});
      },
      {random_tensor({2, 3, kIn}, 1), random_tensor({kAllOuts, kIn}, 2), random_tensor({kAllOuts}, 3)});
}

// A group whose weights, and the places of their gradients, are parts of one block of memory or tensors of
// their own.
struct Group {
  Group(DType dtype, bool together) : x(random_tensor({6, kIn}, 1, -1, 1, dtype)) {
    const Tensor whole = random_tensor({kAllOuts, kIn}, 2, -1, 1, dtype);
    const Tensor places =
        Tensor::full({kAllOuts, kIn}, 1e30, dtype == DType::bf16 ? DType::f32 : dtype, test::test_device());
    autograd::set_requires_grad(x, true);
    std::int64_t row = 0;
    for (const std::int64_t out : kOuts) {
      const Tensor part = whole.sliced(0, row, row + out);
      weights.push_back(together ? part : part.contiguous_copy());
      autograd::set_requires_grad(weights.back(), true);
      if (together) autograd::leaf_of(weights.back()).buffer = places.sliced(0, row, row + out);
      row += out;
    }
  }
  Tensor forward() const { return ops::linear_group(x, weights, std::vector<Tensor>(weights.size())); }
  void backward(std::uint64_t stream) const {
    autograd::backward(forward(), random_tensor({6, kAllOuts}, stream, -1, 1, x.dtype()));
  }
  std::vector<Tensor> gradients() const {
    std::vector<Tensor> all{autograd::grad_of(x)};
    for (const Tensor& w : weights) all.push_back(autograd::grad_of(w));
    return all;
  }
  Tensor x;
  std::vector<Tensor> weights;
};

void expect_same_gradients(const Group& got, const Group& want, double tolerance) {
  const auto a = got.gradients(), b = want.gradients();
  for (std::size_t i = 0; i < a.size(); ++i)
    test::expect_close(a[i], b[i], tolerance, "gradient " + std::to_string(i));
}

template <class F>
std::int64_t products_of(F&& f) {
  Profiler profiler;
  const ProfilerScope scope(test::test_stream(), &profiler);
  f();
  const std::vector<LaunchRecord>& records = profiler.records();
  return std::count_if(records.begin(), records.end(),
                       [](const LaunchRecord& r) { return std::strcmp(r.op, "matmul") == 0; });
}

class LinearGroup : public testing::TestWithParam<DType> {
 protected:
  // bf16: of members apart the input's gradient is rounded after each.
  double tolerance() const {
    return GetParam() == DType::f64 ? 1e-14 : GetParam() == DType::f32 ? 2e-6 : 2e-2;
  }
};
INSTANTIATE_TEST_SUITE_P(Types, LinearGroup, testing::Values(DType::f64, DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(LinearGroup, SideBySideGivesTheSameInOneProductEach) {
  const Group together(GetParam(), true), apart(GetParam(), false);
  test::expect_close(together.forward(), apart.forward(), tolerance(), "values");
  EXPECT_EQ(products_of([&] { together.backward(3); }), 3);  // values, the input's gradient, the weights'
  EXPECT_EQ(products_of([&] { apart.backward(3); }), 9);
  expect_same_gradients(together, apart, tolerance());
  for (const Tensor& w : together.weights)
    EXPECT_EQ(autograd::grad_of(w).storage(), autograd::leaf_of(w).buffer.storage());
}

TEST_P(LinearGroup, ASecondPassAddsWhereverGradientsLie) {
  const Group together(GetParam(), true), apart(GetParam(), false), first(GetParam(), false),
      second(GetParam(), false);
  for (const std::uint64_t stream : {3, 4}) {
    EXPECT_EQ(products_of([&] { together.backward(stream); }), 3);
    apart.backward(stream);
  }
  expect_same_gradients(together, apart, tolerance());
  first.backward(3);
  second.backward(4);
  const auto sums = apart.gradients(), a = first.gradients(), b = second.gradients();
  for (std::size_t i = 0; i < sums.size(); ++i)
    test::expect_close(sums[i], ops::add(a[i], b[i]), tolerance(), "sum " + std::to_string(i));
}

// One member's gradient is there already, so that one is added to and the others are written.
TEST_P(LinearGroup, MembersThatStandDifferentlyAreFilledOneByOne) {
  const Group together(GetParam(), true), apart(GetParam(), false);
  for (const Group* group : {&together, &apart}) {
    autograd::backward(ops::linear(group->x, group->weights[1]),
                       random_tensor({6, kOuts[1]}, 7, -1, 1, GetParam()));
    group->backward(3);
  }
  expect_same_gradients(together, apart, tolerance());
}

TEST_P(LinearGroup, AFrozenMemberLeavesTheOthersAlone) {
  Group together(GetParam(), true), apart(GetParam(), false);
  for (Group* group : {&together, &apart}) {
    autograd::set_requires_grad(group->weights[1], false);
    group->backward(3);
    EXPECT_FALSE(autograd::grad_of(group->weights[1]).defined());
  }
  for (const std::size_t i : {0, 2})
    test::expect_close(autograd::grad_of(together.weights[i]), autograd::grad_of(apart.weights[i]),
                       tolerance(), "gradient " + std::to_string(i));
}

TEST_P(LinearGroup, GradientsThatAreAskedForLeaveTheirPlacesAlone) {
  const Group together(GetParam(), true), apart(GetParam(), false);
  const Tensor dy = random_tensor({6, kAllOuts}, 3, -1, 1, GetParam());
  std::vector<autograd::Edge> edges{together.x.edge()};
  for (const Tensor& w : together.weights) edges.push_back(w.edge());
  const auto got = autograd::gradients(together.forward(), dy, edges);
  apart.backward(3);
  const auto want = apart.gradients();
  for (std::size_t i = 0; i < got.size(); ++i)
    test::expect_close(got[i], want[i], tolerance(), "gradient " + std::to_string(i));
  for (const Tensor& w : together.weights) EXPECT_FALSE(autograd::grad_of(w).defined());
}

// y [2, 3, 11], x [2, 3, 5]; rank 3, onto columns 4 .. 7. It writes into y: a copy of it.
Tensor low_rank(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b) {
  return ops::add_low_rank(ops::scale(y, 1), x, a, b, 4, -1.3);
}

TEST(AddLowRankVjp, EveryInput) {
  check_vjp([](auto& in) { return low_rank(in[0], in[1], in[2], in[3]); },
            {random_tensor({2, 3, 11}, 1), random_tensor({2, 3, kIn}, 2), random_tensor({3, kIn}, 3),
             random_tensor({4, 3}, 4)});
}

TEST(AddLowRankVjp, BesideAFrozenBase) {
  const Tensor y = random_tensor({2, 3, 11}, 1), x = random_tensor({2, 3, kIn}, 2);
  check_vjp([&](auto& in) { return low_rank(y, x, in[0], in[1]); },
            {random_tensor({3, kIn}, 3), random_tensor({4, 3}, 4)});
  const Tensor a = random_tensor({3, kIn}, 3), b = random_tensor({4, 3}, 4);
  check_vjp([&](auto& in) { return low_rank(y, in[0], a, b); }, {x});
  check_vjp([&](auto& in) { return low_rank(y, x, in[0], b); }, {a});
  check_vjp([&](auto& in) { return low_rank(y, x, a, in[0]); }, {b});
}

// An adapter on each of two members, after the product of both.
TEST(AddLowRankVjp, OverAGroup) {
  check_vjp(
      [](auto& in) {
        Tensor y = ops::linear_group(in[0], {in[1], in[2]}, {{}, {}});
        y = ops::add_low_rank(y, in[0], in[3], in[4], 0, 0.5);
        return ops::add_low_rank(y, in[0], in[5], in[6], 4, 2);
      },
      {random_tensor({3, kIn}, 1), random_tensor({4, kIn}, 2), random_tensor({3, kIn}, 3),
       random_tensor({2, kIn}, 4), random_tensor({4, 2}, 5), random_tensor({1, kIn}, 6),
       random_tensor({3, 1}, 7)});
}

TEST(AddLowRank, WorksInPlaceOnItsColumnsAlone) {
  const Tensor y = random_tensor({2, 3, 11}, 1), x = random_tensor({2, 3, kIn}, 2),
               a = random_tensor({3, kIn}, 3), b = random_tensor({4, 3}, 4);
  const Tensor before = y.contiguous_copy();
  const Tensor after = ops::add_low_rank(y, x, a, b, 4, -1.3);
  EXPECT_EQ(after.data(), y.data());
  test::expect_close(after.sliced(2, 0, 4), before.sliced(2, 0, 4), 0, "columns before");
  test::expect_close(after.sliced(2, 8, 11), before.sliced(2, 8, 11), 0, "columns after");
  const Tensor low = ops::matmul(ops::linear(x, a).reshaped({6, 3}), b.transposed(0, 1));
  test::expect_close(after.sliced(2, 4, 8),
                     ops::add_scaled(before.sliced(2, 4, 8), low.reshaped({2, 3, 4}), -1.3), 1e-14,
                     "columns");
}

// Adapters are kept in f32 whatever the model's type; gradients are written to their places and added to.
TEST(AddLowRank, F32AdaptersOfAnF64ModelCollectOverTwoPasses) {
  const Tensor x = random_tensor({6, kIn}, 2), dy = random_tensor({6, 4}, 5);
  const auto gradient = [&](DType dtype) {
    Tensor a = random_tensor({3, kIn}, 3, -1, 1, DType::f32).to(dtype);
    const Tensor b = random_tensor({4, 3}, 4, -1, 1, DType::f32).to(dtype);
    autograd::set_requires_grad(a, true);
    for (int pass = 0; pass < 2; ++pass)
      autograd::backward(ops::add_low_rank(random_tensor({6, 4}, 1), x, a, b, 0, 0.5), dy);
    return autograd::grad_of(a);
  };
  EXPECT_EQ(gradient(DType::f32).dtype(), DType::f32);
  test::expect_close(gradient(DType::f32), gradient(DType::f64), 1e-6, "gradient of an f32 adapter");
}
TEST(AddLowRank, F32AdaptersOfABf16ModelCollectF32Gradients) {
  const Tensor y = random_tensor({6, 11}, 1), x = random_tensor({6, kIn}, 2);
  const auto run = [&](DType dtype, DType adapters) {
    Tensor a = random_tensor({3, kIn}, 3, -1, 1, adapters), b = random_tensor({4, 3}, 4, -1, 1, adapters);
    for (Tensor* t : {&a, &b}) {
      autograd::set_requires_grad(*t, true);
      autograd::leaf_of(*t).buffer = Tensor::full(t->shape(), 1e30, adapters, test::test_device());
    }
    for (const std::uint64_t stream : {5, 6})
      autograd::backward(low_rank(y.to(dtype), x.to(dtype), a, b),
                         random_tensor({6, 11}, stream, -1, 1, dtype));
    EXPECT_EQ(autograd::grad_of(a).storage(), autograd::leaf_of(a).buffer.storage());
    return std::pair(autograd::grad_of(a), autograd::grad_of(b));
  };
  const auto [da, db] = run(DType::bf16, DType::f32);
  const auto [da_f64, db_f64] = run(DType::f64, DType::f64);
  EXPECT_EQ(da.dtype(), DType::f32);
  test::expect_close(da, da_f64, 2e-2, "A's gradient");
  test::expect_close(db, db_f64, 2e-2, "B's gradient");
}

TEST(Linear, ShapesThatDoNotFitAreNamed) {
  try {
    ops::linear(random_tensor({2, 3}, 1), random_tensor({4, 5}, 2));
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("[2, 3]"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("[4, 5]"), std::string::npos);
  }
}

}  // namespace
}  // namespace ridge
