#include "kernels/rms_norm.h"

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

constexpr double kEps = 1e-3;  // large, so that leaving it out shows

template <class T>
class RmsNorm : public ::testing::Test {};
TYPED_TEST_SUITE(RmsNorm, ComputeTypes);

struct Case {
  std::int64_t rows, channels, gap;
};
// A gap of 8 keeps rows at multiples of 16 bytes: these sizes take each way that a row is laid over threads.
constexpr Case kCases[] = {
    {1, 1, 5},     {3, 17, 5},    {5, 65, 5},    {129, 130, 5},  {700, 64, 5},  {2, 4097, 5}, {300, 8, 8},
    {700, 64, 8},  {130, 136, 8}, {66, 1032, 8}, {600, 2048, 8}, {67, 4104, 8}, {3, 8192, 8}, {3, 16384, 8},
    {3, 16392, 8}, {2, 32768, 8}, {2, 40000, 8}, {5, 4096, 8},   {9, 3584, 8},  {67, 896, 8}, {5000, 264, 8}};

double inverse_rms(const std::vector<double>& x, std::int64_t row, std::int64_t channels) {
  double sum = 0;
  for (std::int64_t c = 0; c < channels; ++c) sum += x[row * channels + c] * x[row * channels + c];
  return 1 / std::sqrt(sum / static_cast<double>(channels) + kEps);
}

struct Gradients {
  std::vector<double> dx, dweight;
};

/// dx = J^T dy with the Jacobian of x * r(x) * w written out, element by element.
Gradients reference_backward(const std::vector<double>& dy, const std::vector<double>& x,
                             const std::vector<double>& w, Case size) {
  const std::int64_t rows = size.rows, n = size.channels;
  Gradients g{std::vector<double>(x.size()), std::vector<double>(w.size())};
  for (std::int64_t r = 0; r < rows; ++r) {
    const double s = inverse_rms(x, r, n);
    double dot = 0;
    for (std::int64_t c = 0; c < n; ++c) dot += dy[r * n + c] * w[c] * x[r * n + c];
    for (std::int64_t c = 0; c < n; ++c) {
      g.dx[r * n + c] = s * w[c] * dy[r * n + c] - x[r * n + c] * s * s * s * dot / static_cast<double>(n);
      g.dweight[c] += dy[r * n + c] * x[r * n + c] * s;
    }
  }
  return g;
}

TYPED_TEST(RmsNorm, MatchesTheDefinition) {
  using T = TypeParam;
  for (const auto [rows, channels, gap] : kCases) {
    auto x = Array<T>::gapped({rows, channels}, gap), y = Array<T>::gapped({rows, channels}, 2 * gap);
    Array<T> w({channels});
    Array<acc_t<T>> inv({rows});
    x.randomize(1), w.randomize(2);
    rms_norm<T>(test_stream(), x.in(), w.in(), y.view(), inv.view(), kEps);
    std::vector<double> want_y, want_inv;
    const auto xs = x.values(), ws = w.values();
    for (std::int64_t r = 0; r < rows; ++r) {
      want_inv.push_back(inverse_rms(xs, r, channels));
      for (std::int64_t c = 0; c < channels; ++c)
        want_y.push_back(xs[r * channels + c] * want_inv[r] * ws[c]);
    }
    EXPECT_LT(normalized_error(y.values(), want_y), 2 * tolerance<T>()) << rows << " x " << channels;
    EXPECT_LT(normalized_error(inv.values(), want_inv), tolerance<acc_t<T>>()) << rows << " x " << channels;
  }
}

TYPED_TEST(RmsNorm, OfASumIsTheSumThenTheNorm) {
  using T = TypeParam;
  for (const auto [rows, channels, gap] : kCases) {
    const Shape shape{rows, channels};
    auto x = Array<T>::gapped(shape, gap), delta = Array<T>::gapped(shape, 2 * gap);
    auto sum = Array<T>::gapped(shape, 3 * gap), y = Array<T>::gapped(shape, gap);
    Array<T> w({channels}), want_y(shape);
    Array<acc_t<T>> inv({rows}), want_inv({rows});
    x.randomize(1), delta.randomize(2), w.randomize(3);
    add_rms_norm<T>(test_stream(), x.in(), delta.in(), w.in(), sum.view(), y.view(), inv.view(), kEps);
    std::vector<double> want_sum;
    const auto xs = x.values(), deltas = delta.values();
    for (std::size_t i = 0; i < xs.size(); ++i)
      want_sum.push_back(
          static_cast<double>(static_cast<acc_t<T>>(T(static_cast<acc_t<T>>(xs[i] + deltas[i])))));
    if (std::is_same_v<T, float>) {
      EXPECT_LT(normalized_error(sum.values(), want_sum), tolerance<T>());
    } else {
      EXPECT_EQ(sum.values(), want_sum) << rows << " x " << channels;
    }
    rms_norm<T>(test_stream(), sum.in(), w.in(), want_y.view(), want_inv.view(), kEps);
    EXPECT_EQ(y.values(), want_y.values()) << rows << " x " << channels;
    EXPECT_EQ(inv.values(), want_inv.values());
    add_rms_norm<T>(test_stream(), x.in(), delta.in(), w.in(), x.view(), delta.view(), {}, kEps);
    EXPECT_EQ(x.values(), sum.values()) << "in place";
    EXPECT_EQ(delta.values(), y.values()) << "in place";
  }
}

