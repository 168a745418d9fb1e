#include "kernels/rotary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/launch.h"
#include "core/base/threads.h"
#include "tests/test_device.h"

namespace ridge::kernels {
namespace {

using test::Memory;
using test::on_gpu;
using test::test_stream;
using test::wait_for_device;

using Kind = RopeScaling::Kind;

RopeScaling llama3_scaling() {
  RopeScaling s;
  s.kind = Kind::llama3;
  s.factor = 8;
  s.low_freq_factor = 1;
  s.high_freq_factor = 4;
  s.original_max_position = 8192;
  return s;
}

RopeScaling yarn_scaling(double factor, double original) {
  RopeScaling s;
  s.kind = Kind::yarn;
  s.factor = factor;
  s.original_max_position = original;
  return s;
}

void expect_relative(const std::vector<double>& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], 2e-7 * expected[i]) << "frequency " << i;
  }
}

// Numbers below: transformers 5, modeling_rope_utils.ROPE_INIT_FUNCTIONS, f32 on the CPU.
TEST(RotaryFrequencies, DefaultAndLinear) {
  const auto plain = rotary_inv_freq(1e4, 8, {}, 2048, 10);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(plain[i], std::pow(1e4, -i / 4.0), 1e-7 * plain[i]);
  RopeScaling linear;
  linear.kind = Kind::linear;
  linear.factor = 2.5;
  expect_relative(
      rotary_inv_freq(1e4, 16, linear, 2048, 10),
      {0.4, 0.1264911, 0.04, 0.012649111, 0.0039999997, 0.0012649111, 0.00040000002, 0.00012649111});
}

TEST(RotaryFrequencies, Llama3) {
  const auto f = rotary_inv_freq(5e5, 128, llama3_scaling(), 131072, 10);
  ASSERT_EQ(f.size(), 64u);
  EXPECT_NEAR(f[28], 0.00321144599, 2e-7 * f[28]);
  EXPECT_NEAR(f[29], 0.00216657076, 2e-7 * f[29]);
  EXPECT_NEAR(f[31], 0.000856751413, 2e-7 * f[31]);
  EXPECT_NEAR(f[34], 0.000178507813, 2e-7 * f[34]);
  EXPECT_NEAR(f[35], 9.55621235e-05, 2e-7 * f[35]);
  EXPECT_NEAR(f[63], 3.06892599e-07, 2e-7 * f[63]);
  EXPECT_EQ(rotary_attention_scale(llama3_scaling()), 1.0);
}

TEST(RotaryFrequencies, DynamicStretchesBeyondTheTrainedLengthOnly) {
  RopeScaling s;
  s.kind = Kind::dynamic;
  s.factor = 3;
  EXPECT_EQ(rotary_inv_freq(1e4, 16, s, 64, 64), rotary_inv_freq(1e4, 16, {}, 64, 64));
  expect_relative(
      rotary_inv_freq(1e4, 16, s, 64, 100),
      {1.0, 0.27457723, 0.07539265, 0.020701105, 0.0056840517, 0.0015607111, 0.0004285357, 0.000117666146});
  expect_relative(rotary_inv_freq(1e4, 16, s, 64, 1000),
                  {1.0, 0.18365356, 0.033728633, 0.0061943834, 0.0011376205, 0.00020892809, 3.8370385e-05,
                   7.0468577e-06});
}

TEST(RotaryFrequencies, Yarn) {
  const RopeScaling s = yarn_scaling(4, 32768);
  const auto f = rotary_inv_freq(1e6, 128, s, 131072, 10);
  expect_relative({f[1], f[23], f[24], f[32], f[39], f[40], f[41], f[63]},
                  {0.8058422, 0.006978306, 0.0053753215, 0.00060294115, 6.490394e-05, 4.4456985e-05,
                   3.5825316e-05, 3.1023444e-07});
  EXPECT_DOUBLE_EQ(rotary_attention_scale(s), 1.138629436111989);
  RopeScaling absent = s;
  absent.factor = 0;
  EXPECT_EQ(rotary_inv_freq(1e6, 128, absent, 131072, 10), f);
}

