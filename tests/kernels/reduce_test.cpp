#include "kernels/reduce.h"

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

template <class T>
class Reduce : public ::testing::Test {};
TYPED_TEST_SUITE(Reduce, ComputeTypes);

struct Case {
  const char* name;
  Shape shape;
  Strides strides;
  Shape out;
};

const Case kCases[] = {
    {"scalar", {}, {}, {}},
    {"nothing", {3, 5}, {5, 1}, {3, 5}},
    {"rows", {65, 129}, {129, 1}, {65, 1}},
    {"columns", {1029, 67}, {67, 1}, {1, 67}},
    {"few long columns", {3, 5003}, {5003, 1}, {1, 5003}},
    {"all", {129, 1031}, {1031, 1}, {1, 1}},
    {"long row", {100003}, {1}, {1}},
    {"sliced rows", {33, 17}, {20, 1}, {33, 1}},
    {"sliced columns", {33, 17}, {20, 1}, {1, 17}},
    {"transposed rows", {33, 17}, {1, 33}, {33, 1}},
    {"transposed columns", {33, 17}, {1, 33}, {1, 17}},
    {"strided", {33, 17}, {51, 3}, {1, 1}},
    {"middle", {7, 300, 9}, {2700, 9, 1}, {7, 1, 9}},
    {"outer and inner", {5, 6, 70, 3}, {1260, 210, 3, 1}, {1, 6, 1, 3}},
    {"every other", {2, 3, 4, 5, 6, 7}, {2520, 840, 210, 42, 7, 1}, {2, 1, 4, 1, 6, 1}},
    {"broadcast input", {40, 30}, {0, 1}, {40, 1}},
};

template <class T>
std::vector<double> reference_sum(const Array<T>& x, const Case& c) {
  std::vector<double> sums(static_cast<std::size_t>(numel(c.out)));
  Strides steps = contiguous_strides(c.out);
  for (int d = 0; d < c.out.ndim(); ++d) {
    if (c.out[d] == 1) steps[d] = 0;
  }
  const auto xs = x.values();
  for (std::size_t i = 0; i < xs.size(); ++i) {
    sums[static_cast<std::size_t>(offset_of(c.shape, steps, static_cast<std::int64_t>(i)))] += xs[i];
  }
  return sums;
}

TYPED_TEST(Reduce, SumAndMeanOverAnyDimensions) {
  using T = TypeParam;
  for (const Case& c : kCases) {
    Array<T> x(c.shape, c.strides), y(c.out), mean(c.out);
    x.randomize(1, -1, 2), y.randomize(2);
    sum_to<T>(cpu(), x.in(), y.view());
    mean_to<T>(cpu(), x.in(), mean.view());
    auto want = reference_sum(x, c);
    EXPECT_LT(normalized_error(y.values(), want), tolerance<T>()) << c.name;
    for (double& w : want) w *= static_cast<double>(numel(c.out)) / static_cast<double>(numel(c.shape));
    EXPECT_LT(normalized_error(mean.values(), want), tolerance<T>()) << c.name;
  }
}

TYPED_TEST(Reduce, SumOfNothingIsZero) {
  using T = TypeParam;
  Array<T> y({1, 3});
  y.randomize(1);
  sum_to<T>(cpu(), View<const T>(nullptr, {0, 3}), y.view());
  EXPECT_EQ(y.values(), std::vector<double>(3, 0.0));
  sum_to<T>(cpu(), View<const T>(nullptr, {3, 0}), View<T>(nullptr, {1, 0}));
}

TEST(ReduceAccuracy, AMillionOnesAndATenth) {
  constexpr std::int64_t kCount = 1 << 22;
  Array<float> x({kCount}), total({1}), columns({1, 2});
  std::fill(x.data().begin(), x.data().end(), 0.1f);
  sum_to<float>(cpu(), x.in(), total.view());
  EXPECT_NEAR(total.values()[0] / (kCount * static_cast<double>(0.1f)), 1, 1e-6);
  sum_to<float>(cpu(), View<const float>(x.data().data(), {kCount / 2, 2}), columns.view());
  EXPECT_NEAR(columns.values()[1] / (kCount / 2 * static_cast<double>(0.1f)), 1, 4e-6);
}

TYPED_TEST(Reduce, OutputOfAnyStrides) {
  using T = TypeParam;
  Array<T> x({5, 70, 9}), y({5, 1, 9}, {1, 1, 5});
  x.randomize(1);
  sum_to<T>(cpu(), x.in(), y.view());
  EXPECT_LT(normalized_error(y.values(), reference_sum(x, {"", {5, 70, 9}, {}, {5, 1, 9}})), tolerance<T>());
}

