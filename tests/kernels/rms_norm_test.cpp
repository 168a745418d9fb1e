#include "kernels/rms_norm.h"

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

constexpr double kEps = 1e-3;  // large, so that leaving it out shows

template <class T>
class RmsNorm : public ::testing::Test {};
TYPED_TEST_SUITE(RmsNorm, ComputeTypes);

struct Case {
  std::int64_t rows, channels;
};
constexpr Case kCases[] = {{1, 1}, {3, 17}, {5, 65}, {129, 130}, {700, 64}, {2, 4097}};

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
  const auto [rows, n] = size;
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
  for (const auto [rows, channels] : kCases) {
    auto x = Array<T>::gapped({rows, channels}), y = Array<T>::gapped({rows, channels}, 3);
    Array<T> w({channels});
    Array<acc_t<T>> inv({rows});
    x.randomize(1), w.randomize(2);
    rms_norm<T>(cpu(), x.in(), w.in(), y.view(), inv.view(), kEps);
    std::vector<double> want_y, want_inv;
    const auto xs = x.values(), ws = w.values();
    for (std::int64_t r = 0; r < rows; ++r) {
      want_inv.push_back(inverse_rms(xs, r, channels));
      for (std::int64_t c = 0; c < channels; ++c)
        want_y.push_back(xs[r * channels + c] * want_inv[r] * ws[c]);
    }
    EXPECT_LT(normalized_error(y.values(), want_y), 2 * tolerance<T>());
    EXPECT_LT(normalized_error(inv.values(), want_inv), tolerance<acc_t<T>>());
  }
}

TYPED_TEST(RmsNorm, BackwardMatchesTheJacobian) {
  using T = TypeParam;
  for (const Case size : kCases) {
    const auto [rows, channels] = size;
    auto x = Array<T>::gapped({rows, channels}), dy = Array<T>::gapped({rows, channels}, 2);
    auto y = Array<T>({rows, channels}), dx = Array<T>::gapped({rows, channels}, 9);
    Array<T> w({channels});
    Array<acc_t<T>> inv({rows}), dw({channels});
    x.randomize(1), w.randomize(2), dy.randomize(3), dw.randomize(4);
    rms_norm<T>(cpu(), x.in(), w.in(), y.view(), inv.view(), kEps);
    rms_norm_backward<T>(cpu(), dy.in(), x.in(), w.in(), inv.in(), dx.view(), dw.view());
    const Gradients want = reference_backward(dy.values(), x.values(), w.values(), size);
    EXPECT_LT(normalized_error(dx.values(), want.dx, 1), 2 * tolerance<T>()) << rows << " x " << channels;
    EXPECT_LT(normalized_error(dw.values(), want.dweight), 3 * tolerance<acc_t<T>>());
  }
}

TYPED_TEST(RmsNorm, OptionalResultsAndInPlace) {
  using T = TypeParam;
  Array<T> x({7, 33}), w({33}), y({7, 33}), dy({7, 33}), dx({7, 33});
  Array<acc_t<T>> inv({7});
  x.randomize(1), w.randomize(2), dy.randomize(3);
  rms_norm<T>(cpu(), x.in(), w.in(), y.view(), inv.view(), kEps);
  rms_norm_backward<T>(cpu(), dy.in(), x.in(), w.in(), inv.in(), dx.view(), {});
  rms_norm_backward<T>(cpu(), dy.in(), x.in(), w.in(), inv.in(), dy.view(), {});
  EXPECT_EQ(dy.values(), dx.values());
  rms_norm<T>(cpu(), x.in(), w.in(), x.view(), {}, kEps);
  EXPECT_EQ(x.values(), y.values());
}

TEST(RmsNormRounding, Bf16RoundsTheNormalizedValueBeforeTheWeight) {
  Array<bf16> x({1, 64}), w({64}), y({1, 64});
  Array<float> inv({1});
  x.randomize(1), w.randomize(2);
  rms_norm<bf16>(cpu(), x.in(), w.in(), y.view(), inv.view(), kEps);
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
    rms_norm<T>(cpu(), x.in(), w.in(), y.view(), inv.view(), kEps);
    rms_norm_backward<T>(cpu(), dy.in(), x.in(), w.in(), inv.in(), dx.view(), dw.view());
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
}

TEST(RmsNormShapes, WrongOnesAreErrors) {
  Array<float> x({2, 8}), w({7}), y({2, 8});
  EXPECT_THROW(rms_norm<float>(cpu(), x.in(), w.in(), y.view(), {}, kEps), Error);
  Array<float> columns({2, 8}, {1, 2}), w8({8});
  EXPECT_THROW(rms_norm<float>(cpu(), columns.in(), w8.in(), y.view(), {}, kEps), Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
