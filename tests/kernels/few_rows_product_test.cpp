#include "kernels/few_rows_product.h"

#include <cmath>

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

struct Product {
  std::int64_t m, n, k;
  Memory<float> x, w, y;

  Product(std::int64_t rows, std::int64_t columns, std::int64_t inner, std::int64_t gap)
      : m(rows), n(columns), k(inner), gap_(gap) {
    for (Memory<float>* values : {&x, &w}) {
      std::mt19937_64 engine(values == &x ? 1 : 2);
      std::normal_distribution<float> draw;
      *values = Memory<float>(static_cast<std::size_t>((values == &x ? m : n) * (k + gap_)));
      for (float& value : *values) value = draw(engine);
    }
    y = Memory<float>(static_cast<std::size_t>(m * n));
  }
  void run(std::int64_t rows) {
    few_rows_product(test::test_stream(), View<const float>(x.data(), {rows, k}, {k + gap_, 1}),
                     View<const float>(w.data(), {n, k}, {k + gap_, 1}),
                     View<float>(y.data(), {rows, n}, {n, 1}));
    test::wait_for_device();
  }
  double wanted(std::int64_t row, std::int64_t column, double* size) const {
    double sum = 0;
    for (std::int64_t i = 0; i < k; ++i) {
      const double a = x[static_cast<std::size_t>(row * (k + gap_) + i)];
      const double term = a * w[static_cast<std::size_t>(column * (k + gap_) + i)];
      sum += term;
      *size += std::abs(term);
    }
    return sum;
  }

 private:
  std::int64_t gap_;
};

TEST(FewRowsProduct, IsTheProduct) {
  if (!test::on_gpu()) GTEST_SKIP() << "of GPUs";
  for (const std::int64_t m : {1, 3, 8, 9, 17, 64}) {
    for (const std::int64_t k : {1, 31, 32, 129, 1000}) {
      Product product(m, 37, k, k % 2 == 1 ? 3 : 0);
      product.run(m);
      for (std::int64_t row = 0; row < m; ++row) {
        for (std::int64_t column = 0; column < product.n; ++column) {
          double size = 0;
          const double want = product.wanted(row, column, &size);
          ASSERT_NEAR(product.y[static_cast<std::size_t>(row * product.n + column)], want, 1e-6 * size)
              << m << " rows of " << k << ", at " << row << ", " << column;
        }
      }
    }
  }
}

TEST(FewRowsProduct, NeighboursDoNotMatter) {
  if (!test::on_gpu()) GTEST_SKIP() << "of GPUs";
  Product product(64, 53, 777, 0);
  product.run(64);
  const std::vector<float> all(product.y.begin(), product.y.end());
  for (const std::int64_t m : {1, 2, 7, 8, 9, 33}) {
    product.run(m);
    for (std::int64_t i = 0; i < m * product.n; ++i)
      ASSERT_EQ(product.y[static_cast<std::size_t>(i)], all[static_cast<std::size_t>(i)])
          << m << " rows: " << i;
  }
}

TEST(FewRowsProduct, IsOfGpus) {
  EXPECT_EQ(has_few_rows_product(kMostFewRows, Device::cuda), kBuiltWithCuda);
  EXPECT_FALSE(has_few_rows_product(kMostFewRows + 1, Device::cuda));
  EXPECT_FALSE(has_few_rows_product(1, Device::cpu));
}

}  // namespace
}  // namespace ridge::kernels::testing
