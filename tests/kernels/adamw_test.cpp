#include "kernels/adamw.h"

#include <array>

#include "core/base/random.h"
#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

using Five = Memory<float>;

Five start() { return {0.5f, -1.25f, 2.0f, 0.0f, -0.001f}; }
/// Of steps 1, 2 and 3.
Five gradient(std::int64_t step) {
  if (step == 1) return {0.1f, -0.2f, 3.0f, 1e-6f, 0.0f};
  if (step == 2) return {-0.3f, 0.25f, 1.0f, -2e-6f, 0.5f};
  return {0.05f, 0.4f, -2.0f, 1e-3f, -0.5f};
}

View<float> view(Five& x) { return {x.data(), {5}}; }

/// `absolute` allows for terms that cancel.
void expect_close(const Five& got, const std::vector<double>& want, const char* what,
                  double absolute = 1e-10) {
  wait_for_device();
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], 3e-7 * std::fabs(want[i]) + absolute) << what << " " << i;
  }
}

// Expected values of three steps: torch.optim.AdamW and SGD of PyTorch 2 on the CPU, single tensor.
TEST(AdamW, ThreeStepsAsPyTorch) {
  Five p = start(), m(5), v(5);
  AdamWStep step{.lr = 0.02, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
  for (step.step = 1; step.step <= 3; ++step.step) {
    Five g = gradient(step.step);
    adamw(test_stream(), view(p), view(g), view(m), view(v), step);
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
  Five p = start(), buffer(5, std::numeric_limits<float>::quiet_NaN());  // the first step must not read it
  for (step.step = 1; step.step <= 3; ++step.step) {
    Five g = gradient(step.step);
    sgd(test_stream(), view(p), view(g), view(buffer), step);
  }
  wait_for_device();
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
  explicit State(std::int64_t n) : p({n}), g({n}), m({n}), v({n}), value({n}), low({n}) {
    p.randomize(1), g.randomize(2), m.randomize(3), v.randomize(4, 0, 2);
    split_master(test_stream(), p.in(), value.view(), low.view());
  }
  /// The master that value and low hold.
  std::vector<double> joined() {
    Array<float> master({value.view().dim(0)});
    join_master(test_stream(), value.in(), low.in(), master.view());
    return master.values();
  }
  Array<float> p, g, m, v;
  Array<bf16> value;
  Array<std::int16_t> low;
};

template <class T>
View<T> after_first(View<T> view) {
  return {view.data + 1, {view.dim(0) - 1}};
}

struct Wanted {
  std::vector<double> p, m, v;
};

constexpr AdamWStep kStep{.lr = 0.01,
                          .beta1 = 0.9,
                          .beta2 = 0.999,
                          .eps = 1e-6,
                          .weight_decay = 0.1,
                          .step = 7,
                          .grad_scale = 0.25};

/// One step of kStep in f64.
Wanted reference(const State& s) {
  const auto p = s.p.values(), g = s.g.values(), m = s.m.values(), v = s.v.values();
  Wanted want;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double scaled = 0.25 * g[i];
    want.m.push_back(0.9 * m[i] + 0.1 * scaled);
    want.v.push_back(0.999 * v[i] + 0.001 * scaled * scaled);
    const double denominator = std::sqrt(want.v[i]) / std::sqrt(1 - std::pow(0.999, 7)) + 1e-6;
    want.p.push_back(p[i] * (1 - 0.001) - 0.01 / (1 - std::pow(0.9, 7)) * want.m[i] / denominator);
  }
  return want;
}

TEST(AdamW, MatchesF64OnOddSizes) {
  for (const std::int64_t n : {1, 3, 17, 129, 2048, 40001}) {
    State s(n);
    const Wanted want = reference(s);
    adamw(test_stream(), s.p.view(), s.g.in(), s.m.view(), s.v.view(), kStep);
    EXPECT_LT(normalized_error(s.p.values(), want.p), 1e-6);
    EXPECT_LT(normalized_error(s.m.values(), want.m), 1e-6);
    EXPECT_LT(normalized_error(s.v.values(), want.v), 1e-6);
  }
}

TEST(AdamW, MatchesF64OnSplitMasters) {
  for (const std::int64_t n : {1, 3, 17, 129, 2048, 40001}) {
    State s(n);
    const Wanted want = reference(s);
    adamw(test_stream(), s.value.view(), s.low.view(), s.g.in(), s.m.view(), s.v.view(), kStep);
    const auto master = s.joined();
    EXPECT_LT(normalized_error(master, want.p), 1e-6);
    EXPECT_LT(normalized_error(s.m.values(), want.m), 1e-6);
    EXPECT_LT(normalized_error(s.v.values(), want.v), 1e-6);
    for (std::int64_t i = 0; i < n; ++i)
      ASSERT_EQ(s.value.in()(i).bits, bf16(static_cast<float>(master[static_cast<std::size_t>(i)])).bits);
  }
}

TEST(AdamW, AnyAddressWillDo) {
  for (const std::int64_t n : {2, 5001}) {
    State s(n), other(n);
    adamw(test_stream(), after_first(s.p.view()), after_first(s.g.in()), after_first(s.m.view()),
          after_first(s.v.view()), kStep);
    adamw(test_stream(), after_first(other.value.view()), after_first(other.low.view()),
          after_first(other.g.in()), after_first(other.m.view()), after_first(other.v.view()), kStep);
    const State before(n);
    Wanted want = reference(before);
    want.p[0] = before.p.values()[0];
    EXPECT_LT(normalized_error(s.p.values(), want.p), 1e-6);
    EXPECT_LT(normalized_error(other.joined(), want.p), 1e-6);
    EXPECT_EQ(s.m.values()[0], before.m.values()[0]);
  }
}

/// Moments in bf16 beside the same in f32.
struct NoisyState {
  explicit NoisyState(std::int64_t n)
      : p({n}), exact_p({n}), g({n}), exact_m({n}), exact_v({n}), m({n}), v({n}) {
    p.randomize(1), exact_p.randomize(1), g.randomize(2), m.randomize(3), v.randomize(4, 0, 2);
    for (std::size_t i = 0; i < m.data().size(); ++i) {
      exact_m.data()[i] = static_cast<float>(m.data()[i]);
      exact_v.data()[i] = static_cast<float>(v.data()[i]);
    }
  }
  Array<float> p, exact_p, g, exact_m, exact_v;
  Array<bf16> m, v;
};

TEST(AdamW, Bf16MomentsAreRoundedWithTheNamedNoise) {
  constexpr std::int64_t kCount = 40003;
  NoisyState s(kCount);
  AdamWStep step = kStep;
  step.parameter = 0x123456789ABCDEFull;
  adamw(test_stream(), s.p.view(), s.g.in(), s.m.view(), s.v.view(), step);
  adamw(test_stream(), s.exact_p.view(), s.g.in(), s.exact_m.view(), s.exact_v.view(), step);
  EXPECT_LT(normalized_error(s.p.values(), s.exact_p.values()), 1e-6) << "the step uses moments unrounded";
  int differ = 0;  // an ulp of f32 that differs may change a rounding
  for (std::int64_t i = 0; i < kCount; ++i) {
    const std::uint32_t word = philox({7, step.parameter}, static_cast<std::uint64_t>(i / 4))[i % 4];
    const std::uint32_t m = std::bit_cast<std::uint32_t>(s.exact_m.in()(i)) + (word & 0xFFFFu);
    const std::uint32_t v = std::bit_cast<std::uint32_t>(s.exact_v.in()(i)) + (word >> 16);
    differ += (s.m.in()(i).bits != m >> 16 ? 1 : 0) + (s.v.in()(i).bits != v >> 16 ? 1 : 0);
  }
  EXPECT_LE(differ, 8);
}

TEST(AdamW, Bf16MomentsKeepTheExpectation) {
  constexpr std::int64_t kCount = 1 << 17;
  constexpr double kGradient = 0.7;
  Array<float> p({kCount}), g({kCount});
  Array<bf16> m({kCount}), v({kCount});
  std::fill(g.data().begin(), g.data().end(), static_cast<float>(kGradient));
  const AdamWStep step{.beta1 = 0.9, .beta2 = 0.999};
  adamw(test_stream(), p.view(), g.in(), m.view(), v.view(), step);
  const auto mean = [](const std::vector<double>& x) {
    double sum = 0;
    for (const double value : x) sum += value;
    return sum / static_cast<double>(x.size());
  };
  // Five standard errors of values an ulp of 2^-8 apart.
  EXPECT_NEAR(mean(m.values()) / (0.1 * kGradient), 1, 5 * 0x1p-8 / 2 / std::sqrt(kCount));
  EXPECT_NEAR(mean(v.values()) / (0.001 * kGradient * kGradient), 1, 5 * 0x1p-8 / 2 / std::sqrt(kCount));
  Array<bf16> other_m({kCount}), other_v({kCount});
  AdamWStep other = step;
  other.parameter = 1;
  adamw(test_stream(), p.view(), g.in(), other_m.view(), other_v.view(), other);
  EXPECT_NE(other_m.values(), m.values());
}

TEST(AdamW, TheNormClipsTheGradient) {
  Memory<double> norm(1);
  for (const double value : {4.0, 0.3}) {
    norm[0] = value;
    State clipped(3001), plain(3001);
    AdamWStep step = kStep;
    step.norm = norm.data();
    step.clip = 1;
    adamw(test_stream(), clipped.p.view(), clipped.g.in(), clipped.m.view(), clipped.v.view(), step);
    adamw(test_stream(), clipped.value.view(), clipped.low.view(), clipped.g.in(), clipped.m.view(),
          clipped.v.view(), step);
    step.norm = nullptr;
    step.grad_scale *= std::min(1.0, 1 / (value + 1e-6));
    adamw(test_stream(), plain.p.view(), plain.g.in(), plain.m.view(), plain.v.view(), step);
    adamw(test_stream(), plain.value.view(), plain.low.view(), plain.g.in(), plain.m.view(), plain.v.view(),
          step);
    EXPECT_EQ(clipped.p.values(), plain.p.values());
    EXPECT_EQ(clipped.m.values(), plain.m.values());
    EXPECT_EQ(clipped.v.values(), plain.v.values());
    EXPECT_EQ(clipped.joined(), plain.joined());
  }
}

TEST(Sgd, TheNormClipsTheGradient) {
  Memory<double> norm(1, 5.0);
  State clipped(3001), plain(3001);
  SgdStep step{.lr = 0.1, .momentum = 0.9, .step = 2, .grad_scale = 2, .norm = norm.data(), .clip = 1};
  sgd(test_stream(), clipped.p.view(), clipped.g.in(), clipped.m.view(), step);
  step.norm = nullptr;
  step.grad_scale *= 1 / (5.0 + 1e-6);
  sgd(test_stream(), plain.p.view(), plain.g.in(), plain.m.view(), step);
  EXPECT_EQ(clipped.p.values(), plain.p.values());
  EXPECT_EQ(clipped.m.values(), plain.m.values());
}

TEST(OptimizerSteps, AreLeftOutWhereTheNormIsNotFinite) {
  Memory<double> norm(1);
  const State before(2500);
  for (const double value :
       {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    norm[0] = value;
    for (const double clip : {0.0, 1.0}) {
      State s(2500);
      NoisyState noisy(2500);
      const NoisyState noisy_before(2500);
      const AdamWStep step{.norm = norm.data(), .clip = clip};
      const SgdStep sgd_step{.momentum = 0.9, .norm = norm.data(), .clip = clip};
      adamw(test_stream(), s.p.view(), s.g.in(), s.m.view(), s.v.view(), step);
      adamw(test_stream(), s.value.view(), s.low.view(), s.g.in(), s.m.view(), s.v.view(), step);
      adamw(test_stream(), noisy.p.view(), noisy.g.in(), noisy.m.view(), noisy.v.view(), step);
      sgd(test_stream(), s.p.view(), s.g.in(), s.m.view(), sgd_step);
      sgd(test_stream(), s.value.view(), s.low.view(), s.g.in(), s.m.view(), sgd_step);
      EXPECT_EQ(s.p.values(), before.p.values());
      EXPECT_EQ(s.m.values(), before.m.values());
      EXPECT_EQ(s.v.values(), before.v.values());
      EXPECT_EQ(s.value.values(), before.value.values());
      EXPECT_EQ(s.low.values(), before.low.values());
      EXPECT_EQ(noisy.m.values(), noisy_before.m.values());
      EXPECT_EQ(noisy.v.values(), noisy_before.v.values());
    }
  }
}

TEST(SplitMaster, ComesBackExactly) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const std::int64_t n : {13, 2048, 5003}) {
    Array<float> master({n}), back({n});
    Array<bf16> value({n});
    Array<std::int16_t> low({n});
    master.randomize(1);
    const std::array<std::uint32_t, 4> ties = {0x3F808000u, 0x3F818000u, 0xBF808000u, 0xBF818000u};
    for (std::size_t i = 0; i < ties.size(); ++i) master.data()[i] = std::bit_cast<float>(ties[i]);
    const Memory<float> special = {0.0f, -0.0f, kInf, -kInf, 1e-42f, std::numeric_limits<float>::max()};
    std::copy(special.begin(), special.end(), master.data().begin() + 4);
    split_master(test_stream(), master.in(), value.view(), low.view());
    join_master(test_stream(), value.in(), low.in(), back.view());
    wait_for_device();
    for (std::int64_t i = 0; i < n; ++i) {
      const auto bits = std::bit_cast<std::uint32_t>(master.in()(i));
      const bool off = i == 0 || i == 2;  // ties that round down to even
      ASSERT_EQ(std::bit_cast<std::uint32_t>(back.in()(i)), off ? bits - 1 : bits) << i;
      ASSERT_EQ(value.in()(i).bits, bf16(master.in()(i)).bits) << i;
    }
    master.data()[0] = std::numeric_limits<float>::quiet_NaN();
    split_master(test_stream(), master.in(), value.view(), low.view());
    join_master(test_stream(), value.in(), low.in(), back.view());
    EXPECT_TRUE(std::isnan(back.values()[0]));
  }
}

