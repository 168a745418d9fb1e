#include "kernels/cross_entropy.h"

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

template <class T>
class CrossEntropy : public ::testing::Test {};
TYPED_TEST_SUITE(CrossEntropy, ComputeTypes);

struct Case {
  std::int64_t rows, vocabulary;
};
constexpr Case kCases[] = {{1, 1}, {3, 17}, {65, 129}, {7, 2049}, {2, 50257}};

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
    const auto [rows, vocabulary] = size;
    auto logits = Array<T>::gapped({rows, vocabulary});
    logits.randomize(1, -20, 20);
    auto targets = targets_for(size);
    Array<acc_t<T>> loss({rows}), lse({rows});
    cross_entropy<T>(cpu(), logits.in(), targets.in(), loss.view(), lse.view());
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

TYPED_TEST(CrossEntropy, BackwardIsSoftmaxLessOneHot) {
  using T = TypeParam;
  for (const Case size : kCases) {
    const auto [rows, vocabulary] = size;
    auto logits = Array<T>::gapped({rows, vocabulary});
    auto dlogits = Array<T>::gapped({rows, vocabulary}, 2);
    logits.randomize(1, -5, 5), dlogits.randomize(2);
    auto targets = targets_for(size);
    Array<acc_t<T>> loss({rows}), lse({rows}), dloss({rows});
    dloss.randomize(3);
    cross_entropy<T>(cpu(), logits.in(), targets.in(), loss.view(), lse.view());
    cross_entropy_backward<T>(cpu(), logits.in(), targets.in(), lse.in(), dloss.in(), dlogits.view());
    const auto x = logits.values();
    std::vector<double> want;
    for (std::int64_t r = 0; r < rows; ++r) {
      const double norm = log_sum_exp(x, r, vocabulary);
      for (std::int64_t v = 0; v < vocabulary; ++v) {
        const std::int32_t target = targets.in()(r);
        const double p = std::exp(x[r * vocabulary + v] - norm) - (v == target ? 1 : 0);
        want.push_back(target == kIgnoreIndex ? 0 : p * dloss.values()[static_cast<std::size_t>(r)]);
      }
    }
    if (vocabulary > 1) {
      EXPECT_LT(normalized_error(dlogits.values(), want), 2 * tolerance<T>());
    }
    cross_entropy_backward<T>(cpu(), logits.in(), targets.in(), lse.in(), dloss.in(), logits.view());
    EXPECT_EQ(logits.values(), dlogits.values()) << "in place";
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
  cross_entropy<T>(cpu(), logits.in(), targets.in(), loss.view(), lse.view());
  cross_entropy_backward<T>(cpu(), logits.in(), targets.in(), lse.in(), dloss.in(), dlogits.view());
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
  cross_entropy<float>(cpu(), logits.in(), targets.in(), loss.view(), lse.view());
  const std::vector<double> tail(logits.data().begin() + 8200, logits.data().begin() + 8300);
  EXPECT_NEAR(lse.values()[0], log_sum_exp(tail, 0, 100), 1e-5);
  EXPECT_EQ(loss.values()[1], 0);
  logits.data()[8299] = std::numeric_limits<float>::quiet_NaN();
  cross_entropy<float>(cpu(), logits.in(), targets.in(), loss.view(), lse.view());
  EXPECT_TRUE(std::isnan(loss.values()[0]));
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
    cross_entropy<T>(cpu(), logits.in(), targets.in(), loss.view(), lse.view());
    cross_entropy_backward<T>(cpu(), logits.in(), targets.in(), lse.in(), loss.in(), dlogits.view());
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
    const auto message = message_of<UserError>(
        [&] { cross_entropy<float>(cpu(), logits.in(), targets.in(), loss.view(), lse.view()); });
    EXPECT_NE(message.find("target " + std::to_string(bad) + " in row 1"), std::string::npos) << message;
    EXPECT_NE(message.find("vocabulary of 11"), std::string::npos) << message;
    EXPECT_THROW(
        cross_entropy_backward<float>(cpu(), logits.in(), targets.in(), lse.in(), loss.in(), dlogits.view()),
        UserError);
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
}

}  // namespace
}  // namespace ridge::kernels::testing
