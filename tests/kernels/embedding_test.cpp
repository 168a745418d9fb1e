#include "kernels/embedding.h"

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

template <class T>
class Embedding : public ::testing::Test {};
TYPED_TEST_SUITE(Embedding, ComputeTypes);

struct Case {
  std::int64_t vocabulary, tokens, channels;
};
constexpr Case kCases[] = {{1, 1, 1},       {5, 3, 17},   {7, 129, 65},
                           {100, 33, 1031}, {9, 200, 64}, {3, 401, 1040}};

Array<std::int32_t> ids_for(Case size) {
  Array<std::int32_t> ids({size.tokens});
  for (std::int64_t n = 0; n < size.tokens; ++n) {
    ids.data()[static_cast<std::size_t>(n)] = static_cast<std::int32_t>(n * n * 31 % size.vocabulary);
  }
  return ids;
}

TYPED_TEST(Embedding, CopiesRows) {
  using T = TypeParam;
  for (const Case size : kCases) {
    const std::int64_t gap = size.channels % 8 == 0 ? 8 : 3;
    auto table = Array<T>::gapped({size.vocabulary, size.channels}, gap);
    auto y = Array<T>::gapped({size.tokens, size.channels}, gap);
    table.randomize(1);
    auto ids = ids_for(size);
    embedding<T>(test_stream(), table.in(), ids.in(), y.view());
    const View<T> got = y.view();
    for (std::int64_t n = 0; n < size.tokens; ++n) {
      for (std::int64_t c = 0; c < size.channels; ++c) {
        ASSERT_EQ(static_cast<acc_t<T>>(got(n, c)), static_cast<acc_t<T>>(table.in()(ids.in()(n), c)));
      }
    }
  }
}

TYPED_TEST(Embedding, BackwardAddsRowsOfRepeatedIds) {
  using T = TypeParam;
  for (const Case size : kCases) {
    const std::int64_t gap = size.channels % 8 == 0 ? 8 : 3;
    auto dy = Array<T>::gapped({size.tokens, size.channels}, gap);
    auto dtable = Array<acc_t<T>>::gapped({size.vocabulary, size.channels}, gap);
    dy.randomize(1), dtable.randomize(2);
    auto ids = ids_for(size);
    auto want = dtable.values();
    const auto dys = dy.values();
    for (std::int64_t n = 0; n < size.tokens; ++n) {
      for (std::int64_t c = 0; c < size.channels; ++c) {
        want[static_cast<std::size_t>(ids.in()(n)*size.channels + c)] +=
            dys[static_cast<std::size_t>(n * size.channels + c)];
      }
    }
    embedding_backward<T>(test_stream(), dy.in(), ids.in(), dtable.view());
    EXPECT_LT(normalized_error(dtable.values(), want), 3 * tolerance<acc_t<T>>());
  }
}

/// Rows first .. end - 1 of a table, in memory of their own.
template <class T>
Array<T> rows_of(const Array<T>& table, std::int64_t first, std::int64_t end) {
  Array<T> piece({end - first, table.in().dim(1)});
  const View<T> to = piece.view();
  for (std::int64_t row = first; row < end; ++row) {
    for (std::int64_t c = 0; c < to.dim(1); ++c) to(row - first, c) = table.in()(row, c);
  }
  return piece;
}

TYPED_TEST(Embedding, PiecesOfATableGiveTheirRowsAndZeros) {
  using T = TypeParam;
  for (const Case size : kCases) {
    Array<T> table({size.vocabulary, size.channels});
    table.randomize(1);
    auto ids = ids_for(size);
    const std::int64_t cut = (size.vocabulary + 1) / 2;
    for (const auto& [first, end] : {std::pair{std::int64_t{0}, cut}, {cut, size.vocabulary}, {cut, cut}}) {
      Array<T> piece = rows_of(table, first, end), y({size.tokens, size.channels});
      Array<T> dy({size.tokens, size.channels});
      Array<acc_t<T>> dpiece({end - first, size.channels}), dtable({size.vocabulary, size.channels});
      y.randomize(2), dy.randomize(3);
      const TablePiece place{first, size.vocabulary};
      embedding<T>(test_stream(), piece.in(), ids.in(), y.view(), place);
      wait_for_device();
      for (std::int64_t n = 0; n < size.tokens; ++n) {
        const std::int64_t id = ids.in()(n);
        const bool here = id >= first && id < end;
        for (std::int64_t c = 0; c < size.channels; ++c)
          ASSERT_EQ(get(y.in(), n * size.channels + c), here ? get(table.in(), id * size.channels + c) : 0);
      }
      embedding_backward<T>(test_stream(), dy.in(), ids.in(), dpiece.view(), place);
      embedding_backward<T>(test_stream(), dy.in(), ids.in(), dtable.view());
      wait_for_device();
      EXPECT_EQ(dpiece.values(), rows_of(dtable, first, end).values());
    }
  }
}

