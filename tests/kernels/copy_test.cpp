#include "kernels/copy.h"

#include "kernels/element.h"
#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

constexpr DType kAll[] = {DType::f32, DType::f64, DType::bf16, DType::f16,
                          DType::i32, DType::i64, DType::u8,   DType::i8};

template <class T>
double as_double(T x) {
  if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
    return static_cast<float>(x);
  } else {
    return static_cast<double>(x);
  }
}

template <class T>
T from_double(double x) {
  if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
    return T(static_cast<float>(x));
  } else {
    if constexpr (std::is_integral_v<T>) {  // the largest int64 is no double: the cast would leave the range
      if (x >= static_cast<double>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
    }
    return static_cast<T>(x);
  }
}

/// The definition for values that are exact in f64: floats round, integers truncate and saturate.
template <class D>
double reference(double x) {
  if constexpr (std::is_integral_v<D>) {
    if (std::isnan(x)) return 0;
    const auto low = static_cast<double>(std::numeric_limits<D>::min());
    const auto high = static_cast<double>(std::numeric_limits<D>::max());
    return std::trunc(std::min(std::max(x, low), high));
  } else {
    return as_double(from_double<D>(x));
  }
}

const std::vector<double> kValues = {0,    1,     -1,   0.5,  -0.75, 2.5,   3.5,   100.7, -100.7,
                                     127,  128,   -128, -129, 255,   256,   -3,    1000,  65504,
                                     1e10, -1e10, 1e-7, 7e-8, 3e-5,  1e300, -1e300};

/// `x` as type D.
template <class D, class S>
std::vector<D> converted(const std::vector<S>& x) {
  const Shape shape{static_cast<std::int64_t>(x.size())};
  Array<S> from(shape);
  Array<D> to(shape);
  std::copy(x.begin(), x.end(), from.data().begin());
  convert<S, D>(test_stream(), from.in(), to.view());
  return {to.data().begin(), to.data().end()};
}

template <class S, class D>
void check_pair() {
  std::vector<S> x;
  for (const double v : kValues) x.push_back(from_double<S>(reference<S>(v)));
  while (x.size() < 200) x.push_back(x[x.size() - kValues.size()]);
  const std::vector<D> y = converted<D>(x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(as_double(y[i]), reference<D>(as_double(x[i])))
        << name_of(dtype_of<S>) << " to " << name_of(dtype_of<D>) << " of " << as_double(x[i]);
  }
}

TEST(Convert, AllPairsOfDtypes) {
  for (const DType from : kAll) {
    for (const DType to : kAll) {
      visit_any(from, [&]<class S>(std::type_identity<S>) {
        visit_any(to, [&]<class D>(std::type_identity<D>) { check_pair<S, D>(); });
      });
    }
  }
}

TEST(Convert, SixtyFourBitIntegersStayExact) {
  const std::int64_t big = (std::int64_t{1} << 62) + 1;
  const std::vector<std::int64_t> x = {big, -big, 3000000000, -3000000000, 5};
  EXPECT_EQ(converted<std::int64_t>(x), x);
  const auto narrow = converted<std::int32_t>(x);
  EXPECT_EQ(narrow[2], std::numeric_limits<std::int32_t>::max());
  EXPECT_EQ(narrow[3], std::numeric_limits<std::int32_t>::min());
  EXPECT_EQ(narrow[4], 5);
}

TEST(Convert, NotANumberAndInfinities) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {std::numeric_limits<float>::quiet_NaN(), kInf, -kInf};
  const auto wide = converted<std::int64_t>(x);
  const auto narrow = converted<std::uint8_t>(x);
  const auto half = converted<f16>(x);
  EXPECT_EQ(wide[0], 0);
  EXPECT_EQ(wide[1], std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(wide[2], std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(narrow[0], 0);
  EXPECT_EQ(narrow[1], 255);
  EXPECT_EQ(narrow[2], 0);
  EXPECT_TRUE(std::isnan(static_cast<float>(half[0])));
  EXPECT_EQ(static_cast<float>(half[1]), kInf);
  EXPECT_EQ(static_cast<float>(half[2]), -kInf);
}

TEST(Convert, HalfCodecsEqualTheScalarOnes) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto b = static_cast<std::uint16_t>(bits);
    const float want = f16::decode(b), got = decode_f16(b);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << bits;
    } else {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(got), std::bit_cast<std::uint32_t>(want)) << bits;
    }
  }
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 4001) {
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    ASSERT_EQ(encode_f16(x), f16::encode(x)) << x;
  }
  for (std::uint32_t bits = 0; bits < 0x7C00; ++bits) {  // ties and their neighbours
    const float a = f16::decode(static_cast<std::uint16_t>(bits)),
                b = f16::decode(static_cast<std::uint16_t>(bits + 1));
    const float tie = std::isinf(b) ? 65520.0f : 0.5f * (a + b);
    for (const float x : {a, tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 1e9f), -tie}) {
      ASSERT_EQ(encode_f16(x), f16::encode(x)) << x;
    }
  }
}

