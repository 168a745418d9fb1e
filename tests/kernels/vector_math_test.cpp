#include "kernels/vector_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace ridge::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Error in units of the last place of the f32 nearest to `want`.
double ulps(float got, double want) {
  const auto nearest = static_cast<float>(want);
  if (got == nearest) return 0;
  if (!std::isfinite(got) || !std::isfinite(nearest)) return 1e9;
  int exponent = 0;
  std::frexp(nearest, &exponent);
  return std::fabs(got - want) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

template <class F, class Reference>
double worst_ulps(float low, float high, const F& f, const Reference& reference) {
  double worst = 0;
  constexpr int kSteps = 200003;
  for (int i = 0; i <= kSteps; ++i) {
    const float x = low + (high - low) * (static_cast<float>(i) / kSteps);
    worst = std::max(worst, ulps(f(x), reference(static_cast<double>(x))));
  }
  return worst;
}

TEST(VectorMath, ExpIsAccurateIntoTheSubnormals) {
  const auto reference = [](double x) { return std::exp(x); };
  EXPECT_LT(worst_ulps(
                -110, 90, [](float x) { return vexp(x); }, reference),
            1.5);
  EXPECT_LT(worst_ulps(
                -1, 1, [](float x) { return vexp(x); }, reference),
            1.5);
}

TEST(VectorMath, ExpAtTheExtremes) {
  EXPECT_EQ(vexp(0.0f), 1.0f);
  EXPECT_EQ(vexp(-kInf), 0.0f);
  EXPECT_EQ(vexp(-1e30f), 0.0f);
  EXPECT_EQ(vexp(kInf), kInf);
  EXPECT_EQ(vexp(1e30f), kInf);
  EXPECT_TRUE(std::isnan(vexp(kNan)));
}

TEST(VectorMath, ExpOfNegativeNumbers) {
  EXPECT_LT(worst_ulps(
                -87, 0, [](float x) { return vexp_of_negative(x); }, [](double x) { return std::exp(x); }),
            1.5);
  EXPECT_EQ(vexp_of_negative(0.0f), 1.0f);
  EXPECT_LT(vexp_of_negative(-kInf), 2e-38f);
  EXPECT_LT(vexp_of_negative(-1e30f), 2e-38f);
  EXPECT_TRUE(std::isnan(vexp_of_negative(kNan)));
}

TEST(VectorMath, LogIsAccurate) {
  const auto log = [](float x) { return vlog(x); };
  const auto reference = [](double x) { return std::log(x); };
  EXPECT_LT(worst_ulps(1e-6f, 10, log, reference), 1.5);
  EXPECT_LT(worst_ulps(0.9f, 1.1f, log, reference), 1.5);
  EXPECT_LT(worst_ulps(1e-45f, 1e-38f, log, reference), 1.5);
  EXPECT_LT(worst_ulps(1, 3e38f, log, reference), 1.5);
}

TEST(VectorMath, LogAtTheExtremes) {
  EXPECT_EQ(vlog(1.0f), 0.0f);
  EXPECT_EQ(vlog(0.0f), -kInf);
  EXPECT_EQ(vlog(kInf), kInf);
  EXPECT_TRUE(std::isnan(vlog(-1.0f)));
  EXPECT_TRUE(std::isnan(vlog(kNan)));
}

TEST(VectorMath, SigmoidAndTanh) {
  EXPECT_LT(
      worst_ulps(
          -87, 30, [](float x) { return vsigmoid(x); }, [](double x) { return 1 / (1 + std::exp(-x)); }),
      3);
  EXPECT_LT(worst_ulps(
                -12, 12, [](float x) { return vtanh(x); }, [](double x) { return std::tanh(x); }),
            2);
  EXPECT_LT(worst_ulps(
                -1, 1, [](float x) { return vtanh(x); }, [](double x) { return std::tanh(x); }),
            2);
  EXPECT_EQ(vsigmoid(-kInf), 0.0f);
  EXPECT_EQ(vsigmoid(kInf), 1.0f);
  EXPECT_EQ(vtanh(kInf), 1.0f);
  EXPECT_EQ(vtanh(-kInf), -1.0f);
  EXPECT_TRUE(std::isnan(vsigmoid(kNan)));
  EXPECT_TRUE(std::isnan(vtanh(kNan)));
}

TEST(VectorMath, Erf) {
  const auto reference = [](double x) { return std::erf(x); };
  EXPECT_LT(worst_ulps(
                -6, 6, [](float x) { return verf(x); }, reference),
            2);
  EXPECT_LT(worst_ulps(
                -1e-3f, 1e-3f, [](float x) { return verf(x); }, reference),
            2);
  EXPECT_EQ(verf(kInf), 1.0f);
  EXPECT_EQ(verf(-kInf), -1.0f);
  EXPECT_TRUE(std::isnan(verf(kNan)));
}

TEST(VectorMath, SinCosOfTurns) {
  for (int i = 0; i <= 100000; ++i) {
    const float turns = static_cast<float>(i) / 100000.0f;
    const double angle = 2 * M_PI * static_cast<double>(turns);
    const SinCos got = vsincos_turns(turns);
    ASSERT_NEAR(got.sin, std::sin(angle), 1.5e-7) << turns;
    ASSERT_NEAR(got.cos, std::cos(angle), 1.5e-7) << turns;
  }
}

}  // namespace
}  // namespace ridge::kernels
