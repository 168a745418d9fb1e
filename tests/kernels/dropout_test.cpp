#include "kernels/dropout.h"

#include "kernels/philox_block.h"
#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

constexpr RandomKey kKey{0x123456789ABCDEFull, 0xFEDCBA9876543210ull};

template <class T>
class Dropout : public ::testing::Test {};
TYPED_TEST_SUITE(Dropout, ComputeTypes);

TEST(PhiloxBlock, EqualsTheScalarGenerator) {
  std::array<std::uint32_t, kPhiloxWords> words;
  for (const std::uint64_t start : {std::uint64_t{0}, std::uint64_t{0xFFFFFFE0}, ~std::uint64_t{0} - 20}) {
    philox_block(kKey, start, kPhiloxCounters, words.data());
    for (std::size_t i = 0; i < words.size(); ++i) ASSERT_EQ(words[i], philox(kKey, start + i / 4)[i % 4]);
  }
}

TYPED_TEST(Dropout, KeepsWhatTheCounterSays) {
  using T = TypeParam;
  for (const std::int64_t n : {1, 3, 17, 257, 40001}) {
    for (const std::uint64_t first : {std::uint64_t{0}, std::uint64_t{5}, (std::uint64_t{1} << 34) + 3}) {
      Array<T> x({n}), y({n});
      x.randomize(1, 1, 2), y.randomize(2);
      dropout<T>(test_stream(), x.in(), 0.3, kKey, first, y.view());
      std::vector<double> want;
      for (std::int64_t i = 0; i < n; ++i) {
        const std::uint64_t word = first + static_cast<std::uint64_t>(i);
        const bool kept = static_cast<double>(uniform_01(philox(kKey, word / 4)[word % 4])) >= 0.3;
        want.push_back(kept ? get(x.in(), i) / 0.7 : 0);
      }
      const auto got = y.values();
      EXPECT_LT(normalized_error(got, want, 1), tolerance<T>()) << n << " from " << first;
      for (std::size_t i = 0; i < want.size(); ++i) ASSERT_EQ(got[i] == 0, want[i] == 0);
    }
  }
}

TEST(DropoutRate, ShareOfZerosIsP) {
  constexpr std::int64_t kCount = 1000000;
  Array<float> x({kCount}), y({kCount});
  std::fill(x.data().begin(), x.data().end(), 1.0f);
  for (const double p : {0.0, 0.1, 0.5, 0.999}) {
    dropout<float>(test_stream(), x.in(), p, kKey, 0, y.view());
    const auto zeros = std::count(y.data().begin(), y.data().end(), 0.0f);
    EXPECT_NEAR(static_cast<double>(zeros) / kCount, p, 5 * std::sqrt(p * (1 - p) / kCount));
  }
  EXPECT_EQ(std::count(y.data().begin(), y.data().end(), 0.0f) > 0, true);
  dropout<float>(test_stream(), x.in(), 0, kKey, 0, y.view());
  EXPECT_EQ(y.data(), x.data());
}

TYPED_TEST(Dropout, PiecesEqualTheWholeAndThreadsDoNotMatter) {
  using T = TypeParam;
  Array<T> x({100003}), y({100003});
  x.randomize(1);
  dropout<T>(test_stream(), x.in(), 0.5, kKey, 11, y.view());
  const auto whole = y.values();
  for (const std::int64_t begin : {50003, 50005, 50000}) {  // middles and beginnings of counters and vectors
    const std::int64_t n = 100003 - begin;
    Array<T> piece({n});
    const View<const T> tail(x.in().data + begin, {n});
    dropout<T>(test_stream(), tail, 0.5, kKey, static_cast<std::uint64_t>(11 + begin), piece.view());
    EXPECT_EQ(piece.values(), std::vector<double>(whole.begin() + begin, whole.end())) << begin;
  }
  if (!on_gpu()) {
    expect_same_bits_on_threads([&] {
      Array<T> again({100003});
      dropout<T>(cpu(), x.in(), 0.5, kKey, 11, again.view());
      EXPECT_EQ(again.values(), whole);
      return again.values();
    });
  }
  dropout<T>(test_stream(), x.in(), 0.5, kKey, 11, x.view());
  EXPECT_EQ(x.values(), y.values()) << "in place";
}

// Columns of something wider get the mask that they have there.
TYPED_TEST(Dropout, ColumnsEqualThoseOfTheWhole) {
  using T = TypeParam;
  const struct {
    std::int64_t rows, width, begin, end;
    std::uint64_t first;
  } cases[] = {{5, 24, 8, 20, 48},         {7, 13, 4, 9, 5}, {301, 130, 65, 130, 3},
               {301, 256, 128, 256, 1024}, {3, 1, 0, 1, 2},  {9, 40, 39, 40, 1}};
  for (const auto& c : cases) {
    const std::int64_t length = c.end - c.begin;
    Array<T> x({c.rows, c.width}), y({c.rows, c.width}), part({c.rows, length}), got({c.rows, length});
    x.randomize(1, 1, 2);
    dropout<T>(test_stream(), x.in(), 0.3, kKey, c.first, y.view());
    const auto whole = y.values();
    std::vector<double> want;
    for (std::int64_t r = 0; r < c.rows; ++r) {
      for (std::int64_t k = c.begin; k < c.end; ++k) {
        part.data()[want.size()] = x.data()[static_cast<std::size_t>(r * c.width + k)];
        want.push_back(whole[static_cast<std::size_t>(r * c.width + k)]);
      }
    }
    const MaskRows rows{c.first + static_cast<std::uint64_t>(c.begin), length, c.width};
    dropout<T>(test_stream(), part.in(), 0.3, kKey, rows, got.view());
    EXPECT_EQ(got.values(), want) << c.width;
  }
}

TEST(DropoutErrors, ProbabilityAndLayout) {
  Array<float> x({4, 4}), y({4, 4}), sliced({4, 4}, {5, 1});
  EXPECT_THROW(dropout<float>(test_stream(), x.in(), 1.0, kKey, 0, y.view()), Error);
  EXPECT_THROW(dropout<float>(test_stream(), x.in(), -0.1, kKey, 0, y.view()), Error);
  EXPECT_THROW(dropout<float>(test_stream(), sliced.in(), 0.1, kKey, 0, y.view()), Error);
  EXPECT_THROW(dropout<float>(test_stream(), x.in(), 0.1, kKey, MaskRows{0, 4, 3}, y.view()), Error);
}

TEST(DropoutWork, CountsEveryByteOnce) {
  const auto record = launched_on_meta([](Stream& s) {
    dropout<bf16>(s, meta_view<const bf16>({8, 32}), 0.1, kKey, 0, meta_view<bf16>({8, 32}));
  });
  EXPECT_STREQ(record.op, "dropout");
  EXPECT_EQ(record.bytes, 2 * 2 * 256);
}

}  // namespace
}  // namespace ridge::kernels::testing
