#include "kernels/cross_entropy.h"

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

template <class T>
class CrossEntropy : public ::testing::Test {};
TYPED_TEST_SUITE(CrossEntropy, ComputeTypes);

struct Case {
  std::int64_t rows, vocabulary;
  std::int64_t gap = 0, gradient_gap = 0;  // between rows
};
// Rows of logits and gradient that begin at multiples of 16 bytes, that lie alike, and that do not.
constexpr Case kCases[] = {{1, 1, 5, 2},      {3, 17, 5, 2},    {65, 129, 5, 2},   {7, 2049, 5, 2},
                           {2, 50257, 5, 2},  {5, 50257, 0, 0}, {5, 4096, 8, 16},  {3, 24593, 7, 7},
                           {4, 128256, 8, 0}, {9, 512, 0, 0},   {3, 151936, 0, 8}, {3, 13, 0, 0},
                           {5, 8192, 0, 0},   {3, 50304, 8, 0}, {4, 32008, 0, 0}};

Array<std::int32_t> targets_for(Case size) {
  Array<std::int32_t> targets({size.rows});
  for (std::int64_t r = 0; r < size.rows; ++r) {
    const bool ignored = r % 5 == 1;
    targets.data()[static_cast<std::size_t>(r)] =
        static_cast<std::int32_t>(ignored ? kIgnoreIndex : r * 7919 % size.vocabulary);
  }
  return targets;
}

double log_sum_exp(const std::vector<double>& x, std::int64_t row, std::int64_t n) {
  double top = x[row * n], sum = 0;
  for (std::int64_t v = 0; v < n; ++v) top = std::max(top, x[row * n + v]);
  for (std::int64_t v = 0; v < n; ++v) sum += std::exp(x[row * n + v] - top);
  return top + std::log(sum);
}

TYPED_TEST(CrossEntropy, MatchesTheDefinition) {
  using T = TypeParam;
  for (const Case size : kCases) {
    const std::int64_t rows = size.rows, vocabulary = size.vocabulary;
    auto logits = Array<T>::gapped({rows, vocabulary}, size.gap);
    logits.randomize(1, -20, 20);
    auto targets = targets_for(size);
    Array<acc_t<T>> loss({rows}), lse({rows});
    cross_entropy<T>(test_stream(), logits.in(), targets.in(), loss.view(), lse.view());
    const auto x = logits.values();
    std::vector<double> want_loss, want_lse;
    for (std::int64_t r = 0; r < rows; ++r) {
      want_lse.push_back(log_sum_exp(x, r, vocabulary));
      const std::int32_t target = targets.in()(r);
      want_loss.push_back(target == kIgnoreIndex ? 0 : want_lse[r] - x[r * vocabulary + target]);
    }
    EXPECT_LT(normalized_error(lse.values(), want_lse), tolerance<acc_t<T>>());
    if (vocabulary > 1) {
      EXPECT_LT(normalized_error(loss.values(), want_loss), tolerance<acc_t<T>>());
    } else {
      EXPECT_NEAR(loss.values()[0], 0, 1e-6);
    }
  }
}

/// (softmax - onehot) * factors[row]
std::vector<double> gradient_of(const std::vector<double>& x, const Array<std::int32_t>& targets, Case size,
                                const std::vector<double>& factors) {
  std::vector<double> want;
  for (std::int64_t r = 0; r < size.rows; ++r) {
    const double norm = log_sum_exp(x, r, size.vocabulary), factor = factors[static_cast<std::size_t>(r)];
    const std::int32_t target = targets.in()(r);
    for (std::int64_t v = 0; v < size.vocabulary; ++v) {
      const double p = std::exp(x[r * size.vocabulary + v] - norm) - (v == target ? 1 : 0);
      want.push_back(target == kIgnoreIndex ? 0 : p * factor);
    }
  }
  return want;
}

