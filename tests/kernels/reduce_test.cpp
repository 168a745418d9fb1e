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
    {"vectors: rows", {65, 128}, {128, 1}, {65, 1}},
    {"vectors: long rows", {3, 40000}, {40000, 1}, {3, 1}},
    {"vectors: sliced rows", {33, 64}, {72, 1}, {33, 1}},
    {"vectors: columns", {1029, 264}, {264, 1}, {1, 264}},
    {"vectors: sliced columns", {33, 64}, {72, 1}, {1, 64}},
    {"vectors: all", {300, 1024}, {1024, 1}, {1, 1}},
    {"vectors: middle", {7, 300, 16}, {4800, 16, 1}, {7, 1, 16}},
    {"vectors: outer and inner", {40, 6, 70, 8}, {3360, 560, 8, 1}, {1, 6, 1, 1}},
    {"vectors: outer and middle", {40, 6, 70, 8}, {3360, 560, 8, 1}, {1, 6, 1, 8}},
    {"many columns", {4, 70000}, {70000, 1}, {1, 70000}},
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
    sum_to<T>(test_stream(), x.in(), y.view());
    mean_to<T>(test_stream(), x.in(), mean.view());
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
  sum_to<T>(test_stream(), View<const T>(nullptr, {0, 3}), y.view());
  EXPECT_EQ(y.values(), std::vector<double>(3, 0.0));
  sum_to<T>(test_stream(), View<const T>(nullptr, {3, 0}), View<T>(nullptr, {1, 0}));
}

TEST(ReduceAccuracy, AMillionOnesAndATenth) {
  constexpr std::int64_t kCount = 1 << 22;
  Array<float> x({kCount}), total({1}), columns({1, 2});
  std::fill(x.data().begin(), x.data().end(), 0.1f);
  sum_to<float>(test_stream(), x.in(), total.view());
  EXPECT_NEAR(total.values()[0] / (kCount * static_cast<double>(0.1f)), 1, 1e-6);
  sum_to<float>(test_stream(), View<const float>(x.data().data(), {kCount / 2, 2}), columns.view());
  EXPECT_NEAR(columns.values()[1] / (kCount / 2 * static_cast<double>(0.1f)), 1, 4e-6);
}

TYPED_TEST(Reduce, OutputOfAnyStrides) {
  using T = TypeParam;
  Array<T> x({5, 70, 9}), y({5, 1, 9}, {1, 1, 5});
  x.randomize(1);
  sum_to<T>(test_stream(), x.in(), y.view());
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
  max_last<T>(test_stream(), x.in(), top.view());
  argmax_last<T>(test_stream(), x.in(), index.view());
  const auto xs = x.values(), tops = top.values();
  for (std::int64_t r = 0; r < 37; ++r) {
    if (r == 6) continue;
    const auto begin = xs.begin() + r * 1031, best = std::max_element(begin, begin + 1031);
    EXPECT_EQ(tops[static_cast<std::size_t>(r)], *best);
    EXPECT_EQ(index.in()(r), best - begin) << "the first of equals";
  }
  EXPECT_EQ(index.in()(5), 77);
  EXPECT_TRUE(std::isnan(tops[6]));
  EXPECT_EQ(index.in()(6), 500);
}

TYPED_TEST(Reduce, MaxAndArgmaxOfLongAlignedRows) {
  using T = TypeParam;
  constexpr std::int64_t kColumns = 40000;
  auto x = Array<T>::gapped({3, kColumns}, 8);
  Array<T> top({3, 1});
  Array<std::int32_t> index({3});
  x.randomize(1, -9, -1);
  const T least(-std::numeric_limits<float>::infinity()), nan(std::numeric_limits<float>::quiet_NaN());
  x.view()(0, 39999) = T(2.0f), x.view()(0, 20005) = T(2.0f);
  x.view()(1, 31000) = nan, x.view()(1, 12345) = nan, x.view()(1, 3) = T(5.0f);
  for (std::int64_t c = 0; c < kColumns; ++c) x.view()(2, c) = least;
  max_last<T>(test_stream(), x.in(), top.view());
  argmax_last<T>(test_stream(), x.in(), index.view());
  const auto tops = top.values();
  EXPECT_EQ(tops[0], 2);
  EXPECT_TRUE(std::isnan(tops[1]));
  EXPECT_EQ(tops[2], -std::numeric_limits<double>::infinity());
  const std::vector<std::int32_t> want = {20005, 12345, 0};
  EXPECT_TRUE(std::equal(want.begin(), want.end(), index.data().begin()));
}

TYPED_TEST(Reduce, MaxOfStridedRows) {
  using T = TypeParam;
  Array<T> x({4, 5, 9}, {1, 4, 20}), top({4, 5, 1});
  x.randomize(1);
  max_last<T>(test_stream(), x.in(), top.view());
  const auto xs = x.values(), tops = top.values();
  for (std::size_t r = 0; r < 20; ++r) {
    EXPECT_EQ(tops[r], *std::max_element(xs.begin() + 9 * r, xs.begin() + 9 * (r + 1)));
  }
}