TYPED_TEST(RmsNorm, BackwardMatchesTheJacobian) {
  using T = TypeParam;
  for (const Case size : kCases) {
    const auto [rows, channels, gap] = size;
    auto x = Array<T>::gapped({rows, channels}, gap), dy = Array<T>::gapped({rows, channels}, 2 * gap);
    auto y = Array<T>({rows, channels}), dx = Array<T>::gapped({rows, channels}, 3 * gap);
    Array<T> w({channels});
    Array<acc_t<T>> inv({rows}), dw({channels});
    x.randomize(1), w.randomize(2), dy.randomize(3), dw.randomize(4);
    rms_norm<T>(test_stream(), x.in(), w.in(), y.view(), inv.view(), kEps);
    rms_norm_backward<T>(test_stream(), dy.in(), x.in(), w.in(), inv.in(), dx.view(), dw.view());
    const Gradients want = reference_backward(dy.values(), x.values(), w.values(), size);
    EXPECT_LT(normalized_error(dx.values(), want.dx, 1), 2 * tolerance<T>()) << rows << " x " << channels;
    EXPECT_LT(normalized_error(dw.values(), want.dweight), 3 * tolerance<acc_t<T>>())
        << rows << " x " << channels;
  }
}

TYPED_TEST(RmsNorm, BackwardAddsTheResidualsGradient) {
  using T = TypeParam;
  for (const Case size : kCases) {
    const Shape shape{size.rows, size.channels};
    auto x = Array<T>::gapped(shape, size.gap), dy = Array<T>::gapped(shape, 2 * size.gap);
    auto residual = Array<T>::gapped(shape, size.gap), dx = Array<T>::gapped(shape, 3 * size.gap);
    Array<T> w({size.channels}), y(shape);
    Array<acc_t<T>> inv({size.rows}), dw({size.channels}), plain({size.channels});
    x.randomize(1), w.randomize(2), dy.randomize(3), residual.randomize(4);
    rms_norm<T>(test_stream(), x.in(), w.in(), y.view(), inv.view(), kEps);
    rms_norm_backward<T>(test_stream(), dy.in(), x.in(), w.in(), inv.in(), dx.view(), dw.view(),
                         residual.in());
    Gradients want = reference_backward(dy.values(), x.values(), w.values(), size);
    const auto around = residual.values();
    for (std::size_t i = 0; i < around.size(); ++i) want.dx[i] += around[i];
    EXPECT_LT(normalized_error(dx.values(), want.dx, 1), 2 * tolerance<T>()) << to_string(shape);
    rms_norm_backward<T>(test_stream(), dy.in(), x.in(), w.in(), inv.in(), y.view(), plain.view());
    EXPECT_EQ(dw.values(), plain.values());
    rms_norm_backward<T>(test_stream(), dy.in(), x.in(), w.in(), inv.in(), residual.view(), plain.view(),
                         residual.in());
    EXPECT_EQ(residual.values(), dx.values()) << "in place";
  }
}

TEST(RmsNormBackward, WithoutRowsTheWeightsGradientIsZero) {
  Array<float> nothing({0, 24}), w({24}), inv({0}), dw({24});
  dw.randomize(1);
  rms_norm_backward<float>(test_stream(), nothing.in(), nothing.in(), w.in(), inv.in(), nothing.view(),
                           dw.view());
  EXPECT_EQ(dw.values(), std::vector<double>(24, 0.0));
}

TYPED_TEST(RmsNorm, OptionalResultsAndInPlace) {
  using T = TypeParam;
  Array<T> x({7, 33}), w({33}), y({7, 33}), dy({7, 33}), dx({7, 33});
  Array<acc_t<T>> inv({7});
  x.randomize(1), w.randomize(2), dy.randomize(3);
  rms_norm<T>(test_stream(), x.in(), w.in(), y.view(), inv.view(), kEps);
  rms_norm_backward<T>(test_stream(), dy.in(), x.in(), w.in(), inv.in(), dx.view(), {});
  rms_norm_backward<T>(test_stream(), dy.in(), x.in(), w.in(), inv.in(), dy.view(), {});
  EXPECT_EQ(dy.values(), dx.values());
  rms_norm<T>(test_stream(), x.in(), w.in(), x.view(), {}, kEps);
  EXPECT_EQ(x.values(), y.values());
}

