#include "kernels/sum_parts.h"

#include <algorithm>

#include "core/base/error.h"
#include "tests/kernels/kernel_test.h"

namespace ridge::kernels {
namespace {

using namespace testing;

template <class Part, class Sum>
struct Pair {
  using T = Part;
  using Y = Sum;
};
template <class P>
class SumParts : public ::testing::Test {};
using Types = ::testing::Types<Pair<float, float>, Pair<bf16, float>, Pair<bf16, bf16>, Pair<double, double>>;
TYPED_TEST_SUITE(SumParts, Types);

/// Element by element, in the order of parts; y is rounded once.
template <class T, class Y>
std::vector<double> expected(const std::vector<Array<T>>& parts, const std::vector<double>& y, bool adds) {
  std::vector<double> out;
  for (std::size_t i = 0; i < y.size(); ++i) {
    auto sum = static_cast<acc_t<T>>(parts[0].values()[i]);
    for (std::size_t p = 1; p < parts.size(); ++p) sum += static_cast<acc_t<T>>(parts[p].values()[i]);
    if (adds) sum = static_cast<acc_t<T>>(y[i]) + sum;
    out.push_back(static_cast<double>(static_cast<acc_t<Y>>(static_cast<Y>(sum))));
  }
  return out;
}

template <class T, class Y>
void expect_sum(std::size_t count, std::int64_t n, std::int64_t offset, bool adds) {
  std::vector<Array<T>> parts;
  std::vector<View<const T>> views;
  for (std::size_t p = 0; p < count; ++p) {
    parts.emplace_back(Shape{n});
    parts.back().randomize(p + 1);
  }
  for (const Array<T>& part : parts) views.emplace_back(part.in().data + offset, Shape{n - offset});
  Array<Y> y({n});
  y.randomize(99);
  const std::vector<double> before = y.values();
  std::vector<double> want = expected<T, Y>(parts, before, adds);
  std::copy_n(before.begin(), offset, want.begin());
  sum_parts<T, Y>(test_stream(), views, View<Y>(y.view().data + offset, {n - offset}), adds);
  EXPECT_EQ(y.values(), want) << count << " parts of " << n << " from " << offset;
}

TYPED_TEST(SumParts, HaveTheBitsOfSumsInOrder) {
  using T = typename TypeParam::T;
  using Y = typename TypeParam::Y;
  for (const std::size_t count : {1, 2, 3, 4, 5, 8, 9}) {
    for (const std::int64_t n : {1, 4, 61, 1028}) {
      for (const bool adds : {false, true}) expect_sum<T, Y>(count, n, 0, adds);
    }
  }
  expect_sum<T, Y>(4, 1029, 1, true);
}

TEST(SumPartsInPlace, TheSumMayBeOneOfTheParts) {
  Array<float> a({103}), b({103});
  a.randomize(1);
  b.randomize(2);
  const std::vector<double> x = a.values(), z = b.values();
  const std::vector<View<const float>> parts{a.in(), b.in()};
  sum_parts<float>(test_stream(), parts, b.view(), false);
  const std::vector<double> y = b.values();
  for (std::size_t i = 0; i < y.size(); ++i)
    ASSERT_EQ(y[i], static_cast<float>(x[i]) + static_cast<float>(z[i])) << i;
}

TEST(SumPartsWork, IsWhatIsReadAndWritten) {
  const std::vector<View<const bf16>> parts(4, meta_view<const bf16>({100}));
  const auto record = launched_on_meta(
      [&](Stream& stream) { sum_parts<bf16>(stream, parts, meta_view<float>({100}), true); });
  EXPECT_EQ(record.bytes, 4 * 200 + 2 * 400);
  EXPECT_EQ(record.flops, 400);
}

TEST(SumPartsChecks, PartsOfAnotherSizeAreABug) {
  Array<float> a({4}), b({5}), y({4});
  const std::vector<View<const float>> parts{a.in(), b.in()}, none;
  EXPECT_THROW(sum_parts<float>(test_stream(), parts, y.view(), false), Error);
  EXPECT_THROW(sum_parts<float>(test_stream(), none, y.view(), false), Error);
}

}  // namespace
}  // namespace ridge::kernels
