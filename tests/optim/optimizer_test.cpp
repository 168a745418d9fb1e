#include "optim/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/adamw.h"
#include "tests/core/models/reference.h"
#include "tests/core/ops/jacobian.h"

namespace ridge::optim {
namespace {

using test::random_tensor;
using test::same_bits;

Tensor leaf(const Shape& shape, std::uint64_t stream, DType dtype = DType::f32) {
  Tensor t = random_tensor(shape, stream, -1, 1, dtype);
  autograd::set_requires_grad(t, true);
  return t;
}

void set_grad(const Tensor& parameter, std::uint64_t stream, double spread = 1) {
  autograd::leaf_of(parameter).grad = random_tensor(parameter.shape(), stream, -spread, spread, DType::f32);
}

// The f32 master of a bf16 parameter and what its state keeps of it.
Tensor master_of(const Tensor& half, const Tensor& low) {
  const Tensor master = Tensor::empty(half.shape(), DType::f32, half.device());
  kernels::join_master(current_stream(half.device()), half.view<bf16>(),
                       {static_cast<const std::int16_t*>(low.data()), half.shape()}, master.view<float>());
  return master;
}

OptimizerOptions adamw() { return {"adamw", 0.9, 0.95, 1e-8, 0.1, 0, false}; }
OptimizerOptions sgd(double momentum, bool nesterov = false) {
  return {"sgd", 0, 0, 0, 0.1, momentum, nesterov};
}

// PyTorch's AdamW in f64, of one element.
struct AdamWByHand {
  double p, m = 0, v = 0;
  void step(double g, double lr, double decay, int t) {
    p -= lr * decay * p;
    m = 0.9 * m + 0.1 * g;
    v = 0.95 * v + 0.05 * g * g;
    p -= lr / (1 - std::pow(0.9, t)) * m / (std::sqrt(v) / std::sqrt(1 - std::pow(0.95, t)) + 1e-8);
  }
};

TEST(AdamW, FollowsPyTorchWithAndWithoutDecay) {
  const Tensor decayed = leaf({3, 5}, 1), plain = leaf({5}, 2);
  std::vector<AdamWByHand> a, b;
  for (const double p : test::values_of(decayed)) a.push_back({p});
  for (const double p : test::values_of(plain)) b.push_back({p});
  const auto optimizer = make_optimizer(adamw(), {{"decayed", decayed, true}, {"plain", plain, false}});
  for (int t = 1; t <= 5; ++t) {
    set_grad(decayed, static_cast<std::uint64_t>(10 + t));
    set_grad(plain, static_cast<std::uint64_t>(20 + t));
    const double lr = 0.01 * t, scale = 0.5;
    const auto ga = test::values_of(autograd::grad_of(decayed)),
               gb = test::values_of(autograd::grad_of(plain));
    optimizer->step(lr, scale);
    EXPECT_EQ(optimizer->steps(), t);
    for (std::size_t i = 0; i < a.size(); ++i) a[i].step(scale * ga[i], lr, 0.1, t);
    for (std::size_t i = 0; i < b.size(); ++i) b[i].step(scale * gb[i], lr, 0, t);
  }
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(test::values_of(decayed)[i], a[i].p, 1e-6);
  for (std::size_t i = 0; i < b.size(); ++i) EXPECT_NEAR(test::values_of(plain)[i], b[i].p, 1e-6);
}

TEST(Sgd, FollowsPyTorchInEveryForm) {
  for (const auto& [momentum, nesterov] : {std::pair(0.0, false), {0.9, false}, {0.9, true}}) {
    const Tensor parameter = leaf({7}, 1);
    std::vector<double> p = test::values_of(parameter), m(7, 0);
    const auto optimizer = make_optimizer(sgd(momentum, nesterov), {{"p", parameter, true}});
    for (int t = 1; t <= 4; ++t) {
      set_grad(parameter, static_cast<std::uint64_t>(10 + t));
      const auto g = test::values_of(autograd::grad_of(parameter));
      optimizer->step(0.05, 2);
      for (std::size_t i = 0; i < p.size(); ++i) {
        const double with_decay = 2 * g[i] + 0.1 * p[i];
        m[i] = momentum * m[i] + with_decay;
        p[i] -= 0.05 * (momentum == 0 ? with_decay : nesterov ? with_decay + momentum * m[i] : m[i]);
      }
    }
    for (std::size_t i = 0; i < p.size(); ++i)
      EXPECT_NEAR(test::values_of(parameter)[i], p[i], 1e-6) << momentum;
  }
}

class Both : public ::testing::TestWithParam<const char*> {
 protected:
  static OptimizerOptions options() { return std::string(GetParam()) == "adamw" ? adamw() : sgd(0.9); }
};
INSTANTIATE_TEST_SUITE_P(All, Both, ::testing::Values("adamw", "sgd"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(Both, WithoutAGradientAParameterStays) {
  const Tensor moved = leaf({4}, 1), still = leaf({4}, 2);
  const Tensor before = still.contiguous_copy(), old = moved.contiguous_copy();
  const auto optimizer = make_optimizer(options(), {{"moved", moved, true}, {"still", still, true}});
  set_grad(moved, 3);
  optimizer->step(0.1, 1);
  EXPECT_TRUE(same_bits(still, before));
  EXPECT_FALSE(same_bits(moved, old));
}

TEST_P(Both, Bf16MovesByItsF32Master) {
  const Tensor half = leaf({64}, 1, DType::bf16);
  Tensor wide = half.detached().to(DType::f32);
  autograd::set_requires_grad(wide, true);
  const auto a = make_optimizer(options(), {{"p", half, true}}),
             b = make_optimizer(options(), {{"p", wide, true}});
  for (int t = 1; t <= 30; ++t) {  // steps too small for bf16 alone
    set_grad(half, static_cast<std::uint64_t>(t));
    set_grad(wide, static_cast<std::uint64_t>(t));
    a->step(1e-4, 1);
    b->step(1e-4, 1);
  }
  EXPECT_TRUE(same_bits(half, wide.to(DType::bf16)));
  const auto state = a->state();
  EXPECT_EQ(state.back().name, "p.master_low");
  EXPECT_TRUE(same_bits(master_of(half, state.back().value), wide));
}

void expect_carried_over(const OptimizerOptions& options) {
  const Tensor one = leaf({3, 4}, 1), half = leaf({5}, 2, DType::bf16);
  const auto run = [&](Optimizer& optimizer, const Tensor& a, const Tensor& b, int from, int to) {
    for (int t = from; t < to; ++t) {
      set_grad(a, static_cast<std::uint64_t>(10 + t));
      set_grad(b, static_cast<std::uint64_t>(20 + t));
      optimizer.step(0.02, 0.7);
    }
  };
  const auto optimizer = make_optimizer(options, {{"one", one, true}, {"half", half, false}});
  run(*optimizer, one, half, 0, 3);
  Tensor one_2 = one.contiguous_copy(), half_2 = half.contiguous_copy();
  autograd::set_requires_grad(one_2, true);
  autograd::set_requires_grad(half_2, true);
  const auto resumed = make_optimizer(options, {{"one", one_2, true}, {"half", half_2, false}});
  const auto from = optimizer->state(), to = resumed->state();
  ASSERT_EQ(from.size(), to.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    EXPECT_EQ(from[i].name, to[i].name);
    EXPECT_EQ(to[i].value.dtype(), to[i].name.ends_with(".master_low") ? DType::i8 : options.moments);
    to[i].value.copy_from(from[i].value);
  }
  resumed->set_steps(optimizer->steps());
  run(*optimizer, one, half, 3, 6);
  run(*resumed, one_2, half_2, 3, 6);
  EXPECT_TRUE(same_bits(one, one_2));
  EXPECT_TRUE(same_bits(half, half_2));
}

TEST_P(Both, AStateCarriedOverContinuesToTheBit) { expect_carried_over(options()); }

TEST_P(Both, StateCountsAsMoments) {
  const Tensor parameter = leaf({1 << 12}, 1);
  const auto moments = static_cast<std::size_t>(Purpose::moments);
  const auto live = [&] { return memory_stats(test::test_device()).live_by_purpose[moments]; };
  const std::int64_t before = live();
  const auto optimizer = make_optimizer(options(), {{"p", parameter, true}});
  const std::int64_t tensors = std::string(GetParam()) == "adamw" ? 2 : 1;
  EXPECT_EQ(live() - before, tensors * 4 << 12);
}

// A norm that stays on the device clips as its value would.
TEST_P(Both, ClippingByANormOnTheDeviceIsClippingByItsValue) {
  for (const double clip : {0.0, 0.5, 1e6}) {
    const Tensor a = leaf({33}, 1), b = leaf({33}, 1);
    const std::vector<TrainedParameter> there{{"p", a, true}}, here{{"p", b, true}};
    const auto one = make_optimizer(options(), there), two = make_optimizer(options(), here);
    for (int t = 1; t <= 3; ++t) {
      set_grad(a, static_cast<std::uint64_t>(t));
      set_grad(b, static_cast<std::uint64_t>(t));
      one->step(0.1, GradientScale{1, gradient_norm_tensor(there), clip});
      two->step(0.1, clip_factor(gradient_norm(here), clip));
    }
    EXPECT_LE(test::max_difference(a, b), 1e-6) << clip;
  }
}

TEST_P(Both, NothingMovesByANormThatIsNotFinite) {
  const Tensor p = leaf({33}, 1), half = leaf({33}, 2, DType::bf16);
  const auto optimizer = make_optimizer(options(), {{"p", p, true}, {"half", half, true}});
  const auto step = [&](double norm) {
    set_grad(p, 3);
    set_grad(half, 4);
    optimizer->step(0.1, GradientScale{1, Tensor::full({1}, norm, DType::f64, p.device()), 1});
  };
  step(2);
  std::vector<Tensor> before{p.contiguous_copy(), half.contiguous_copy()};
  for (const StateTensor& s : optimizer->state()) before.push_back(s.value.contiguous_copy());
  for (const double norm : {std::numeric_limits<double>::infinity(), std::nan("")}) step(norm);
  std::vector<Tensor> after{p, half};
  for (const StateTensor& s : optimizer->state()) after.push_back(s.value);
  for (std::size_t i = 0; i < after.size(); ++i) EXPECT_TRUE(same_bits(after[i], before[i])) << i;
  step(2);
  EXPECT_FALSE(same_bits(p, before[0]));
}

// Moments in bf16, rounded stochastically: their mean over many steps is right, and their noise repeats.
struct Moved {
  Tensor value;
  std::vector<Tensor> state;
};

Moved move_with(DType moments, DType dtype, std::uint64_t gradients) {
  OptimizerOptions options = adamw();
  options.moments = moments;
  const Tensor p = leaf({501}, 1, dtype);
  const auto optimizer = make_optimizer(options, {{"other", leaf({3}, 2), true}, {"p", p, true}});
  for (std::uint64_t t = 1; t <= 50; ++t) {
    set_grad(p, gradients + t);
    optimizer->step(0.01, 1);
  }
  Moved out{p.detached(), {}};
  for (const StateTensor& s : optimizer->state()) {
    if (s.name.starts_with("p.")) out.state.push_back(s.value);
  }
  return out;
}

TEST(Bf16Moments, MoveCloseToWhereF32MomentsDo) {
  const Tensor start = random_tensor({501}, 1, -1, 1, DType::f32);
  const Moved wide = move_with(DType::f32, DType::f32, 100), half = move_with(DType::bf16, DType::f32, 100);
  EXPECT_EQ(half.state[0].dtype(), DType::bf16);
  EXPECT_EQ(half.state[1].dtype(), DType::bf16);
  const auto from = test::values_of(start), a = test::values_of(wide.value), b = test::values_of(half.value);
  double moved = 0, apart = 0, mean = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    moved += (a[i] - from[i]) * (a[i] - from[i]);
    apart += (b[i] - a[i]) * (b[i] - a[i]);
    mean += b[i] - a[i];
  }
  const double n = static_cast<double>(a.size());
  EXPECT_LE(std::sqrt(apart / moved), 0.03);
  EXPECT_GT(apart, 0);                                       // it does round
  EXPECT_LE(std::fabs(mean / n), 4 * std::sqrt(apart) / n);  // to no side
  EXPECT_LE(test::normalized_error(half.state[0], wide.state[0]), 0.05);
  EXPECT_LE(test::normalized_error(half.state[1], wide.state[1]), 0.05);
}

TEST(Bf16Moments, RepeatToTheBit) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Moved one = move_with(DType::bf16, dtype, 100), same = move_with(DType::bf16, dtype, 100),
                other = move_with(DType::bf16, dtype, 200);
    EXPECT_TRUE(same_bits(one.value, same.value));
    EXPECT_FALSE(same_bits(one.value, other.value));
    ASSERT_EQ(one.state.size(), dtype == DType::f32 ? 2u : 3u);
    for (std::size_t i = 0; i < one.state.size(); ++i)
      EXPECT_TRUE(same_bits(one.state[i], same.state[i])) << i;
  }
}

TEST(Bf16Moments, ABf16ParameterMovesByItsMasterAsWell) {
  // the same start in both types: what bf16 can hold
  const Moved half = move_with(DType::bf16, DType::bf16, 100);
  Tensor wide = random_tensor({501}, 1, -1, 1, DType::bf16).to(DType::f32);
  autograd::set_requires_grad(wide, true);
  OptimizerOptions options = adamw();
  options.moments = DType::bf16;
  const auto optimizer = make_optimizer(options, {{"other", leaf({3}, 2), true}, {"p", wide, true}});
  for (std::uint64_t t = 1; t <= 50; ++t) {
    set_grad(wide, 100 + t);
    optimizer->step(0.01, 1);
  }
  // a tie in the split of a master may cost an ulp
  EXPECT_LE(test::max_difference(master_of(half.value, half.state.back()), wide), 1e-6);
}

TEST(Bf16Moments, CarriedOverContinueToTheBit) {
  OptimizerOptions options = adamw();
  options.moments = DType::bf16;
  expect_carried_over(options);
}

TEST(Bf16Moments, AreForAdamwAlone) {
  OptimizerOptions options = sgd(0.9);
  options.moments = DType::bf16;
  EXPECT_THROW(make_optimizer(options, {{"p", leaf({2}, 1), true}}), UserError);
}

TEST(Bf16Moments, CountHalfAsMuch) {
  const Tensor parameter = leaf({1 << 12}, 1);
  const auto moments = static_cast<std::size_t>(Purpose::moments);
  const auto live = [&] { return memory_stats(test::test_device()).live_by_purpose[moments]; };
  const std::int64_t before = live();
  OptimizerOptions options = adamw();
  options.moments = DType::bf16;
  const auto optimizer = make_optimizer(options, {{"p", parameter, true}});
  EXPECT_EQ(live() - before, 2 * 2 << 12);
}

TEST(Optimizer, StateIsNamedAfterTheParameters) {
  const std::vector<TrainedParameter> parameters{{"w", leaf({2}, 1), true},
                                                 {"h", leaf({3}, 2, DType::bf16), true}};
  const auto names = [&](const OptimizerOptions& options) {
    std::vector<std::string> all;
    for (const StateTensor& s : make_optimizer(options, parameters)->state()) all.push_back(s.name);
    return all;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names(adamw()),
            (Names{"w.exp_avg", "w.exp_avg_sq", "h.exp_avg", "h.exp_avg_sq", "h.master_low"}));
  EXPECT_EQ(names(sgd(0.9)), (Names{"w.momentum", "h.momentum", "h.master_low"}));
  EXPECT_EQ(names(sgd(0)), Names{"h.master_low"});
}

TEST(Optimizer, AnUnknownNameIsTheUsersError) {
  OptimizerOptions options;
  options.name = "adam";
  try {
    make_optimizer(options, {});
    FAIL();
  } catch (const UserError& error) {
    for (const char* part : {"optim.name", "adam", "adamw", "sgd"})
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos);
  }
}

