#include "kernels/adamw.h"

#include <array>

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

using Five = std::vector<float>;
const Five kStart = {0.5f, -1.25f, 2.0f, 0.0f, -0.001f};
const std::array<Five, 3> kGradients = {Five{0.1f, -0.2f, 3.0f, 1e-6f, 0.0f},
                                        Five{-0.3f, 0.25f, 1.0f, -2e-6f, 0.5f},
                                        Five{0.05f, 0.4f, -2.0f, 1e-3f, -0.5f}};

View<float> view(Five& x) { return {x.data(), {5}}; }
View<const float> in(const Five& x) { return {x.data(), {5}}; }

/// `absolute` allows for terms that cancel.
void expect_close(const Five& got, const std::vector<double>& want, const char* what,
                  double absolute = 1e-10) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], 3e-7 * std::fabs(want[i]) + absolute) << what << " " << i;
  }
}

// Expected values of three steps: torch.optim.AdamW and SGD of PyTorch 2 on the CPU, single tensor.
TEST(AdamW, ThreeStepsAsPyTorch) {
  Five p = kStart, m(5), v(5);
  AdamWStep step{.lr = 0.02, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
  for (step.step = 1; step.step <= 3; ++step.step) {
    adamw(cpu(), view(p), in(kGradients[static_cast<std::size_t>(step.step - 1)]), view(m), view(v), step);
  }
  expect_close(p,
               {0.4924144744873047, -1.2372519969940186, 1.9459550380706787, -0.024967027828097343,
                -0.014771214686334133},
               "p");
  expect_close(m,
               {-0.013899999670684338, 0.046300001442432404, 0.13300001621246338, 9.990100807044655e-05,
                -0.005000001285225153},
               "m");
  expect_close(v,
               {0.004851249977946281, 0.01277375128120184, 0.6536250114440918, 5.000023861612135e-08,
                0.02437499910593033},
               "v");
}

Five sgd_three_steps(SgdStep step) {
  Five p = kStart, buffer(5, std::numeric_limits<float>::quiet_NaN());  // the first step must not read it
  for (step.step = 1; step.step <= 3; ++step.step) {
    sgd(cpu(), view(p), in(kGradients[static_cast<std::size_t>(step.step - 1)]), view(buffer), step);
  }
  return p;
}

TEST(Sgd, ThreeStepsAsPyTorch) {
  expect_close(sgd_three_steps({.lr = 0.1, .momentum = 0.9}),
               {0.5249000191688538, -1.2833000421524048, 1.1970000267028809, -9.989100362872705e-05,
                -0.04599999636411667},
               "momentum", 1e-8);
  expect_close(sgd_three_steps({.lr = 0.1, .momentum = 0.9, .nesterov = true}),
               {0.5374100208282471, -1.324970006942749, 1.0773000717163086, -0.00018980191089212894,
                -0.04149999842047691},
               "nesterov", 1e-8);
  expect_close(sgd_three_steps({.lr = 0.1, .momentum = 0.8, .dampening = 0.3, .weight_decay = 0.1}),
               {0.4881547689437866, -1.206456184387207, 1.2026362419128418, -6.999047036515549e-05,
                -0.02871130034327507},
               "dampening", 1e-8);
  expect_close(sgd_three_steps({.lr = 0.1, .weight_decay = 0.1}),
               {0.5000485181808472, -1.2580217123031616, 1.7475680112838745, -9.990001854021102e-05,
                -0.0004703029990196228},
               "plain", 1e-8);
}

struct State {
  explicit State(std::int64_t n) : p({n}), g({n}), m({n}), v({n}), copy({n}) {
    p.randomize(1), g.randomize(2), m.randomize(3), v.randomize(4, 0, 2);
  }
  Array<float> p, g, m, v;
  Array<bf16> copy;
};

TEST(AdamW, MatchesF64OnOddSizes) {
  constexpr AdamWStep kStep{.lr = 0.01,
                            .beta1 = 0.9,
                            .beta2 = 0.999,
                            .eps = 1e-6,
                            .weight_decay = 0.1,
                            .step = 7,
                            .grad_scale = 0.25};
  for (const std::int64_t n : {1, 3, 17, 129, 40001}) {
    State s(n);
    const auto p = s.p.values(), g = s.g.values(), m = s.m.values(), v = s.v.values();
    adamw(cpu(), s.p.view(), s.g.in(), s.m.view(), s.v.view(), s.copy.view(), kStep);
    std::vector<double> want_p, want_m, want_v;
    for (std::size_t i = 0; i < p.size(); ++i) {
      const double scaled = 0.25 * g[i];
      want_m.push_back(0.9 * m[i] + 0.1 * scaled);
      want_v.push_back(0.999 * v[i] + 0.001 * scaled * scaled);
      const double denominator = std::sqrt(want_v[i]) / std::sqrt(1 - std::pow(0.999, 7)) + 1e-6;
      want_p.push_back(p[i] * (1 - 0.001) - 0.01 / (1 - std::pow(0.9, 7)) * want_m[i] / denominator);
    }
    EXPECT_LT(normalized_error(s.p.values(), want_p), 1e-6);
    EXPECT_LT(normalized_error(s.m.values(), want_m), 1e-6);
    EXPECT_LT(normalized_error(s.v.values(), want_v), 1e-6);
    for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(s.copy.in()(i).bits, bf16(s.p.in()(i)).bits);
  }
}

TEST(AdamW, CopyDoesNotChangeTheUpdateAndThreadsNeither) {
  expect_same_bits_on_threads([] {
    State with(50001), without(50001);
    AdamWStep step;
    adamw(cpu(), with.p.view(), with.g.in(), with.m.view(), with.v.view(), with.copy.view(), step);
    adamw(cpu(), without.p.view(), without.g.in(), without.m.view(), without.v.view(), step);
    EXPECT_EQ(with.p.data(), without.p.data());
    SgdStep plain{.lr = 0.1, .momentum = 0.9, .step = 2};
    sgd(cpu(), with.p.view(), with.g.in(), with.m.view(), with.copy.view(), plain);
    sgd(cpu(), without.p.view(), without.g.in(), without.m.view(), plain);
    EXPECT_EQ(with.p.data(), without.p.data());
    EXPECT_EQ(with.copy.in()(50000).bits, bf16(with.p.in()(50000)).bits);
    return with.p.data();
  });
}

TEST(Sgd, WithoutMomentumNeedsNoBuffer) {
  State s(33);
  const auto p = s.p.values(), g = s.g.values();
  sgd(cpu(), s.p.view(), s.g.in(), {}, SgdStep{.lr = 0.5, .grad_scale = 2});
  const auto got = s.p.values();
  for (std::size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(got[i], p[i] - g[i], 1e-6);
}

TEST(OptimizerWork, CountsEveryByteOnce) {
  const auto f32 = [] { return meta_view<float>({100}); };
  const auto adam = launched_on_meta([&](Stream& s) { adamw(s, f32(), f32(), f32(), f32(), AdamWStep{}); });
  EXPECT_STREQ(adam.op, "adamw");
  EXPECT_EQ(adam.bytes, 7 * 400);
  const auto copies = launched_on_meta(
      [&](Stream& s) { adamw(s, f32(), f32(), f32(), f32(), meta_view<bf16>({100}), AdamWStep{}); });
  EXPECT_EQ(copies.bytes, 7 * 400 + 200);
  EXPECT_EQ(launched_on_meta([&](Stream& s) { sgd(s, f32(), f32(), {}, SgdStep{}); }).bytes, 3 * 400);
  const SgdStep momentum{.momentum = 0.9};
  EXPECT_EQ(launched_on_meta([&](Stream& s) { sgd(s, f32(), f32(), f32(), momentum); }).bytes, 5 * 400);
}

TEST(OptimizerErrors, ShapesAndSteps) {
  State s(8), other(9);
  AdamWStep zero;
  zero.step = 0;
  EXPECT_THROW(adamw(cpu(), s.p.view(), s.g.in(), s.m.view(), s.v.view(), zero), Error);
  EXPECT_THROW(adamw(cpu(), s.p.view(), other.g.in(), s.m.view(), s.v.view(), AdamWStep{}), Error);
  EXPECT_THROW(adamw(cpu(), s.p.view(), s.g.in(), s.m.view(), s.v.view(), other.copy.view(), AdamWStep{}),
               Error);
  EXPECT_THROW(sgd(cpu(), s.p.view(), s.g.in(), {}, SgdStep{.momentum = 0.9}), Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
