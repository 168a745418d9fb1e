#include "kernels/fill.h"

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

constexpr RandomKey kKey{42, 7};

template <class T>
class Fill : public ::testing::Test {};
TYPED_TEST_SUITE(Fill, ComputeTypes);

TYPED_TEST(Fill, ValueOnAnyStrides) {
  using T = TypeParam;
  Array<T> y({17, 33}, {40, 1}), across({3, 5}, {2, 6});
  fill<T>(test_stream(), y.view(), 1.5);
  fill<T>(test_stream(), across.view(), -2);
  EXPECT_EQ(y.values(), std::vector<double>(17 * 33, 1.5));
  EXPECT_EQ(get(View<const T>(y.data().data(), {40}), 33), 0) << "the gap stays";
  EXPECT_EQ(across.values(), std::vector<double>(15, -2.0));
}

TYPED_TEST(Fill, UniformIsTheCountersWord) {
  using T = TypeParam;
  Array<T> y({5001});
  uniform<T>(test_stream(), y.view(), -1, 3, kKey, 6);
  std::vector<double> want;
  for (std::uint64_t i = 6; i < 5007; ++i)
    want.push_back(-1 + 4 * static_cast<double>(uniform_01(philox(kKey, i / 4)[i % 4])));
  EXPECT_LT(normalized_error(y.values(), want), tolerance<T>());
}

TYPED_TEST(Fill, NormalIsBoxMullerOfTheCountersWords) {
  using T = TypeParam;
  Array<T> y({5001});
  normal<T>(test_stream(), y.view(), 0.5, 2, kKey, 3);
  std::vector<double> want;
  for (std::uint64_t i = 3; i < 5004; ++i) {
    const auto words = philox(kKey, i / 4);
    const std::size_t pair = i % 4 / 2 * 2;
    const double u = (static_cast<double>(words[pair]) + 0.5) * 0x1p-32;
    const double angle = 2 * M_PI * static_cast<double>(uniform_01(words[pair + 1]));
    want.push_back(0.5 + 2 * std::sqrt(-2 * std::log(u)) * (i % 2 ? std::sin(angle) : std::cos(angle)));
  }
  EXPECT_LT(normalized_error(y.values(), want), std::max(tolerance<T>(), 2e-6));  // draws are f32
}

struct Moments {
  double mean = 0, variance = 0, kurtosis = 0, greatest = 0;
};

Moments moments(const Memory<float>& x) {
  Moments m;
  const auto n = static_cast<double>(x.size());
  for (const float v : x) m.mean += v / n;
  for (const float v : x) m.variance += (v - m.mean) * (v - m.mean) / n;
  for (const float v : x) m.kurtosis += std::pow(v - m.mean, 4) / (n * m.variance * m.variance);
  for (const float v : x) m.greatest = std::max(m.greatest, std::fabs(static_cast<double>(v)));
  return m;
}

TEST(FillMoments, NormalAndUniform) {
  Array<float> y({1 << 20});
  normal<float>(test_stream(), y.view(), 0, 1, kKey);
  const Moments normals = moments(y.data());
  EXPECT_NEAR(normals.mean, 0, 5e-3);
  EXPECT_NEAR(normals.variance, 1, 7e-3);
  EXPECT_NEAR(normals.kurtosis, 3, 2.5e-2);
  EXPECT_GT(normals.greatest, 4);
  EXPECT_LT(normals.greatest, 7);
  uniform<float>(test_stream(), y.view(), 0, 1, kKey);
  const Moments uniforms = moments(y.data());
  EXPECT_NEAR(uniforms.mean, 0.5, 2e-3);
  EXPECT_NEAR(uniforms.variance, 1.0 / 12, 1e-3);
  EXPECT_LT(uniforms.greatest, 1);
}

TYPED_TEST(Fill, ElementsDependOnTheirIndexAlone) {
  using T = TypeParam;
  Array<T> whole({300, 211});
  normal<T>(test_stream(), whole.view(), 0, 1, kKey);
  const auto want = whole.values();
  auto sliced = Array<T>::gapped({300, 211});
  normal<T>(test_stream(), sliced.view(), 0, 1, kKey);
  EXPECT_EQ(sliced.values(), want);
  for (const std::int64_t row : {200, 201, 202}) {  // beginnings and middles of counters
    Array<T> tail({300 - row, 211});
    normal<T>(test_stream(), tail.view(), 0, 1, kKey, static_cast<std::uint64_t>(row * 211));
    EXPECT_EQ(tail.values(), std::vector<double>(want.begin() + row * 211, want.end())) << row;
  }
  Array<T> other({300, 211});
  normal<T>(test_stream(), other.view(), 0, 1, RandomKey{42, 8});
  EXPECT_NE(other.values(), want);
}

TYPED_TEST(Fill, SameBitsOnAnyThreads) {
  using T = TypeParam;
  expect_same_bits_on_threads([&] {
    auto sliced = Array<T>::gapped({300, 211});
    normal<T>(cpu(), sliced.view(), 0, 1, kKey);
    return sliced.values();
  });
}

TYPED_TEST(Fill, TheGpuDrawsWhatTheCpuDraws) {
  using T = TypeParam;
  if (!on_gpu()) GTEST_SKIP() << "RIDGE_TEST_DEVICE=cuda compares";
  Array<T> here({3001}), there({3001});
  uniform<T>(cpu(), here.view(), 0, 1, kKey, 4);
  uniform<T>(test_stream(), there.view(), 0, 1, kKey, 4);
  EXPECT_EQ(there.values(), here.values());
  normal<T>(cpu(), here.view(), 0, 1, kKey, 5);
  normal<T>(test_stream(), there.view(), 0, 1, kKey, 5);
  EXPECT_LT(normalized_error(there.values(), here.values()), std::max(tolerance<T>(), 1e-6));
}

TEST(FillWork, CountsWrittenBytes) {
  EXPECT_EQ(launched_on_meta([](Stream& s) { fill<bf16>(s, meta_view<bf16>({8, 32}), 0); }).bytes, 512);
  EXPECT_EQ(launched_on_meta([](Stream& s) {
              normal<float>(s, meta_view<float>({8, 32}), 0, 1, kKey);
            }).bytes,
            1024);
  EXPECT_EQ(launched_on_meta([](Stream& s) { uniform<float>(s, meta_view<float>({9}), 0, 1, kKey); }).bytes,
            36);
}

}  // namespace
}  // namespace ridge::kernels::testing