TEST(EmbeddingErrors, EveryPieceNamesABadId) {
  Array<float> piece({4, 3}), y({2, 3}), dy({2, 3});
  Array<std::int32_t> ids({2});
  for (const std::int32_t bad : {10, -1}) {
    ids.data() = {3, bad};
    for (const std::int64_t first : {0, 4, 6}) {
      const auto message = message_of<UserError>([&] {
        embedding<float>(test_stream(), piece.in(), ids.in(), y.view(), {first, 10});
        wait_for_device();
      });
      EXPECT_NE(message.find("id " + std::to_string(bad) + " at position 1"), std::string::npos) << message;
      EXPECT_NE(message.find("of 10 ids"), std::string::npos) << message;
      EXPECT_THROW(
          {
            embedding_backward<float>(test_stream(), dy.in(), ids.in(), piece.view(), {first, 10});
            wait_for_device();
          },
          UserError);
    }
  }
  EXPECT_THROW(embedding<float>(test_stream(), piece.in(), ids.in(), y.view(), {7, 10}), Error);
}

TYPED_TEST(Embedding, BackwardHasTheSameBitsOnAnyThreads) {
  using T = TypeParam;
  constexpr Case kSize{3, 500, 1000};
  Array<T> dy({kSize.tokens, kSize.channels});
  dy.randomize(1);
  auto ids = ids_for(kSize);
  expect_same_bits_on_threads([&] {
    Array<acc_t<T>> dtable({kSize.vocabulary, kSize.channels});
    embedding_backward<T>(cpu(), dy.in(), ids.in(), dtable.view());
    return dtable.values();
  });
}

TYPED_TEST(Embedding, TheGpuAddsInTheOrderOfTheCpu) {
  using T = TypeParam;
  if (!on_gpu()) GTEST_SKIP() << "RIDGE_TEST_DEVICE=cuda compares";
  constexpr Case kSize{50, 3000, 264};
  Array<T> dy({kSize.tokens, kSize.channels});
  dy.randomize(1);
  auto ids = ids_for(kSize);
  for (std::int64_t n = 700; n < 1900; ++n) ids.data()[static_cast<std::size_t>(n)] = 7;  // a long run
  Array<acc_t<T>> here({kSize.vocabulary, kSize.channels}), there({kSize.vocabulary, kSize.channels});
  embedding_backward<T>(cpu(), dy.in(), ids.in(), here.view());
  embedding_backward<T>(test_stream(), dy.in(), ids.in(), there.view());
  EXPECT_EQ(there.values(), here.values());
}

/// A GPU cannot throw: a bad id is as if it were not there, and told at the next wait.
TEST(EmbeddingErrors, BadRowsAreLeftOutOnTheGpu) {
  if (!on_gpu()) GTEST_SKIP() << "the GPU's own";
  Array<float> table({10, 4}), y({3, 4}), dy({3, 4}), dtable({10, 4});
  Array<std::int32_t> ids({3});
  table.randomize(1), y.randomize(2), dy.randomize(3);
  const std::vector<std::int32_t> wanted = {4, 99, 4};
  std::copy(wanted.begin(), wanted.end(), ids.data().begin());
  embedding<float>(test_stream(), table.in(), ids.in(), y.view());
  EXPECT_THROW(wait_for_device(), UserError);
  embedding_backward<float>(test_stream(), dy.in(), ids.in(), dtable.view());
  EXPECT_THROW(wait_for_device(), UserError);
  const auto rows = y.values(), sums = dtable.values(), dys = dy.values(), tables = table.values();
  for (std::size_t c = 0; c < 4; ++c) {
    EXPECT_EQ(rows[c], tables[16 + c]);
    EXPECT_EQ(rows[4 + c], 0);
    EXPECT_EQ(static_cast<float>(sums[16 + c]), static_cast<float>(dys[c]) + static_cast<float>(dys[8 + c]));
    EXPECT_EQ(sums[36 + c], 0);
  }
}

TEST(EmbeddingErrors, BadIdNamesPositionIdAndVocabulary) {
  Array<float> table({10, 4}), y({2, 4});
  Array<std::int32_t> ids({2});
  for (const std::int32_t bad : {10, -1, -100}) {
    ids.data() = {3, bad};
    const auto message = message_of<UserError>([&] {
      embedding<float>(test_stream(), table.in(), ids.in(), y.view());
      wait_for_device();
    });
    EXPECT_NE(message.find("id " + std::to_string(bad) + " at position 1"), std::string::npos) << message;
    EXPECT_NE(message.find("of 10 ids"), std::string::npos) << message;
    const auto again = message_of<UserError>([&] {
      embedding_backward<float>(test_stream(), y.in(), ids.in(), table.view());
      wait_for_device();
    });
    EXPECT_EQ(again, message);
  }
  EXPECT_THROW(embedding<float>(test_stream(), table.in(), ids.in(), Array<float>({2, 5}).view()), Error);
}

TEST(EmbeddingWork, CountsRowsNotTheTable) {
  const auto forward = launched_on_meta([](Stream& s) {
    embedding<bf16>(s, meta_view<const bf16>({1000, 32}), meta_view<const std::int32_t>({8}),
                    meta_view<bf16>({8, 32}));
  });
  EXPECT_STREQ(forward.op, "embedding");
  EXPECT_EQ(forward.bytes, 2 * 2 * 256 + 4 * 8);
  const auto backward = launched_on_meta([](Stream& s) {
    embedding_backward<bf16>(s, meta_view<const bf16>({8, 32}), meta_view<const std::int32_t>({8}),
                             meta_view<float>({1000, 32}));
  });
  EXPECT_EQ(backward.bytes, 2 * 256 + 4 * 8 + 2 * 4 * 256);
  EXPECT_EQ(backward.flops, 256);
}

}  // namespace
}  // namespace ridge::kernels::testing