TEST(AdamW, SameBitsOnAnyThreads) {
  expect_same_bits_on_threads([] {
    State s(50001);
    NoisyState noisy(50001);
    const AdamWStep step;
    adamw(test_stream(), s.p.view(), s.g.in(), s.m.view(), s.v.view(), step);
    adamw(test_stream(), s.value.view(), s.low.view(), s.g.in(), s.m.view(), s.v.view(), step);
    adamw(test_stream(), noisy.p.view(), noisy.g.in(), noisy.m.view(), noisy.v.view(), step);
    const SgdStep plain{.lr = 0.1, .momentum = 0.9, .step = 2};
    sgd(test_stream(), s.p.view(), s.g.in(), s.m.view(), plain);
    auto all = s.p.values();
    for (const auto& part : {s.joined(), noisy.m.values(), noisy.v.values()})
      all.insert(all.end(), part.begin(), part.end());
    return all;
  });
}

TEST(Sgd, MatchesF64OnPlainAndSplitMasters) {
  constexpr SgdStep kSgd{.lr = 0.1,
                         .momentum = 0.8,
                         .dampening = 0.3,
                         .weight_decay = 0.1,
                         .nesterov = true,
                         .step = 2,
                         .grad_scale = 0.5};
  for (const std::int64_t n : {1, 17, 2048, 40001}) {
    State s(n), other(n);
    std::vector<double> want;
    const auto p = s.p.values(), g = s.g.values(), m = s.m.values();
    for (std::size_t i = 0; i < p.size(); ++i) {
      const double gradient = 0.5 * g[i] + 0.1 * p[i], buffer = 0.8 * m[i] + 0.7 * gradient;
      want.push_back(p[i] - 0.1 * (gradient + 0.8 * buffer));
    }
    sgd(test_stream(), s.p.view(), s.g.in(), s.m.view(), kSgd);
    sgd(test_stream(), other.value.view(), other.low.view(), other.g.in(), other.m.view(), kSgd);
    EXPECT_LT(normalized_error(s.p.values(), want), 1e-6);
    EXPECT_LT(normalized_error(other.joined(), want), 1e-6);
  }
}