TYPED_TEST(CrossEntropy, BackwardIsSoftmaxLessOneHot) {
  using T = TypeParam;
  for (const Case size : kCases) {
    const auto [rows, vocabulary, gap, gradient_gap] = size;
    auto logits = Array<T>::gapped({rows, vocabulary}, gap);
    auto dlogits = Array<T>::gapped({rows, vocabulary}, gradient_gap);
    logits.randomize(1, -5, 5), dlogits.randomize(2);
    auto targets = targets_for(size);
    Array<acc_t<T>> loss({rows}), lse({rows}), dloss({rows});
    dloss.randomize(3);
    cross_entropy<T>(test_stream(), logits.in(), targets.in(), loss.view(), lse.view());
    cross_entropy_backward<T>(test_stream(), logits.in(), targets.in(), lse.in(), dloss.in(), dlogits.view());
    const auto want = gradient_of(logits.values(), targets, size, dloss.values());
    if (vocabulary > 1) {
      EXPECT_LT(normalized_error(dlogits.values(), want), 2 * tolerance<T>()) << rows << " x " << vocabulary;
    }
    cross_entropy_backward<T>(test_stream(), logits.in(), targets.in(), lse.in(), dloss.in(), logits.view());
    EXPECT_EQ(logits.values(), dlogits.values()) << "in place";
  }
}

TYPED_TEST(CrossEntropy, InPlaceGivesLossAndGradient) {
  using T = TypeParam;
  constexpr double kScale = 0.375;
  for (const Case size : kCases) {
    const std::int64_t rows = size.rows, vocabulary = size.vocabulary;
    auto logits = Array<T>::gapped({rows, vocabulary}, size.gap);
    logits.randomize(1, -5, 5);
    auto targets = targets_for(size);
    Array<acc_t<T>> loss({rows}), want_loss({rows}), lse({rows});
    loss.randomize(2);
    cross_entropy<T>(test_stream(), logits.in(), targets.in(), want_loss.view(), lse.view());
    const auto want = gradient_of(logits.values(), targets, size, std::vector<double>(rows, kScale));
    cross_entropy_in_place<T>(test_stream(), logits.view(), targets.in(), kScale, loss.view());
    if (vocabulary == 1) {
      EXPECT_NEAR(loss.values()[0], 0, 1e-6);
      EXPECT_NEAR(logits.values()[0], 0, 1e-6);
      continue;
    }
    EXPECT_LT(normalized_error(loss.values(), want_loss.values()), tolerance<acc_t<T>>());
    EXPECT_LT(normalized_error(logits.values(), want), 2 * tolerance<T>()) << rows << " x " << vocabulary;
    for (std::int64_t r = 1; r < rows; r += 5) {
      EXPECT_EQ(loss.values()[static_cast<std::size_t>(r)], 0);
      for (std::int64_t v = 0; v < vocabulary; ++v) ASSERT_EQ(get(logits.in(), r * vocabulary + v), 0);
    }
  }
}

/// More rows than a GPU works on at once, ignored ones among them: the same as loss and gradient apart.
TYPED_TEST(CrossEntropy, InPlaceAgreesOverManyRows) {
  using T = TypeParam;
  constexpr double kScale = 0.375;
  const std::int64_t many = on_gpu() ? 300 : 7;
  for (const Case size : {Case{2 * many, 8200}, Case{many, 65600}}) {
    const Shape shape{size.rows, size.vocabulary};
    Array<T> logits(shape), want(shape);
    logits.randomize(1, -5, 5);
    auto targets = targets_for(size);
    Array<acc_t<T>> loss({size.rows}), want_loss({size.rows}), lse({size.rows}), dloss({size.rows});
    for (auto& factor : dloss.data()) factor = static_cast<acc_t<T>>(kScale);
    cross_entropy<T>(test_stream(), logits.in(), targets.in(), want_loss.view(), lse.view());
    cross_entropy_backward<T>(test_stream(), logits.in(), targets.in(), lse.in(), dloss.in(), want.view());
    cross_entropy_in_place<T>(test_stream(), logits.view(), targets.in(), kScale, loss.view());
    EXPECT_LT(normalized_error(loss.values(), want_loss.values()), tolerance<acc_t<T>>());
    const double bound = 2 * tolerance<T>() * kScale;
    const auto &got = logits.data(), &wanted = want.data();
    std::int64_t wrong = 0;  // NaN counts
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double difference = static_cast<double>(static_cast<acc_t<T>>(got[i])) -
                                static_cast<double>(static_cast<acc_t<T>>(wanted[i]));
      wrong += !(std::fabs(difference) <= bound);
    }
    EXPECT_EQ(wrong, 0) << size.rows << " x " << size.vocabulary;
  }
}

