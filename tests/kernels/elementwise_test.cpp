#include "kernels/elementwise.h"

#include <functional>

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

template <class T>
class Elementwise : public ::testing::Test {};
TYPED_TEST_SUITE(Elementwise, ComputeTypes);

/// Shape and strides of a, b and y.
struct Layout {
  const char* name;
  Shape shape;
  Strides a, b, y;
};

const Layout kLayouts[] = {
    {"scalar", {}, {}, {}, {}},
    {"one element", {1}, {1}, {1}, {1}},
    {"contiguous", {3, 5, 7}, {35, 7, 1}, {35, 7, 1}, {35, 7, 1}},
    {"long row", {40001}, {1}, {1}, {1}},
    {"row broadcast", {65, 129}, {129, 1}, {0, 1}, {129, 1}},
    {"column broadcast right", {65, 129}, {129, 1}, {1, 0}, {129, 1}},
    {"column broadcast left", {65, 129}, {1, 0}, {129, 1}, {129, 1}},
    {"scalar broadcast", {17, 33}, {33, 1}, {0, 0}, {33, 1}},
    {"both broadcast", {17, 33}, {1, 0}, {0, 1}, {33, 1}},
    {"sliced rows", {17, 33}, {40, 1}, {33, 1}, {35, 1}},
    {"transposed", {17, 33}, {1, 17}, {33, 1}, {33, 1}},
    {"transposed output", {17, 33}, {33, 1}, {33, 1}, {1, 17}},
    {"six dimensions",
     {2, 3, 1, 4, 3, 5},
     {180, 60, 60, 15, 5, 1},
     {0, 20, 7, 0, 5, 1},
     {300, 1, 1, 3, 12, 60}},
    {"long strided row", {2, 20011}, {40022, 2}, {20011, 1}, {20011, 1}},
    {"vectors: rows", {17, 64}, {72, 1}, {64, 1}, {80, 1}},
    {"vectors: row broadcast", {65, 128}, {128, 1}, {0, 1}, {128, 1}},
    {"vectors: column broadcast", {65, 128}, {1, 0}, {128, 1}, {128, 1}},
    {"vectors: heads", {3, 5, 7, 16}, {560, 16, 80, 1}, {560, 112, 16, 1}, {560, 112, 16, 1}},
    {"empty", {3, 0, 5}, {5, 5, 1}, {5, 5, 1}, {5, 5, 1}},
};

template <class T, class Run>
void check_binary(const Run& run, const std::function<double(double, double)>& reference) {
  for (const Layout& l : kLayouts) {
    if (numel(l.shape) == 0) {
      run(View<const T>(nullptr, l.shape), View<const T>(nullptr, l.shape), View<T>(nullptr, l.shape));
      continue;
    }
    Array<T> a(l.shape, l.a), b(l.shape, l.b), y(l.shape, l.y);
    a.randomize(1), b.randomize(2, 0.5, 2);
    run(a.in(), b.in(), y.view());
    const auto as = a.values(), bs = b.values();
    std::vector<double> want;
    for (std::size_t i = 0; i < as.size(); ++i) want.push_back(reference(as[i], bs[i]));
    EXPECT_LT(normalized_error(y.values(), want), tolerance<T>()) << l.name;
  }
}

TYPED_TEST(Elementwise, BinaryOnAllLayouts) {
  using T = TypeParam;
  check_binary<T>([](auto a, auto b, auto y) { add<T>(test_stream(), a, b, y); }, std::plus<>());
  check_binary<T>([](auto a, auto b, auto y) { sub<T>(test_stream(), a, b, y); }, std::minus<>());
  check_binary<T>([](auto a, auto b, auto y) { mul<T>(test_stream(), a, b, y); }, std::multiplies<>());
  check_binary<T>([](auto a, auto b, auto y) { div<T>(test_stream(), a, b, y); }, std::divides<>());
  check_binary<T>([](auto a, auto b, auto y) { add_scaled<T>(test_stream(), a, b, -0.75, y); },
                  [](double a, double b) { return a - 0.75 * b; });
}

template <class T, class Run>
void check_unary(const Run& run, double low, double high, const std::function<double(double)>& reference) {
  for (const Layout& l : kLayouts) {
    if (numel(l.shape) == 0) continue;
    Array<T> x(l.shape, l.a), y(l.shape, l.y);
    x.randomize(1, low, high);
    run(x.in(), y.view());
    std::vector<double> want;
    for (const double v : x.values()) want.push_back(reference(v));
    EXPECT_LT(normalized_error(y.values(), want), tolerance<T>()) << l.name;
  }
}

