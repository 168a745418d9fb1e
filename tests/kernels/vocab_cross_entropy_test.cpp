#include "kernels/vocab_cross_entropy.h"

#include <numeric>

#include "kernels/cross_entropy.h"
#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

template <class T>
class VocabCrossEntropy : public ::testing::Test {};
TYPED_TEST_SUITE(VocabCrossEntropy, ComputeTypes);

/// How a vocabulary is cut: the ids of each rank, some with none.
struct Case {
  std::int64_t rows;
  std::vector<std::int64_t> pieces;
  std::int64_t gap;  // between the rows of a piece

  std::int64_t vocabulary() const { return std::accumulate(pieces.begin(), pieces.end(), std::int64_t{0}); }
};
std::vector<Case> cases() {
  return {{1, {1}, 0},          {3, {5, 5, 3, 0}, 5},
          {65, {129, 65}, 3},   {7, {2049, 2049, 2049, 2046}, 8},
          {5, {8192, 8192}, 0}, {4, {12564, 12564, 12564, 12565}, 7},
          {3, {0, 31, 0}, 0}};
}

Array<std::int32_t> targets_for(const Case& size) {
  Array<std::int32_t> targets({size.rows});
  for (std::int64_t r = 0; r < size.rows; ++r) {
    const bool ignored = r % 5 == 1;
    targets.data()[static_cast<std::size_t>(r)] =
        static_cast<std::int32_t>(ignored ? kIgnoreIndex : (r * 7919 + 4) % size.vocabulary());
  }
  return targets;
}

/// Columns of the whole logits as an array of its own, so that rows begin at any address.
template <class T>
Array<T> columns(Array<T>& whole, const Case& size, std::int64_t begin, std::int64_t end) {
  auto piece = Array<T>::gapped({size.rows, end - begin}, size.gap);
  const View<T> to = piece.view(), from = whole.view();
  for (std::int64_t r = 0; r < size.rows; ++r) {
    for (std::int64_t c = begin; c < end; ++c) to(r, c - begin) = from(r, c);
  }
  return piece;
}

template <class T>
struct Pieces {
  std::vector<Array<T>> logits;
  std::vector<VocabPiece> places;
  Array<acc_t<T>> statistics;  // [P, 3, R]
};

template <class T>
Pieces<T> cut(Array<T>& whole, const Array<std::int32_t>& targets, const Case& size) {
  const auto ranks = static_cast<std::int64_t>(size.pieces.size());
  Pieces<T> out{{}, {}, Array<acc_t<T>>({ranks, 3, size.rows})};
  std::int64_t first = 0;
  for (std::int64_t p = 0; p < ranks; ++p) {
    const std::int64_t end = first + size.pieces[static_cast<std::size_t>(p)];
    out.logits.push_back(columns(whole, size, first, end));
    out.places.push_back({first, size.vocabulary()});
    const View<acc_t<T>> mine(&out.statistics.view()(p, 0, 0), {3, size.rows});
    vocab_statistics<T>(test_stream(), out.logits.back().in(), targets.in(), out.places.back(), mine);
    first = end;
  }
  return out;
}

TYPED_TEST(VocabCrossEntropy, LossesAreThoseOfTheWhole) {
  using T = TypeParam;
  for (const Case& size : cases()) {
    Array<T> whole({size.rows, size.vocabulary()});
    whole.randomize(1, -20, 20);
    const auto targets = targets_for(size);
    Array<acc_t<T>> want({size.rows}), lse({size.rows}), got({size.rows});
    got.randomize(2);
    cross_entropy<T>(test_stream(), whole.in(), targets.in(), want.view(), lse.view());
    const auto pieces = cut(whole, targets, size);
    vocab_losses<acc_t<T>>(test_stream(), pieces.statistics.in(), targets.in(), got.view());
    EXPECT_LT(normalized_error(got.values(), want.values(), 1), 2 * tolerance<acc_t<T>>())
        << size.rows << " x " << size.vocabulary();
  }
}

TYPED_TEST(VocabCrossEntropy, GradientsAreThoseOfTheWhole) {
  using T = TypeParam;
  constexpr double kScale = 0.375;
  for (const Case& size : cases()) {
    Array<T> whole({size.rows, size.vocabulary()});
    whole.randomize(1, -5, 5);
    const auto targets = targets_for(size);
    auto pieces = cut(whole, targets, size);
    Array<acc_t<T>> want_loss({size.rows});
    cross_entropy_in_place<T>(test_stream(), whole.view(), targets.in(), kScale, want_loss.view());
    const auto want = whole.values();
    for (std::size_t p = 0; p < pieces.logits.size(); ++p) {
      Array<acc_t<T>> loss({size.rows});
      loss.randomize(3);
      vocab_cross_entropy_in_place<T>(test_stream(), pieces.logits[p].view(), targets.in(), pieces.places[p],
                                      pieces.statistics.in(), kScale, loss.view());
      EXPECT_LT(normalized_error(loss.values(), want_loss.values(), 1), 2 * tolerance<acc_t<T>>());
      std::vector<double> wanted;
      for (std::int64_t r = 0; r < size.rows; ++r) {
        for (std::int64_t c = 0; c < size.pieces[p]; ++c)
          wanted.push_back(
              want[static_cast<std::size_t>(r * size.vocabulary() + pieces.places[p].first + c)]);
      }
      EXPECT_LT(normalized_error(pieces.logits[p].values(), wanted, kScale), 2 * tolerance<T>())
          << size.rows << " x " << size.vocabulary() << ", piece " << p;
      for (std::int64_t r = 1; r < size.rows; r += 5) {
        ASSERT_EQ(loss.values()[static_cast<std::size_t>(r)], 0);
        for (std::int64_t c = 0; c < size.pieces[p]; ++c)
          ASSERT_EQ(get(pieces.logits[p].in(), r * size.pieces[p] + c), 0);
      }
    }
  }
}

