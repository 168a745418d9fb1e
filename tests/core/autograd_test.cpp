#include "core/autograd.h"

#include "core/base/stream.h"
#include "core/ops/activation.h"
#include "core/ops/elementwise.h"
#include "core/ops/linear.h"
#include "core/ops/norm.h"
#include "core/ops/reduce.h"
#include "core/ops/shape.h"
#include "core/random_state.h"
#include "tests/core/ops/jacobian.h"

namespace ridge {
namespace {

using test::random_tensor;

Tensor leaf(const Shape& shape, std::uint64_t stream) {
  Tensor t = random_tensor(shape, stream);
  autograd::set_requires_grad(t, true);
  return t;
}

TEST(Autograd, GradientsAccumulateOverBackwardPasses) {
  const Tensor x = leaf({3}, 1);
  autograd::backward(ops::sum(ops::scale(x, 2)));
  autograd::backward(ops::sum(ops::scale(x, 3)));
  const Tensor grad = autograd::grad_of(x).on(Device::cpu);
  for (const double g : grad.span<double>()) EXPECT_DOUBLE_EQ(g, 5);
}

TEST(Autograd, DiamondSumsBothPaths) {
  const Tensor x = leaf({4}, 1);
  const Tensor a = ops::scale(x, 2);
  autograd::backward(ops::sum(ops::add(ops::mul(a, a), a)));  // 4 x^2 + 2 x
  for (std::size_t i = 0; i < 4; ++i)
    EXPECT_NEAR(autograd::grad_of(x).on(Device::cpu).span<double>()[i],
                8 * x.on(Device::cpu).span<double>()[i] + 2, 1e-12);
}

TEST(Autograd, AGradientThatIsSharedIsNotOverwritten) {
  const Tensor x = leaf({4}, 1), y = leaf({4}, 2);
  const Tensor sum = ops::add(x, y);  // its vjp hands one tensor to both
  autograd::backward(ops::sum(ops::mul(sum, sum)));
  autograd::backward(ops::sum(x));  // adds to x's gradient alone
  for (std::size_t i = 0; i < 4; ++i) {
    const double both = 2 * (x.on(Device::cpu).span<double>()[i] + y.on(Device::cpu).span<double>()[i]);
    EXPECT_NEAR(autograd::grad_of(y).on(Device::cpu).span<double>()[i], both, 1e-12);
    EXPECT_NEAR(autograd::grad_of(x).on(Device::cpu).span<double>()[i], both + 1, 1e-12);
  }
}

TEST(Autograd, HooksFireOnceWithTheWholeGradient) {
  const Tensor x = leaf({2}, 1);
  int calls = 0;
  double seen = 0;
  autograd::leaf_of(x).hooks.push_back([&](autograd::Leaf& l) {
    ++calls;
    seen = l.grad.on(Device::cpu).span<double>()[0];
  });
  autograd::backward(ops::sum(ops::add(ops::scale(x, 2), ops::scale(x, 5))));
  EXPECT_EQ(calls, 1);
  EXPECT_DOUBLE_EQ(seen, 7);
}

TEST(Autograd, NoGradRecordsNothing) {
  const Tensor x = leaf({2}, 1);
  const autograd::NoGradScope no_grad;
  EXPECT_FALSE(ops::scale(x, 2).requires_grad());
}

TEST(Autograd, BackwardTwiceIsAnError) {
  const Tensor y = ops::sum(ops::mul(leaf({2}, 1), leaf({2}, 2)));
  autograd::backward(y);
  EXPECT_THROW(autograd::backward(y), Error);
}

TEST(Autograd, SavedTensorsAreFreedAsBackwardPasses) {
  const Tensor x = leaf({1 << 16}, 1);
  const Tensor y = ops::sum(ops::exp(ops::exp(x)));
  const auto before = memory_stats(test::test_device()).live;
  autograd::backward(y);
  EXPECT_LT(memory_stats(test::test_device()).live, before);  // two saved results went, one gradient came
}

// A small network with dropout and a weight used inside and outside the recomputed part.
Tensor network(const Tensor& x, const Tensor& w, const Tensor& g, bool again) {
  random_state() = {3, 1, 0, 0};
  const auto inner = [w, g](const std::vector<Tensor>& in) {
    return ops::rms_norm(ops::dropout(ops::linear(in[0], w), 0.3), g, 1e-5);
  };
  const Tensor h = again ? autograd::recompute(inner, {x}) : inner({x});
  return ops::sum(ops::mul(ops::linear(h, w), ops::linear(h, w)));
}

TEST(Recompute, SameBitsForEveryGradient) {
  const auto run = [](bool again) {
    const Tensor x = leaf({5, 7}, 1), w = leaf({7, 7}, 2), g = leaf({7}, 3);
    const Tensor y = network(x, w, g, again);
    autograd::backward(y);
    return std::vector<Tensor>{y.detached(), autograd::grad_of(x), autograd::grad_of(w),
                               autograd::grad_of(g)};
  };
  const auto kept = run(false), again = run(true);
  for (std::size_t i = 0; i < kept.size(); ++i)
    test::expect_close(again[i], kept[i], i == 2 ? 1e-15 : 0, "tensor " + std::to_string(i));
}

TEST(Recompute, HooksOfWeightsInsideAndOutsideFireOnce) {
  const Tensor x = leaf({5, 7}, 1), w = leaf({7, 7}, 2), g = leaf({7}, 3);
  int calls = 0;
  autograd::leaf_of(w).hooks.push_back([&](autograd::Leaf&) { ++calls; });
  autograd::backward(network(x, w, g, true));
  EXPECT_EQ(calls, 1);
}

TEST(Recompute, Nested) {
  const auto square = [](const std::vector<Tensor>& in) { return ops::mul(in[0], in[0]); };
  const Tensor x = leaf({3}, 1);
  const Tensor y = autograd::recompute(
      [&](const std::vector<Tensor>& in) { return ops::exp(autograd::recompute(square, {in[0]})); }, {x});
  autograd::backward(ops::sum(y));
  for (std::size_t i = 0; i < 3; ++i) {
    const double v = x.on(Device::cpu).span<double>()[i];
    EXPECT_NEAR(autograd::grad_of(x).on(Device::cpu).span<double>()[i], 2 * v * std::exp(v * v), 1e-9);
  }
}

TEST(Autograd, GradientsThatAreAskedForGoToTheCallerAlone) {
  for (const bool again : {false, true}) {
    const Tensor x = leaf({5, 7}, 1), w = leaf({7, 7}, 2), g = leaf({7}, 3);
    const std::vector<Tensor> all{x, w, g};
    const auto got = autograd::gradients(network(x, w, g, again), {}, {x.edge(), w.edge(), g.edge()});
    for (const Tensor& t : all) EXPECT_FALSE(autograd::grad_of(t).defined());
    autograd::backward(network(x, w, g, again));
    for (std::size_t i = 0; i < all.size(); ++i)
      test::expect_close(got[i], autograd::grad_of(all[i]), 1e-14, "gradient " + std::to_string(i));
  }
}

// The ops of `network` write a weight's gradient themselves; a norm's is handed to the leaf.
TEST(Leaf, ABufferIsFilledByTheFirstPassAndAddedToByTheSecond) {
  const auto run = [](bool buffered) {
    const Tensor x = leaf({5, 7}, 1), w = leaf({7, 7}, 2), g = leaf({7}, 3);
    for (const Tensor& t : {w, g}) {
      if (buffered) autograd::leaf_of(t).buffer = Tensor::full(t.shape(), 1e30, DType::f64, t.device());
    }
    for (int pass = 0; pass < 2; ++pass) autograd::backward(network(x, w, g, pass == 1));
    if (buffered) {
      for (const Tensor& t : {w, g})
        EXPECT_EQ(autograd::grad_of(t).storage(), autograd::leaf_of(t).buffer.storage());
    }
    return std::vector<Tensor>{autograd::grad_of(w), autograd::grad_of(g)};
  };
  const auto apart = run(false), buffered = run(true);
  for (std::size_t i = 0; i < apart.size(); ++i)
    test::expect_close(buffered[i], apart[i], 0, "gradient " + std::to_string(i));
}

TEST(Leaf, HooksSeeTheWholeOfAGradientThatOpsWriteThemselves) {
  for (const bool again : {false, true}) {
    const Tensor x = leaf({5, 7}, 1), w = leaf({7, 7}, 2), g = leaf({7}, 3);
    std::vector<Tensor> seen;
    autograd::leaf_of(w).hooks.push_back(
        [&](autograd::Leaf& l) { seen.push_back(l.grad.contiguous_copy()); });
    autograd::backward(network(x, w, g, again));
    ASSERT_EQ(seen.size(), 1u);
    test::expect_close(seen[0], autograd::grad_of(w), 0, "seen by the hook");
  }
}

// A norm and an activation between products: what selective recompute need not keep.
struct Cheap {
  Tensor x = leaf({4, 16, 32}, 1), g = leaf({32}, 2), up = leaf({96, 32}, 3), down = leaf({32, 48}, 4);
  std::vector<Tensor> leaves() const { return {x, g, up, down}; }