TYPED_TEST(Reduce, SumOfSquares) {
  using T = TypeParam;
  for (const Case& c : kCases) {
    Array<T> x(c.shape, c.strides);
    x.randomize(1);
    double want = 0;
    for (const double v : x.values()) want += v * v;
    Array<double> sum({1});
    add_sum_of_squares<T>(test_stream(), x.in(), sum.view());
    EXPECT_NEAR(sum.values()[0] / want, 1, 1e-12) << c.name;
    sum.data()[0] = want;
    add_sum_of_squares<T>(test_stream(), x.in(), sum.view());
    add_sum_of_squares<T>(test_stream(), x.in(), sum.view());
    EXPECT_NEAR(sum.values()[0] / (3 * want), 1, 1e-12) << c.name;
  }
}

TYPED_TEST(Reduce, SumOfSquaresOfLongAndUnalignedPieces) {
  using T = TypeParam;
  constexpr std::int64_t kCount = 3000001;
  Array<T> x({kCount});
  x.randomize(1);
  const auto xs = x.values();
  for (const std::int64_t begin : {std::int64_t{0}, std::int64_t{1}, kCount - 1}) {
    double want = 0;
    for (auto v = xs.begin() + begin; v != xs.end(); ++v) want += *v * *v;
    Array<double> sum({1}), again({1});
    const View<const T> piece(x.in().data + begin, {kCount - begin});
    add_sum_of_squares<T>(test_stream(), piece, sum.view());
    add_sum_of_squares<T>(test_stream(), piece, again.view());
    EXPECT_NEAR(sum.values()[0] / want, 1, 1e-12) << begin;
    EXPECT_EQ(sum.values(), again.values());
  }
  Array<double> none({1});
  add_sum_of_squares<T>(test_stream(), View<const T>(nullptr, {0, 3}), none.view());
  EXPECT_EQ(none.values()[0], 0);
}

TYPED_TEST(Reduce, FirstNonFinite) {
  using T = TypeParam;
  Array<T> x({300, 211}, {1, 300});
  x.randomize(1);
  x.view()(0, 0) = T(static_cast<acc_t<T>>(1e38));  // large is finite
  EXPECT_EQ(first_non_finite<T>(test_stream(), x.in()), -1);
  x.view()(299, 210) = T(std::numeric_limits<float>::infinity());
  EXPECT_EQ(first_non_finite<T>(test_stream(), x.in()), 300 * 211 - 1);
  x.view()(150, 7) = T(-std::numeric_limits<float>::infinity());
  x.view()(150, 8) = T(std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(first_non_finite<T>(test_stream(), x.in()), 150 * 211 + 7);
  x.view()(3, 2) = T(std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(first_non_finite<T>(test_stream(), x.in()), 3 * 211 + 2);
}

TYPED_TEST(Reduce, FirstNonFiniteOfALongRow) {
  using T = TypeParam;
  constexpr std::int64_t kCount = 3000001;
  Array<T> x({kCount});
  x.randomize(1);
  EXPECT_EQ(first_non_finite<T>(test_stream(), x.in()), -1);
  for (const std::int64_t at : {kCount - 1, std::int64_t{2500000}, std::int64_t{77}, std::int64_t{0}}) {
    x.view()(at) = T(std::numeric_limits<float>::quiet_NaN());
    EXPECT_EQ(first_non_finite<T>(test_stream(), x.in()), at);
  }
  EXPECT_EQ(first_non_finite<T>(test_stream(), View<const T>(nullptr, {0})), -1);
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
    Array<double> squares({1});
    add_sum_of_squares<T>(cpu(), x.in(), squares.view());
    out.push_back(squares.values()[0]);
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
  const auto added = launched_on_meta([](Stream& s) {
    add_sum_of_squares<bf16>(s, meta_view<const bf16>({8, 32}), meta_view<double>({1}));
  });
  EXPECT_STREQ(added.op, "add_sum_of_squares");
  EXPECT_EQ(added.bytes, 2 * 256 + 2 * 8);
  EXPECT_EQ(added.flops, 2 * 256);
  launched_on_meta([](Stream& s) { EXPECT_EQ(first_non_finite<float>(s, meta_view<const float>({8})), -1); });
}

TEST(ReduceShapes, WrongOnesAreErrors) {
  Array<float> x({4, 6}), y({4, 3}), flat({4}), none({4, 0});
  EXPECT_THROW(sum_to<float>(test_stream(), x.in(), y.view()), Error);
  EXPECT_THROW(sum_to<float>(test_stream(), x.in(), flat.view()), Error);
  EXPECT_THROW(max_last<float>(test_stream(), x.in(), y.view()), Error);
  EXPECT_THROW(max_last<float>(test_stream(), none.in(), Array<float>({4, 1}).view()), Error);
  EXPECT_THROW(add_sum_of_squares<float>(test_stream(), x.in(), meta_view<double>({2})), Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