TYPED_TEST(Elementwise, UnaryOnAllLayouts) {
  using T = TypeParam;
  check_unary<T>([](auto x, auto y) { neg<T>(test_stream(), x, y); }, -2, 2, std::negate<>());
  check_unary<T>([](auto x, auto y) { exp<T>(test_stream(), x, y); }, -3, 3,
                 [](double x) { return std::exp(x); });
  check_unary<T>([](auto x, auto y) { log<T>(test_stream(), x, y); }, 0.1, 9,
                 [](double x) { return std::log(x); });
  check_unary<T>([](auto x, auto y) { sqrt<T>(test_stream(), x, y); }, 0, 9,
                 [](double x) { return std::sqrt(x); });
  check_unary<T>([](auto x, auto y) { square<T>(test_stream(), x, y); }, -2, 2,
                 [](double x) { return x * x; });
  check_unary<T>([](auto x, auto y) { tanh<T>(test_stream(), x, y); }, -2, 2,
                 [](double x) { return std::tanh(x); });
  check_unary<T>([](auto x, auto y) { sigmoid<T>(test_stream(), x, y); }, -5, 5,
                 [](double x) { return 1 / (1 + std::exp(-x)); });
  check_unary<T>([](auto x, auto y) { scale<T>(test_stream(), x, 1.5, y); }, -2, 2,
                 [](double x) { return 1.5 * x; });
  check_unary<T>([](auto x, auto y) { add_scalar<T>(test_stream(), x, 0.25, y); }, 1, 2,
                 [](double x) { return x + 0.25; });
}

template <class S, class D>
void check_accumulate() {
  for (const Layout& l : kLayouts) {
    if (numel(l.shape) == 0) continue;
    Array<S> x(l.shape, l.a);
    Array<D> y(l.shape, l.y);
    x.randomize(1), y.randomize(2);
    auto want = y.values();
    const auto xs = x.values();
    for (std::size_t i = 0; i < xs.size(); ++i) want[i] += xs[i];
    accumulate<S, D>(test_stream(), x.in(), y.view());
    EXPECT_LT(normalized_error(y.values(), want), tolerance<D>()) << l.name;
  }
}

TEST(ElementwiseAccumulate, AddsInTheWiderType) {
  check_accumulate<float, float>();
  check_accumulate<bf16, float>();
  check_accumulate<double, double>();
  check_accumulate<float, double>();
}

TYPED_TEST(Elementwise, OutputMayBeAnInput) {
  using T = TypeParam;
  Array<T> a({300, 130}), b({300, 130}), y({300, 130});
  a.randomize(1), b.randomize(2);
  add_scaled<T>(test_stream(), a.in(), b.in(), 0.5, y.view());
  auto left = a, right = b;
  add_scaled<T>(test_stream(), left.in(), b.in(), 0.5, left.view());
  EXPECT_EQ(left.values(), y.values());
  add_scaled<T>(test_stream(), a.in(), right.in(), 0.5, right.view());
  EXPECT_EQ(right.values(), y.values());
}

TYPED_TEST(Elementwise, SameBitsOnAnyThreads) {
  using T = TypeParam;
  Array<T> a({501, 131}), b({501, 131}, {0, 1});
  a.randomize(1), b.randomize(2);
  expect_same_bits_on_threads([&] {
    Array<T> y({501, 131});
    mul<T>(cpu(), a.in(), b.in(), y.view());
    exp<T>(cpu(), y.in(), y.view());
    return y.values();
  });
}

TEST(ElementwiseWork, BroadcastElementsAreReadOnce) {
  const auto record = launched_on_meta([](Stream& s) {
    const View<const bf16> bias(nullptr, {8, 32}, {0, 1});
    add<bf16>(s, meta_view<const bf16>({8, 32}), bias, meta_view<bf16>({8, 32}));
  });
  EXPECT_STREQ(record.op, "add");
  EXPECT_EQ(record.bytes, 2 * (256 + 32 + 256));
  EXPECT_EQ(record.flops, 256);
  const auto sum = launched_on_meta([](Stream& s) {
    accumulate<bf16, float>(s, meta_view<const bf16>({8, 32}), meta_view<float>({8, 32}));
  });
  EXPECT_EQ(sum.bytes, 2 * 256 + 2 * 4 * 256);
}

TEST(ElementwiseShapes, UnequalOnesAreErrors) {
  Array<float> a({2, 3}), b({1, 3}), y({2, 3});
  EXPECT_THROW(add<float>(test_stream(), a.in(), b.in(), y.view()), Error);
  EXPECT_THROW(neg<float>(test_stream(), b.in(), y.view()), Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