TEST(Convert, RoundingInPlaceEqualsStoring) {
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 3989) {
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    const float want = static_cast<float>(bf16(x)), got = round_to<bf16>(x);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << bits;
    } else {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(got), std::bit_cast<std::uint32_t>(want)) << bits;
    }
  }
}

struct Layout {
  const char* name;
  Shape shape;
  Strides x, y;
};

const Layout kLayouts[] = {
    {"scalar", {}, {}, {}},
    {"contiguous", {40001}, {1}, {1}},
    {"sliced", {65, 129}, {140, 1}, {130, 1}},
    {"broadcast", {65, 129}, {0, 1}, {129, 1}},
    {"transposed", {65, 129}, {1, 65}, {129, 1}},
    {"transposed output", {65, 129}, {129, 1}, {1, 65}},
    {"transposed with holes", {65, 129}, {1, 70}, {131, 1}},
    {"vectors: sliced", {65, 128}, {144, 1}, {160, 1}},
    {"vectors: broadcast", {65, 128}, {0, 1}, {128, 1}},
    {"vectors: outer broadcast", {5, 13, 64}, {64, 0, 1}, {832, 64, 1}},
    {"heads", {2, 5, 33, 16}, {2640, 16, 80, 1}, {2640, 528, 16, 1}},
    {"keys transposed", {2, 5, 16, 33}, {2640, 16, 1, 80}, {2640, 528, 33, 1}},
    {"batch outside", {33, 3, 40}, {1, 1320, 33}, {120, 40, 1}},
    {"both strided", {31, 17}, {34, 2}, {3, 93}},
    {"six", {2, 3, 4, 3, 2, 9}, {1, 2, 6, 24, 72, 144}, {648, 216, 54, 18, 9, 1}},
};

template <class S, class D>
void check_layouts() {
  for (const Layout& l : kLayouts) {
    Array<S> x(l.shape, l.x);
    Array<D> y(l.shape, l.y);
    x.randomize(1);
    convert<S, D>(test_stream(), x.in(), y.view());
    std::vector<double> want;
    for (const double v : x.values()) want.push_back(as_double(from_double<D>(v)));
    EXPECT_EQ(y.values(), want) << l.name;
  }
}

TEST(Copy, AnyStrides) {
  check_layouts<float, float>();
  check_layouts<double, double>();
  check_layouts<bf16, bf16>();
  check_layouts<float, bf16>();
  check_layouts<bf16, float>();
}

TEST(Copy, LeavesTheGapsAlone) {
  Array<float> x({3, 4}), y({3, 4}, {6, 1});
  x.randomize(1);
  std::fill(y.data().begin(), y.data().end(), 7.0f);
  copy<float>(test_stream(), x.in(), y.view());
  EXPECT_EQ(y.data()[4], 7.0f);
  EXPECT_EQ(y.data()[11], 7.0f);
}

TEST(Copy, EmptyViews) {
  convert<float, bf16>(test_stream(), View<const float>(nullptr, {3, 0}), View<bf16>(nullptr, {3, 0}));
  copy<float>(test_stream(), View<const float>(nullptr, {0, 9}, {1, 9}), View<float>(nullptr, {0, 9}));
}

TEST(Copy, SameBitsOnAnyThreads) {
  Array<float> x({700, 300}, {1, 700});
  x.randomize(1);
  expect_same_bits_on_threads([&] {
    Array<bf16> y({700, 300});
    convert<float, bf16>(cpu(), x.in(), y.view());
    return y.data();
  });
}

TEST(CopyWork, CountsEveryByteOnce) {
  const auto record = launched_on_meta([](Stream& s) {
    convert<float, bf16>(s, View<const float>(nullptr, {8, 32}, {0, 1}), meta_view<bf16>({8, 32}));
  });
  EXPECT_STREQ(record.op, "convert");
  EXPECT_EQ(record.bytes, 4 * 32 + 2 * 256);
  const auto same = launched_on_meta([](Stream& s) {
    copy<bf16>(s, meta_view<const bf16>({8, 32}), meta_view<bf16>({8, 32}));
  });
  EXPECT_STREQ(same.op, "copy");
  EXPECT_EQ(same.bytes, 2 * 2 * 256);
}

TEST(CopyShapes, UnequalOnesAreErrors) {
  Array<float> x({2, 3}), y({3, 2});
  EXPECT_THROW(copy<float>(test_stream(), x.in(), y.view()), Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