TEST(RotaryFrequencies, YarnWithoutTruncation) {
  RopeScaling s = yarn_scaling(16, 2048);
  s.beta_fast = 20;
  s.beta_slow = 2;
  s.truncate = false;
  expect_relative(
      rotary_inv_freq(1e4, 32, s, 32768, 10),
      {1.0, 0.56234133, 0.31622776, 0.17782794, 0.1, 0.054237116, 0.023088187, 0.008815599, 0.0026136255,
       0.00035146333, 0.00019764237, 0.000111142464, 6.25e-05, 3.514633e-05, 1.9764237e-05, 1.1114246e-05});
  EXPECT_DOUBLE_EQ(rotary_attention_scale(s), 1.2772588722239782);
}

TEST(RotaryFrequencies, YarnAttentionFactors) {
  RopeScaling s = yarn_scaling(40, 4096);
  s.mscale = 0.707;
  s.mscale_all_dim = 1.3;
  EXPECT_DOUBLE_EQ(rotary_attention_scale(s), 0.8521510516131852);
  s.attention_factor = 1.25;
  EXPECT_EQ(rotary_attention_scale(s), 1.25);
}

TEST(RotaryFrequencies, NamesTheBadField) {
  const auto message = [](double theta, std::int64_t head_dim, const RopeScaling& s) -> std::string {
    try {
      rotary_inv_freq(theta, head_dim, s, 64, 64);
    } catch (const UserError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(message(0, 16, {}).find("rope_theta is 0"), std::string::npos);
  EXPECT_NE(message(1e4, 15, {}).find("even head_dim, not 15"), std::string::npos);
  RopeScaling s = llama3_scaling();
  s.high_freq_factor = 1;
  EXPECT_NE(message(1e4, 16, s).find("high_freq_factor is 1"), std::string::npos);
  s.factor = -2;
  EXPECT_NE(message(1e4, 16, s).find("factor is -2"), std::string::npos);
  EXPECT_NE(message(1e4, 16, yarn_scaling(4, 0)).find("original_max_position_embeddings"), std::string::npos);
  EXPECT_NE(message(1e4, 16, yarn_scaling(4, NAN)).find("original_max_position_embeddings"),
            std::string::npos);
}

struct Tables {
  Memory<float> cos, sin;
  std::int64_t rows, half;
  Tables(std::int64_t rows, std::int64_t half, const std::vector<double>& inv_freq, double scale,
         std::int64_t first)
      : cos(static_cast<std::size_t>(rows * half)), sin(cos.size()), rows(rows), half(half) {
    rotary_table(inv_freq, scale, first, View<float>(cos.data(), {rows, half}),
                 View<float>(sin.data(), {rows, half}));
  }
  View<const float> cos_view() const { return {cos.data(), {rows, half}}; }
  View<const float> sin_view() const { return {sin.data(), {rows, half}}; }
};

TEST(RotaryTable, MatchesTransformers) {
  const RopeScaling s = yarn_scaling(4, 32768);
  const auto inv_freq = rotary_inv_freq(1e6, 128, s, 131072, 10);
  const Tables at_37(2, 64, inv_freq, rotary_attention_scale(s), 36);
  EXPECT_NEAR(at_37.cos[64], 0.87152296, 2e-7);
  EXPECT_NEAR(at_37.cos[65], -0.032979317, 2e-7);
  EXPECT_NEAR(at_37.sin[66], -1.0176418, 2e-7);
  EXPECT_NEAR(at_37.sin[67], 0.55834776, 2e-7);
  const Tables at_5000(1, 64, rotary_inv_freq(5e5, 128, llama3_scaling(), 131072, 10), 1, 5000);
  EXPECT_NEAR(at_5000.cos[1], -0.01130602, 2e-7);
  EXPECT_NEAR(at_5000.cos[2], 0.8849054, 2e-7);
  EXPECT_NEAR(at_5000.sin[3], 0.9066807, 2e-7);
}

// [B, T, H, D] inside a buffer of [B, T, H + 2, D + gap], as a slice of a fused projection is. A gap of 8
// keeps rows at multiples of 16 bytes.
template <class T>
struct Heads {
  std::int64_t B, T_, H, D, step;
  Memory<T> data;
  Heads(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t d, unsigned seed, std::int64_t gap = 3)
      : B(b), T_(t), H(h), D(d), step(d + gap), data(static_cast<std::size_t>(b * t * (h + 2) * step)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (T& x : data) x = T(normal(random));
  }
  View<T> view() {
    const std::int64_t start = step % 8 == 0 ? step : step + 1;
    return {data.data() + start, {B, T_, H, D}, {T_ * (H + 2) * step, (H + 2) * step, step, 1}};
  }
};

template <class T>
double tolerance() {
  return std::is_same_v<T, bf16> ? 4e-3 : std::is_same_v<T, float> ? 3e-7 : 1e-15;
}

template <class T>
class Rotary : public ::testing::Test {};
using Types = ::testing::Types<float, double, bf16>;
TYPED_TEST_SUITE(Rotary, Types);

struct Case {
  std::int64_t heads, dims, gap;
};

TYPED_TEST(Rotary, MatchesTheFormulaOnSlicesWithPositions) {
  for (const auto [heads, d, gap] : {Case{3, 2, 3},
                                     {3, 6, 3},
                                     {3, 34, 3},
                                     {3, 64, 3},
                                     {3, 130, 3},
                                     {1, 16, 8},
                                     {9, 16, 8},
                                     {4, 64, 8},
                                     {5, 96, 8},
                                     {33, 128, 8},
                                     {2, 256, 8},
                                     {3, 24, 8}}) {
    const Tables tables(40, d / 2, rotary_inv_freq(1e4, d, {}, 64, 64), 1.3, 5);
    Heads<TypeParam> x(2, 17, heads, d, 1, gap), y(2, 17, heads, d, 2, gap);
    Memory<std::int32_t> positions;
    for (int i = 0; i < 34; ++i) positions.push_back((i * 7) % 40);
    rotary<TypeParam>(test_stream(), x.view(), tables.cos_view(), tables.sin_view(),
                      View<const std::int32_t>(positions.data(), {2, 17}), y.view());
    wait_for_device();
    double worst = 0, scale = 0;
    for (std::int64_t i = 0; i < 2 * 17 * heads * (d / 2); ++i) {
      const std::int64_t j = i % (d / 2), h = i / (d / 2) % heads, t = i / (d / 2) / heads % 17,
                         b = i / (d / 2) / (17 * heads);
      const auto row =
          static_cast<std::size_t>(positions[static_cast<std::size_t>(b * 17 + t)] * (d / 2) + j);
      const double c = tables.cos[row], s = tables.sin[row];
      const auto x1 = static_cast<acc_t<TypeParam>>(x.view()(b, t, h, j));
      const auto x2 = static_cast<acc_t<TypeParam>>(x.view()(b, t, h, j + d / 2));
      const auto y1 = static_cast<acc_t<TypeParam>>(y.view()(b, t, h, j));
      const auto y2 = static_cast<acc_t<TypeParam>>(y.view()(b, t, h, j + d / 2));
      worst = std::max({worst, std::abs(y1 - (x1 * c - x2 * s)), std::abs(y2 - (x2 * c + x1 * s))});
      scale = std::max<double>({scale, std::abs(y1), std::abs(y2)});
    }
    EXPECT_LT(worst / scale, tolerance<TypeParam>()) << heads << " heads of " << d;
  }
}

template <class T>
void check_there_and_back(std::int64_t gap) {
  const Tables tables(129, 32, rotary_inv_freq(1e4, 64, {}, 256, 256), 1, 0);
  Heads<T> x(2, 129, 5, 64, 3, gap);
  const Heads<T> before = x;
  rotary<T>(test_stream(), x.view(), tables.cos_view(), tables.sin_view(), {}, x.view());
  wait_for_device();
  double sum_before = 0, sum_after = 0, moved = 0;
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    const double a = static_cast<acc_t<T>>(before.data[i]), b = static_cast<acc_t<T>>(x.data[i]);
    sum_before += a * a;
    sum_after += b * b;
    moved = std::max(moved, std::abs(a - b));
  }
  EXPECT_GT(moved, 1.0);
  EXPECT_NEAR(sum_after / sum_before, 1, std::max(1e-6, tolerance<T>() / 4));
  rotary<T>(test_stream(), x.view(), tables.cos_view(), tables.sin_view(), {}, x.view(), true);
  wait_for_device();
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    ASSERT_NEAR(static_cast<acc_t<T>>(x.data[i]), static_cast<acc_t<T>>(before.data[i]),
                std::max(1e-6, 8 * tolerance<T>()));
  }
}