/// A rank whose logits are all far below, or -inf, adds nothing; NaN spreads.
TEST(VocabCrossEntropyExtremes, MaskedPiecesAndNaN) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const Case size{3, {4, 4}, 0};
  Array<float> whole({3, 8});
  whole.randomize(1);
  std::fill_n(whole.data().begin(), 4, -kInf);
  whole.data()[8] = 1e30f;
  whole.data()[23] = std::numeric_limits<float>::quiet_NaN();
  Array<std::int32_t> targets({3});
  targets.data() = {6, 0, 1};
  auto pieces = cut(whole, targets, size);
  Array<float> loss({3}), want({3}), lse({3});
  cross_entropy<float>(test_stream(), whole.in(), targets.in(), want.view(), lse.view());
  vocab_losses<float>(test_stream(), pieces.statistics.in(), targets.in(), loss.view());
  EXPECT_NEAR(loss.values()[0], want.values()[0], 1e-5);
  EXPECT_EQ(loss.values()[1], 0);
  EXPECT_TRUE(std::isnan(loss.values()[2]));
}

TYPED_TEST(VocabCrossEntropy, SameBitsOnAnyThreads) {
  using T = TypeParam;
  const Case size{301, {400, 377}, 0};
  Array<T> whole({size.rows, size.vocabulary()});
  whole.randomize(1);
  const auto targets = targets_for(size);
  expect_same_bits_on_threads([&] {
    auto pieces = cut(whole, targets, size);
    Array<acc_t<T>> loss({size.rows});
    vocab_cross_entropy_in_place<T>(test_stream(), pieces.logits[1].view(), targets.in(), pieces.places[1],
                                    pieces.statistics.in(), 1, loss.view());
    auto all = loss.values();
    const auto gradient = pieces.logits[1].values();
    all.insert(all.end(), gradient.begin(), gradient.end());
    return all;
  });
}

TEST(VocabCrossEntropyErrors, EveryRankNamesABadTarget) {
  Array<float> logits({3, 4}), statistics({3, 3});
  logits.randomize(1);
  Array<std::int32_t> targets({3});
  for (const std::int32_t bad : {11, -1, -99, 2000000000}) {
    targets.data() = {0, bad, 10};
    for (const std::int64_t first : {0, 4, 7}) {
      const auto message = message_of<UserError>([&] {
        vocab_statistics<float>(test_stream(), logits.in(), targets.in(), {first, 11}, statistics.view());
        wait_for_device();
      });
      EXPECT_NE(message.find("target " + std::to_string(bad) + " in row 1"), std::string::npos) << message;
      EXPECT_NE(message.find("vocabulary of 11"), std::string::npos) << message;
    }
  }
  EXPECT_THROW(vocab_statistics<float>(test_stream(), logits.in(), targets.in(), {8, 11}, statistics.view()),
               Error);
}

TEST(VocabCrossEntropyWork, CountsEveryByteOnce) {
  const auto statistics = launched_on_meta([](Stream& s) {
    vocab_statistics<bf16>(s, meta_view<const bf16>({8, 100}), meta_view<const std::int32_t>({8}), {0, 400},
                           meta_view<float>({3, 8}));
  });
  EXPECT_STREQ(statistics.op, "vocab_statistics");
  EXPECT_EQ(statistics.bytes, 2 * 800 + (1 + 3) * 4 * 8);
  EXPECT_EQ(statistics.flops, 4 * 800);
  const auto losses = launched_on_meta([](Stream& s) {
    vocab_losses<float>(s, meta_view<const float>({4, 3, 8}), meta_view<const std::int32_t>({8}),
                        meta_view<float>({8}));
  });
  EXPECT_EQ(losses.bytes, (4 * 3 + 1 + 1) * 4 * 8);
  const auto gradient = launched_on_meta([](Stream& s) {
    vocab_cross_entropy_in_place<bf16>(s, meta_view<bf16>({8, 100}), meta_view<const std::int32_t>({8}),
                                       {100, 400}, meta_view<const float>({4, 3, 8}), 1,
                                       meta_view<float>({8}));
  });
  EXPECT_STREQ(gradient.op, "vocab_cross_entropy_in_place");
  EXPECT_EQ(gradient.bytes, 2 * 2 * 800 + (4 * 3 + 1 + 1) * 4 * 8);
  EXPECT_EQ(gradient.flops, 3 * 800 + 4 * 4 * 8);
}

}  // namespace
}  // namespace ridge::kernels::testing