TEST(RmsNormRounding, Bf16RoundsTheNormalizedValueBeforeTheWeight) {
  Array<bf16> x({1, 64}), w({64}), y({1, 64});
  Array<float> inv({1});
  x.randomize(1), w.randomize(2);
  rms_norm<bf16>(test_stream(), x.in(), w.in(), y.view(), inv.view(), kEps);
  wait_for_device();
  for (std::int64_t c = 0; c < 64; ++c) {
    const bf16 normalized(static_cast<float>(x.in()(0, c)) * inv.in()(0));
    EXPECT_EQ(y.in()(0, c).bits, bf16(static_cast<float>(normalized) * static_cast<float>(w.in()(c))).bits);
  }
}

TYPED_TEST(RmsNorm, SameBitsOnAnyThreads) {
  using T = TypeParam;
  Array<T> x({1000, 96}), w({96}), dy({1000, 96});
  x.randomize(1), w.randomize(2), dy.randomize(3);
  expect_same_bits_on_threads([&] {
    Array<T> y({1000, 96}), dx({1000, 96});
    Array<acc_t<T>> inv({1000}), dw({96});
    rms_norm<T>(test_stream(), x.in(), w.in(), y.view(), inv.view(), kEps);
    rms_norm_backward<T>(test_stream(), dy.in(), x.in(), w.in(), inv.in(), dx.view(), dw.view());
    auto all = y.values();
    for (const auto& part : {dx.values(), dw.values()}) all.insert(all.end(), part.begin(), part.end());
    return all;
  });
}

TEST(RmsNormWork, CountsEveryByteOnce) {
  const auto forward = launched_on_meta([](Stream& s) {
    rms_norm<bf16>(s, meta_view<const bf16>({8, 32}), meta_view<const bf16>({32}), meta_view<bf16>({8, 32}),
                   meta_view<float>({8}), kEps);
  });
  EXPECT_STREQ(forward.op, "rms_norm");
  EXPECT_EQ(forward.bytes, 2 * (256 + 32 + 256) + 4 * 8);
  EXPECT_EQ(forward.flops, 4 * 256);
  const auto backward = launched_on_meta([](Stream& s) {
    rms_norm_backward<float>(s, meta_view<const float>({8, 32}), meta_view<const float>({8, 32}),
                             meta_view<const float>({32}), meta_view<const float>({8}),
                             meta_view<float>({8, 32}), meta_view<float>({32}));
  });
  EXPECT_EQ(backward.bytes, 4 * (3 * 256 + 32 + 8 + 32));
  EXPECT_EQ(backward.flops, 9 * 256);
  const auto sum = launched_on_meta([](Stream& s) {
    add_rms_norm<bf16>(s, meta_view<const bf16>({8, 32}), meta_view<const bf16>({8, 32}),
                       meta_view<const bf16>({32}), meta_view<bf16>({8, 32}), meta_view<bf16>({8, 32}),
                       meta_view<float>({8}), kEps);
  });
  EXPECT_STREQ(sum.op, "add_rms_norm");
  EXPECT_EQ(sum.bytes, 2 * (4 * 256 + 32) + 4 * 8);
  EXPECT_EQ(sum.flops, 5 * 256);
  const auto joined = launched_on_meta([](Stream& s) {
    rms_norm_backward<bf16>(s, meta_view<const bf16>({8, 32}), meta_view<const bf16>({8, 32}),
                            meta_view<const bf16>({32}), meta_view<const float>({8}),
                            meta_view<bf16>({8, 32}), {}, meta_view<const bf16>({8, 32}));
  });
  EXPECT_EQ(joined.bytes, 2 * (4 * 256 + 32) + 4 * 8);
  EXPECT_EQ(joined.flops, 8 * 256);
}

TEST(RmsNormShapes, WrongOnesAreErrors) {
  Array<float> x({2, 8}), w({7}), y({2, 8});
  EXPECT_THROW(rms_norm<float>(test_stream(), x.in(), w.in(), y.view(), {}, kEps), Error);
  Array<float> columns({2, 8}, {1, 2}), w8({8});
  EXPECT_THROW(rms_norm<float>(test_stream(), columns.in(), w8.in(), y.view(), {}, kEps), Error);
  Array<float> short_delta({1, 8}), inv({2});
  EXPECT_THROW(
      add_rms_norm<float>(test_stream(), x.in(), short_delta.in(), w8.in(), y.view(), y.view(), {}, kEps),
      Error);
  EXPECT_THROW(rms_norm_backward<float>(test_stream(), x.in(), x.in(), w8.in(), inv.in(), y.view(), {},
                                        short_delta.in()),
               Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