TYPED_TEST(Rotary, InverseUndoesItInPlaceAndKeepsTheNorm) {
  for (const std::int64_t gap : {3, 8}) check_there_and_back<TypeParam>(gap);
}

TYPED_TEST(Rotary, SameBitsForAnyThreadCount) {
  if (on_gpu()) GTEST_SKIP() << "threads are the CPU's";
  Stream stream(Device::cpu, "test");
  const Tables tables(129, 32, rotary_inv_freq(1e4, 64, {}, 256, 256), 1, 0);
  const int before = thread_count();
  std::vector<Heads<TypeParam>> results;
  for (const int threads : {1, 2, 3}) {
    set_thread_count(threads);
    Heads<TypeParam> x(2, 129, 5, 64, 3);
    rotary<TypeParam>(stream, x.view(), tables.cos_view(), tables.sin_view(), {}, x.view());
    results.push_back(x);
  }
  set_thread_count(before);
  const std::size_t bytes = results[0].data.size() * sizeof(TypeParam);
  EXPECT_EQ(std::memcmp(results[0].data.data(), results[1].data.data(), bytes), 0);
  EXPECT_EQ(std::memcmp(results[0].data.data(), results[2].data.data(), bytes), 0);
}

TEST(RotaryErrors, OnAGpuABadPositionLeavesItsRows) {
  if (!on_gpu()) GTEST_SKIP() << "an error on the CPU";
  const Tables tables(4, 8, rotary_inv_freq(1e4, 16, {}, 64, 64), 1, 0);
  Heads<float> x(1, 3, 2, 16, 1), y(1, 3, 2, 16, 2);
  const Heads<float> before = y;
  Memory<std::int32_t> positions;
  for (const std::int32_t position : {4, 2, -1}) positions.push_back(position);
  rotary<float>(test_stream(), x.view(), tables.cos_view(), tables.sin_view(),
                View<const std::int32_t>(positions.data(), {1, 3}), y.view());
  wait_for_device();
  Heads<float> kept = before;
  for (std::int64_t h = 0; h < 2; ++h) {
    for (std::int64_t j = 0; j < 16; ++j) kept.view()(0, 1, h, j) = y.view()(0, 1, h, j);
  }
  EXPECT_EQ(y.data, kept.data);
  EXPECT_NE(y.data, before.data);
}