TEST(Optimizer, WhatCannotBeTrainedIsAnError) {
  EXPECT_THROW(make_optimizer(adamw(), {{"wide", leaf({2}, 1, DType::f64), true}}), Error);
  EXPECT_THROW(make_optimizer(adamw(), {{"int", Tensor::zeros({2}, DType::i32, test::test_device()), true}}),
               Error);
}

TEST(GradientNorm, IsOverAllElementsOfAllGradients) {
  const Tensor a = leaf({3, 7}, 1), b = leaf({5}, 2, DType::bf16), none = leaf({4}, 3);
  set_grad(a, 4, 1000);
  set_grad(b, 5, 1e-3);
  double sum = 0;
  for (const Tensor& t : {a, b}) {
    for (const double g : test::values_of(autograd::grad_of(t))) sum += g * g;
  }
  const std::vector<TrainedParameter> parameters{{"a", a, true}, {"none", none, true}, {"b", b, false}};
  EXPECT_NEAR(gradient_norm(parameters), std::sqrt(sum), 1e-9 * std::sqrt(sum));
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  autograd::grad_of(b).sliced(0, 0, 1).copy_from(Tensor::from(std::vector<float>{kNan}, {1}));
  EXPECT_TRUE(std::isnan(gradient_norm(parameters)));
  clear_gradients(parameters);
  EXPECT_FALSE(autograd::grad_of(a).defined());
  EXPECT_EQ(gradient_norm(parameters), 0);
}

TEST(GradientNorm, LargeGradientsDoNotOverflow) {
  const Tensor a = leaf({2}, 1);
  autograd::leaf_of(a).grad = Tensor::full({2}, 3e30, DType::f32, a.device());
  EXPECT_NEAR(gradient_norm({{"a", a, true}}) / (std::sqrt(2.0) * 3e30), 1, 1e-6);
}

TEST(ClipFactor, AsPyTorch) {
  EXPECT_EQ(clip_factor(5, 0), 1);
  EXPECT_EQ(clip_factor(0.5, 1), 1);
  EXPECT_DOUBLE_EQ(clip_factor(4, 1), 1 / (4 + 1e-6));
  EXPECT_EQ(clip_factor(0, 1), 1);
  EXPECT_DOUBLE_EQ(clip_factor(1, 1), 1 / (1 + 1e-6));
}

}  // namespace
}  // namespace ridge::optim