TYPED_TEST(CrossEntropy, IgnoredRowsGiveExactZeros) {
  using T = TypeParam;
  Array<T> logits({2, 9}), dlogits({2, 9});
  logits.randomize(1), dlogits.randomize(2);
  Array<std::int32_t> targets({2});
  targets.data() = {-100, -100};
  Array<acc_t<T>> loss({2}), lse({2}), dloss({2});
  loss.randomize(4), dloss.randomize(3);
  cross_entropy<T>(test_stream(), logits.in(), targets.in(), loss.view(), lse.view());
  cross_entropy_backward<T>(test_stream(), logits.in(), targets.in(), lse.in(), dloss.in(), dlogits.view());
  EXPECT_EQ(loss.values(), std::vector<double>(2, 0.0));
  EXPECT_EQ(dlogits.values(), std::vector<double>(18, 0.0));
}

TEST(CrossEntropyExtremes, MaskedLogitsAndLargeOnes) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Array<float> logits({2, 8300});
  logits.randomize(1);
  std::fill_n(logits.data().begin(), 8200, -kInf);  // whole chunks of -inf come first
  logits.data()[8300 + 17] = 1e30f;
  Array<std::int32_t> targets({2});
  targets.data() = {8250, 17};
  Array<float> loss({2}), lse({2});
  cross_entropy<float>(test_stream(), logits.in(), targets.in(), loss.view(), lse.view());
  const std::vector<double> tail(logits.data().begin() + 8200, logits.data().begin() + 8300);
  EXPECT_NEAR(lse.values()[0], log_sum_exp(tail, 0, 100), 1e-5);
  EXPECT_EQ(loss.values()[1], 0);
  logits.data()[8299] = std::numeric_limits<float>::quiet_NaN();
  cross_entropy<float>(test_stream(), logits.in(), targets.in(), loss.view(), lse.view());
  EXPECT_TRUE(std::isnan(loss.values()[0]));
}

TEST(CrossEntropyExtremes, InPlaceMaskedLogitsAndNaN) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr std::int64_t kWidth = 32768;
  Array<float> logits({4, kWidth});
  logits.randomize(1);
  std::fill_n(logits.data().begin(), kWidth - 100, -kInf);
  logits.data()[kWidth + 17] = 1e30f;
  logits.data()[4 * kWidth - 1] = std::numeric_limits<float>::quiet_NaN();
  Array<std::int32_t> targets({4});
  targets.data() = {kWidth - 50, 17, kIgnoreIndex, 5};
  Array<float> loss({4});
  const std::vector<double> tail(logits.data().begin() + kWidth - 100, logits.data().begin() + kWidth);
  cross_entropy_in_place<float>(test_stream(), logits.view(), targets.in(), 1, loss.view());
  EXPECT_NEAR(loss.values()[0], log_sum_exp(tail, 0, 100) - tail[50], 1e-5);
  EXPECT_EQ(logits.values()[0], 0);
  EXPECT_EQ(loss.values()[1], 0);
  EXPECT_EQ(logits.values()[kWidth + 17], 0);
  EXPECT_EQ(loss.values()[2], 0);
  EXPECT_EQ(logits.values()[2 * kWidth], 0);
  EXPECT_TRUE(std::isnan(loss.values()[3]));
  EXPECT_TRUE(std::isnan(logits.values()[3 * kWidth]));
}