TEST(RotaryErrors, ShapesAndPositions) {
  if (on_gpu()) GTEST_SKIP() << "the CPU's own";
  Stream stream(Device::cpu, "test");
  const Tables tables(4, 3, rotary_inv_freq(1e4, 6, {}, 64, 64), 1, 0);
  Heads<float> x(1, 5, 2, 6, 1);
  EXPECT_THROW(rotary<float>(stream, x.view(), tables.cos_view(), tables.sin_view(), {}, x.view()), Error);
  const std::vector<std::int32_t> outside{0, 1, 2, 3, 4}, negative{0, -1, 2, 3, 3};
  for (const auto& positions : {outside, negative}) {
    EXPECT_THROW(rotary<float>(stream, x.view(), tables.cos_view(), tables.sin_view(),
                               View<const std::int32_t>(positions.data(), {1, 5}), x.view()),
                 Error);
  }
}

TEST(RotaryWork, AsByHand) {
  Stream meta(Device::meta, "meta");
  meta.meta_ceilings = {1e30, 1, 1};  // so that a virtual second is a byte
  const View<float> x(nullptr, {2, 7, 3, 8});
  const View<const float> table(nullptr, {16, 4});
  rotary<float>(meta, x, table, table, View<const std::int32_t>(nullptr, {2, 7}), x);
  EXPECT_DOUBLE_EQ(meta.virtual_seconds, 2 * 336 * 4 + 2 * 7 * 4 * 4 + 14 * 4);
  meta.virtual_seconds = 0;
  meta.meta_ceilings = {1, 1e30, 1e30};
  rotary<float>(meta, x, table, table, {}, x);
  EXPECT_DOUBLE_EQ(meta.virtual_seconds, 3.0 * 336);
}

}  // namespace
}  // namespace ridge::kernels