TYPED_TEST(Reduce, MaxAndArgmax) {
  using T = TypeParam;
  auto x = Array<T>::gapped({37, 1031});
  Array<T> top({37, 1});
  Array<std::int32_t> index({37});
  x.randomize(1, -9, -1);
  x.view()(5, 1030) = T(3.0f), x.view()(5, 77) = T(3.0f);
  x.view()(6, 500) = T(std::numeric_limits<float>::quiet_NaN());
  max_last<T>(cpu(), x.in(), top.view());
  argmax_last<T>(cpu(), x.in(), index.view());
  const auto xs = x.values();
  for (std::int64_t r = 0; r < 37; ++r) {
    if (r == 6) continue;
    const auto begin = xs.begin() + r * 1031, best = std::max_element(begin, begin + 1031);
    EXPECT_EQ(top.values()[static_cast<std::size_t>(r)], *best);
    EXPECT_EQ(index.in()(r), best - begin) << "the first of equals";
  }
  EXPECT_EQ(index.in()(5), 77);
  EXPECT_TRUE(std::isnan(top.values()[6]));
  EXPECT_EQ(index.in()(6), 500);
}

TYPED_TEST(Reduce, MaxOfStridedRows) {
  using T = TypeParam;
  Array<T> x({4, 5, 9}, {1, 4, 20}), top({4, 5, 1});
  x.randomize(1);
  max_last<T>(cpu(), x.in(), top.view());
  const auto xs = x.values();
  for (std::size_t r = 0; r < 20; ++r) {
    EXPECT_EQ(top.values()[r], *std::max_element(xs.begin() + 9 * r, xs.begin() + 9 * (r + 1)));
  }
}

TYPED_TEST(Reduce, SumOfSquares) {
  using T = TypeParam;
  for (const Case& c : kCases) {
    Array<T> x(c.shape, c.strides);
    x.randomize(1);
    double want = 0;
    for (const double v : x.values()) want += v * v;
    EXPECT_NEAR(sum_of_squares<T>(cpu(), x.in()) / want, 1, 1e-12) << c.name;
  }
}

TYPED_TEST(Reduce, FirstNonFinite) {
  using T = TypeParam;
  Array<T> x({300, 211}, {1, 300});
  x.randomize(1);
  x.view()(0, 0) = T(static_cast<acc_t<T>>(1e38));  // large is finite
  EXPECT_EQ(first_non_finite<T>(cpu(), x.in()), -1);
  x.view()(299, 210) = T(std::numeric_limits<float>::infinity());
  EXPECT_EQ(first_non_finite<T>(cpu(), x.in()), 300 * 211 - 1);
  x.view()(150, 7) = T(-std::numeric_limits<float>::infinity());
  x.view()(150, 8) = T(std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(first_non_finite<T>(cpu(), x.in()), 150 * 211 + 7);
  x.view()(3, 2) = T(std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(first_non_finite<T>(cpu(), x.in()), 3 * 211 + 2);
}

TYPED_TEST(Reduce, SameBitsOnAnyThreads) {
  using T = TypeParam;
  Array<T> x({1500, 301});
  x.randomize(1);
  expect_same_bits_on_threads([&] {
    Array<T> rows({1500, 1}), columns({1, 301}), all({1, 1});
    sum_to<T>(cpu(), x.in(), rows.view());
    sum_to<T>(cpu(), x.in(), columns.view());
    mean_to<T>(cpu(), x.in(), all.view());
    auto out = rows.values();
    for (const auto& part : {columns.values(), all.values()}) out.insert(out.end(), part.begin(), part.end());
    out.push_back(sum_of_squares<T>(cpu(), x.in()));
    return out;
  });
}

TEST(ReduceWork, CountsEveryByteOnce) {
  const auto sum = launched_on_meta([](Stream& s) {
    sum_to<bf16>(s, meta_view<const bf16>({8, 32}), meta_view<bf16>({1, 32}));
  });
  EXPECT_STREQ(sum.op, "sum");
  EXPECT_EQ(sum.bytes, 2 * (256 + 32));
  EXPECT_EQ(sum.flops, 256);
  const auto squares = launched_on_meta([](Stream& s) {
    EXPECT_EQ(sum_of_squares<float>(s, meta_view<const float>({8, 32})), 0);
  });
  EXPECT_EQ(squares.bytes, 4 * 256);
  EXPECT_EQ(squares.flops, 2 * 256);
  launched_on_meta([](Stream& s) { EXPECT_EQ(first_non_finite<float>(s, meta_view<const float>({8})), -1); });
}

TEST(ReduceShapes, WrongOnesAreErrors) {
  Array<float> x({4, 6}), y({4, 3}), flat({4}), none({4, 0});
  EXPECT_THROW(sum_to<float>(cpu(), x.in(), y.view()), Error);
  EXPECT_THROW(sum_to<float>(cpu(), x.in(), flat.view()), Error);
  EXPECT_THROW(max_last<float>(cpu(), x.in(), y.view()), Error);
  EXPECT_THROW(max_last<float>(cpu(), none.in(), Array<float>({4, 1}).view()), Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