TEST(CrossEntropyErrors, BadTargetOfALongRowCountsForNothing) {
  Array<float> logits({3, 16384}), loss({3});
  logits.randomize(1);
  Array<std::int32_t> targets({3});
  targets.data() = {0, 16384, 1};
  const auto message = message_of<UserError>([&] {
    cross_entropy_in_place<float>(test_stream(), logits.view(), targets.in(), 1, loss.view());
    wait_for_device();
  });
  EXPECT_NE(message.find("target 16384 in row 1"), std::string::npos) << message;
}

TYPED_TEST(CrossEntropy, SameBitsOnAnyThreads) {
  using T = TypeParam;
  constexpr Case kSize{301, 777};
  Array<T> logits({kSize.rows, kSize.vocabulary});
  logits.randomize(1);
  auto targets = targets_for(kSize);
  expect_same_bits_on_threads([&] {
    Array<acc_t<T>> loss({kSize.rows}), lse({kSize.rows});
    Array<T> dlogits({kSize.rows, kSize.vocabulary});
    cross_entropy<T>(test_stream(), logits.in(), targets.in(), loss.view(), lse.view());
    cross_entropy_backward<T>(test_stream(), logits.in(), targets.in(), lse.in(), loss.in(), dlogits.view());
    auto all = lse.values();
    const auto gradient = dlogits.values();
    all.insert(all.end(), gradient.begin(), gradient.end());
    return all;
  });
}

TEST(CrossEntropyErrors, BadTargetNamesRowIdAndVocabulary) {
  Array<float> logits({3, 11}), dlogits({3, 11});
  Array<float> loss({3}), lse({3});
  Array<std::int32_t> targets({3});
  for (const std::int32_t bad : {11, -1, -99, 2000000000}) {
    targets.data() = {0, bad, 1};
    const auto message = message_of<UserError>([&] {
      cross_entropy<float>(test_stream(), logits.in(), targets.in(), loss.view(), lse.view());
      wait_for_device();
    });
    EXPECT_NE(message.find("target " + std::to_string(bad) + " in row 1"), std::string::npos) << message;
    EXPECT_NE(message.find("vocabulary of 11"), std::string::npos) << message;
    const auto backward = [&] {
      cross_entropy_backward<float>(test_stream(), logits.in(), targets.in(), lse.in(), loss.in(),
                                    dlogits.view());
      wait_for_device();
    };
    EXPECT_THROW(backward(), UserError);
    const auto in_place = [&] {
      cross_entropy_in_place<float>(test_stream(), logits.view(), targets.in(), 1, loss.view());
      wait_for_device();
    };
    EXPECT_THROW(in_place(), UserError);
  }
}

TEST(CrossEntropyWork, CountsEveryByteOnce) {
  const auto forward = launched_on_meta([](Stream& s) {
    cross_entropy<bf16>(s, meta_view<const bf16>({8, 100}), meta_view<const std::int32_t>({8}),
                        meta_view<float>({8}), meta_view<float>({8}));
  });
  EXPECT_STREQ(forward.op, "cross_entropy");
  EXPECT_EQ(forward.bytes, 2 * 800 + 3 * 4 * 8);
  EXPECT_EQ(forward.flops, 4 * 800);
  const auto backward = launched_on_meta([](Stream& s) {
    cross_entropy_backward<bf16>(s, meta_view<const bf16>({8, 100}), meta_view<const std::int32_t>({8}),
                                 meta_view<const float>({8}), meta_view<const float>({8}),
                                 meta_view<bf16>({8, 100}));
  });
  EXPECT_EQ(backward.bytes, 2 * 2 * 800 + 3 * 4 * 8);
  const auto both = launched_on_meta([](Stream& s) {
    cross_entropy_in_place<bf16>(s, meta_view<bf16>({8, 100}), meta_view<const std::int32_t>({8}), 1,
                                 meta_view<float>({8}));
  });
  EXPECT_STREQ(both.op, "cross_entropy_in_place");
  EXPECT_EQ(both.bytes, 2 * 2 * 800 + 2 * 4 * 8);
  EXPECT_EQ(both.flops, 7 * 800);
}

}  // namespace
}  // namespace ridge::kernels::testing