  Tensor loss(bool recompute) const {
    const autograd::CheapRecomputeScope scope(recompute);
    const Tensor h = ops::rms_norm(x, g, 1e-5);
    const Tensor a = ops::swiglu_packed(ops::linear(ops::reshape(h, {64, 32}), up));
    const Tensor y = ops::add(ops::linear(a, down), ops::reshape(x, {64, 32}));
    return ops::sum(ops::linear(ops::rms_norm(y, g, 1e-5), up));
  }
};

TEST(CheapRecompute, SameBitsForEveryGradient) {
  const auto run = [](bool recompute) {
    const Cheap net;
    const Tensor loss = net.loss(recompute);
    EXPECT_FALSE(autograd::cheap_recompute());  // the scope is over
    autograd::backward(loss);
    std::vector<Tensor> all{loss.detached()};
    for (const Tensor& t : net.leaves()) all.push_back(autograd::grad_of(t));
    return all;
  };
  const auto kept = run(false), again = run(true);
  for (std::size_t i = 0; i < kept.size(); ++i)
    test::expect_close(again[i], kept[i], 0, "tensor " + std::to_string(i));
}

TEST(CheapRecompute, KeepsNeitherNormsNorActivations) {
  const Cheap net;
  const auto kept_by = [&](bool recompute) {
    const std::int64_t before = memory_stats(test::test_device()).live;
    const Tensor loss = net.loss(recompute);
    return memory_stats(test::test_device()).live - before;
  };
  EXPECT_LE(kept_by(true) + 64 * (32 + 48 + 32) * 8, kept_by(false));
}

TEST(Meta, ShapesAndWorkWithoutMemory) {
  Stream& stream = current_stream(Device::meta);
  stream.meta_ceilings = {1e9, 1e12, 1e12};
  stream.virtual_seconds = 0;
  const Tensor x = Tensor::empty({1 << 20, 1 << 12}, DType::f32, Device::meta);  // 16 GiB, were it real
  Tensor w = Tensor::empty({1 << 12, 1 << 12}, DType::f32, Device::meta);
  autograd::set_requires_grad(w, true);
  const Tensor y = ops::linear(x, w);
  EXPECT_EQ(y.shape(), (Shape{1 << 20, 1 << 12}));
  EXPECT_NEAR(stream.virtual_seconds, 2.0 * (1 << 20) * (1 << 12) * (1 << 12) / 1e9, 1);
  autograd::backward(y, y.detached());
  EXPECT_EQ(autograd::grad_of(w).shape(), w.shape());
}

}  // namespace
}  // namespace ridge