TEST(Sgd, WithoutMomentumNeedsNoBuffer) {
  State s(33);
  const auto p = s.p.values(), g = s.g.values();
  sgd(test_stream(), s.p.view(), s.g.in(), {}, SgdStep{.lr = 0.5, .grad_scale = 2});
  const auto got = s.p.values();
  for (std::size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(got[i], p[i] - g[i], 1e-6);
}

TEST(OptimizerWork, CountsEveryByteOnce) {
  const auto f32 = [] { return meta_view<float>({100}); };
  const auto adam = launched_on_meta([&](Stream& s) { adamw(s, f32(), f32(), f32(), f32(), AdamWStep{}); });
  EXPECT_STREQ(adam.op, "adamw");
  EXPECT_EQ(adam.bytes, 7 * 400);
  const auto b16 = [] { return meta_view<bf16>({100}); };
  const auto i16 = [] { return meta_view<std::int16_t>({100}); };
  const auto narrow =
      launched_on_meta([&](Stream& s) { adamw(s, b16(), i16(), f32(), b16(), b16(), AdamWStep{}); });
  EXPECT_EQ(narrow.bytes, 2 * 400 + 400 + 2 * 400);
  EXPECT_EQ(launched_on_meta([&](Stream& s) { split_master(s, f32(), b16(), i16()); }).bytes, 800);
  EXPECT_EQ(launched_on_meta([&](Stream& s) { join_master(s, b16(), i16(), f32()); }).bytes, 800);
  EXPECT_EQ(launched_on_meta([&](Stream& s) { sgd(s, b16(), i16(), f32(), {}, SgdStep{}); }).bytes, 3 * 400);
  EXPECT_EQ(launched_on_meta([&](Stream& s) { sgd(s, f32(), f32(), {}, SgdStep{}); }).bytes, 3 * 400);
  const SgdStep momentum{.momentum = 0.9};
  EXPECT_EQ(launched_on_meta([&](Stream& s) { sgd(s, f32(), f32(), f32(), momentum); }).bytes, 5 * 400);
}

TEST(OptimizerErrors, ShapesAndSteps) {
  State s(8), other(9);
  AdamWStep zero;
  zero.step = 0;
  EXPECT_THROW(adamw(test_stream(), s.p.view(), s.g.in(), s.m.view(), s.v.view(), zero), Error);
  EXPECT_THROW(adamw(test_stream(), s.p.view(), other.g.in(), s.m.view(), s.v.view(), AdamWStep{}), Error);
  EXPECT_THROW(
      adamw(test_stream(), s.value.view(), other.low.view(), s.g.in(), s.m.view(), s.v.view(), AdamWStep{}),
      Error);
  EXPECT_THROW(split_master(test_stream(), s.p.in(), other.value.view(), s.low.view()), Error);
  EXPECT_THROW(sgd(test_stream(), s.p.view(), s.g.in(), {}, SgdStep{.momentum = 0.9}), Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
