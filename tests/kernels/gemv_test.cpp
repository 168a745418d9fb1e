#include "kernels/gemv.h"

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

template <class T>
class Gemv : public ::testing::Test {};
using Weights = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(Gemv, Weights);

struct Case {
  std::int64_t m, k, n;
};

// y = x w', with gaps between the rows of w and of y.
template <class T>
Array<float> run(const Case& s, Array<float>& x, Array<T>& w) {
  Array<float> y = Array<float>::gapped({s.m, s.n}, 3);
  for (float& value : y.data()) value = 77;
  std::vector<float> scratch(static_cast<std::size_t>(s.m * s.k));
  gemv_rows<T>(x.in().data, s.m, s.k, w.in().data, w.in().strides[0], s.n, y.view().data, y.view().strides[0],
               std::is_same_v<T, float> ? nullptr : scratch.data());
  return y;
}

TYPED_TEST(Gemv, RowsTimesWeightsOfOddSizes) {
  for (std::int64_t m = 1; m <= kGemvRows; ++m) {
    for (const std::int64_t k : {0, 1, 15, 31, 32, 33, 64, 100, 1000}) {
      for (const std::int64_t n : {1, 2, 3, 8, 9, 203}) {
        Array<float> x = Array<float>({m, k}).randomize(1);
        Array<TypeParam> w = Array<TypeParam>::gapped({n, k}).randomize(2);
        Array<float> y = run<TypeParam>({m, k, n}, x, w);
        const auto a = x.values(), b = w.values();
        std::vector<double> want;
        for (std::size_t i = 0; i < static_cast<std::size_t>(m * n); ++i) {
          const std::size_t row = i / static_cast<std::size_t>(n), column = i % static_cast<std::size_t>(n);
          double sum = 0;
          for (std::size_t l = 0; l < static_cast<std::size_t>(k); ++l)
            sum += a[row * static_cast<std::size_t>(k) + l] * b[column * static_cast<std::size_t>(k) + l];
          want.push_back(sum);
        }
        ASSERT_LE(normalized_error(y.values(), want, std::sqrt(static_cast<double>(k))), 2e-6)
            << m << " x " << k << " x " << n;
        for (std::int64_t i = 0; i + 1 < m; ++i) {
          for (std::int64_t gap = 0; gap < 3; ++gap)
            ASSERT_EQ(y.data()[static_cast<std::size_t>(i * (n + 3) + n + gap)], 77) << "the gap is written";
        }
      }
    }
  }
}

TYPED_TEST(Gemv, SameBitsOnAnyNumberOfThreads) {
  const Case s{3, 999, 1003};
  Array<float> x = Array<float>({s.m, s.k}).randomize(1);
  Array<TypeParam> w = Array<TypeParam>({s.n, s.k}).randomize(2);
  expect_same_bits_on_threads([&] { return run<TypeParam>(s, x, w).values(); });
}

// A row's result does not depend on the rows beside it: decoding a batch is decoding each alone.
TYPED_TEST(Gemv, RowsDoNotDependOnEachOther) {
  const Case s{4, 517, 40};
  Array<float> x = Array<float>({s.m, s.k}).randomize(1);
  Array<TypeParam> w = Array<TypeParam>({s.n, s.k}).randomize(2);
  const auto all = run<TypeParam>(s, x, w).values();
  for (std::int64_t row = 0; row < s.m; ++row) {
    Array<float> one({1, s.k});
    std::copy_n(x.data().begin() + row * s.k, s.k, one.data().begin());
    const auto alone = run<TypeParam>({1, s.k, s.n}, one, w).values();
    for (std::size_t i = 0; i < alone.size(); ++i)
      ASSERT_EQ(alone[i], all[static_cast<std::size_t>(row * s.n) + i]) << "row " << row;
  }
}

}  // namespace
}  // namespace ridge::kernels::testing
