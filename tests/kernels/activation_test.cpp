#include "kernels/activation.h"

#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

template <class T>
class Activation : public ::testing::Test {};
TYPED_TEST_SUITE(Activation, ComputeTypes);

const Shape kShapes[] = {{1, 1}, {3, 17}, {65, 129}, {300, 1}, {1, 20011}, {33, 256}};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double silu_of(double x) { return x * sigmoid(x); }
double gelu_erf_of(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
double gelu_tanh_of(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

/// Central difference; exact to about 1e-10.
template <class F>
double slope(const F& f, double x) {
  constexpr double kStep = 1e-4;
  return (8 * (f(x + kStep) - f(x - kStep)) - (f(x + 2 * kStep) - f(x - 2 * kStep))) / (12 * kStep);
}

constexpr double kSlopeError = 1e-10;
constexpr double kScale = 1;  // 1 + erf cancels for negative inputs

template <class T, class Forward, class Backward, class Reference>
void check_unary(const Forward& forward, const Backward& backward, const Reference& reference) {
  for (const Shape& shape : kShapes) {
    auto x = Array<T>::gapped(shape), y = Array<T>::gapped(shape, 3);
    auto dy = Array<T>::gapped(shape, 1), dx = Array<T>::gapped(shape, 2);
    x.randomize(1, -6, 6), dy.randomize(2);
    forward(x.in(), y.view());
    backward(dy.in(), x.in(), dx.view());
    std::vector<double> want, want_dx;
    const auto xs = x.values(), dys = dy.values();
    for (std::size_t i = 0; i < xs.size(); ++i) {
      want.push_back(reference(xs[i]));
      want_dx.push_back(dys[i] * slope(reference, xs[i]));
    }
    EXPECT_LT(normalized_error(y.values(), want, kScale), tolerance<T>()) << to_string(shape);
    EXPECT_LT(normalized_error(dx.values(), want_dx, kScale), tolerance<T>() + kSlopeError)
        << to_string(shape);
  }
}

TYPED_TEST(Activation, Silu) {
  using T = TypeParam;
  check_unary<T>([](auto x, auto y) { silu<T>(test_stream(), x, y); },
                 [](auto dy, auto x, auto dx) { silu_backward<T>(test_stream(), dy, x, dx); }, silu_of);
}

TYPED_TEST(Activation, GeluByErf) {
  using T = TypeParam;
  check_unary<T>([](auto x, auto y) { gelu<T>(test_stream(), x, y, Gelu::erf); },
                 [](auto dy, auto x, auto dx) { gelu_backward<T>(test_stream(), dy, x, dx, Gelu::erf); },
                 gelu_erf_of);
}

TYPED_TEST(Activation, GeluByTanh) {
  using T = TypeParam;
  check_unary<T>([](auto x, auto y) { gelu<T>(test_stream(), x, y, Gelu::tanh); },
                 [](auto dy, auto x, auto dx) { gelu_backward<T>(test_stream(), dy, x, dx, Gelu::tanh); },
                 gelu_tanh_of);
}

TYPED_TEST(Activation, Swiglu) {
  using T = TypeParam;
  for (const Shape& shape : kShapes) {
    auto gate = Array<T>::gapped(shape), up = Array<T>::gapped(shape, 3), y = Array<T>::gapped(shape, 2);
    auto dy = Array<T>::gapped(shape, 1), dgate = Array<T>::gapped(shape, 4),
         dup = Array<T>::gapped(shape, 6);
    gate.randomize(1, -6, 6), up.randomize(2), dy.randomize(3);
    swiglu<T>(test_stream(), gate.in(), up.in(), y.view());
    swiglu_backward<T>(test_stream(), dy.in(), gate.in(), up.in(), dgate.view(), dup.view());
    std::vector<double> want, want_dgate, want_dup;
    const auto gates = gate.values(), ups = up.values(), dys = dy.values();
    for (std::size_t i = 0; i < gates.size(); ++i) {
      want.push_back(silu_of(gates[i]) * ups[i]);
      want_dgate.push_back(dys[i] * ups[i] * slope(silu_of, gates[i]));
      want_dup.push_back(dys[i] * silu_of(gates[i]));
    }
    EXPECT_LT(normalized_error(y.values(), want), 2 * tolerance<T>()) << to_string(shape);
    EXPECT_LT(normalized_error(dgate.values(), want_dgate), tolerance<T>() + kSlopeError) << to_string(shape);
    EXPECT_LT(normalized_error(dup.values(), want_dup), tolerance<T>()) << to_string(shape);
  }
}

TEST(ActivationRounding, SwigluRoundsTheActivationFirst) {
  Array<bf16> gate({1, 100}), up({1, 100}), activated({1, 100}), y({1, 100});
  gate.randomize(1), up.randomize(2);
  silu<bf16>(test_stream(), gate.in(), activated.view());
  swiglu<bf16>(test_stream(), gate.in(), up.in(), y.view());
  const auto first = activated.view(), got = y.view();
  for (std::int64_t c = 0; c < 100; ++c) {
    const float product = static_cast<float>(first(0, c)) * static_cast<float>(up.in()(0, c));
    EXPECT_EQ(got(0, c).bits, bf16(product).bits);
  }
}

TYPED_TEST(Activation, LargeInputsStayFinite) {
  using T = TypeParam;
  Array<T> x({1, 4}), y({1, 4}), dy({1, 4}), dx({1, 4});
  for (int i = 0; i < 4; ++i) {
    x.data()[static_cast<std::size_t>(i)] = T(static_cast<acc_t<T>>(i % 2 ? 1e4 : -1e4));
    dy.data()[static_cast<std::size_t>(i)] = T(1.0f);
  }
  const std::vector<double> ends = {0, get(x.in(), 1), 0, get(x.in(), 1)}, slopes = {0, 1, 0, 1};
  silu<T>(test_stream(), x.in(), y.view());
  EXPECT_EQ(y.values(), ends);
  for (const Gelu variant : {Gelu::erf, Gelu::tanh}) {
    gelu<T>(test_stream(), x.in(), y.view(), variant);
    EXPECT_EQ(y.values(), ends);
    gelu_backward<T>(test_stream(), dy.in(), x.in(), dx.view(), variant);
    EXPECT_EQ(dx.values(), slopes);
  }
  silu_backward<T>(test_stream(), dy.in(), x.in(), dx.view());
  EXPECT_EQ(dx.values(), slopes);
}

TYPED_TEST(Activation, InPlace) {
  using T = TypeParam;
  for (const Shape& shape : {Shape{500, 130}, Shape{500, 128}, Shape{7, 24}}) {
    Array<T> gate(shape), up(shape), y(shape);
    gate.randomize(1), up.randomize(2);
    swiglu<T>(test_stream(), gate.in(), up.in(), y.view());
    swiglu<T>(test_stream(), gate.in(), up.in(), gate.view());
    EXPECT_EQ(gate.values(), y.values());
  }
}

/// Halves of packed [R, 2C] rows, for widths that can and cannot be moved in vectors.
TYPED_TEST(Activation, SwigluOnHalvesOfPackedRows) {
  using T = TypeParam;
  for (const std::int64_t channels : {64, 72, 33}) {
    const std::int64_t rows = 37;
    Array<T> gate_up({rows, 2 * channels}), dgate_up({rows, 2 * channels});
    Array<T> y({rows, channels}), dy({rows, channels});
    gate_up.randomize(1, -6, 6), dy.randomize(2);
    const Shape half{rows, channels};
    const Strides steps{2 * channels, 1};
    const View<const T> gate(gate_up.in().data, half, steps), up(gate_up.in().data + channels, half, steps);
    const View<T> dgate(dgate_up.view().data, half, steps), dup(dgate_up.view().data + channels, half, steps);
    swiglu<T>(test_stream(), gate, up, y.view());
    swiglu_backward<T>(test_stream(), dy.in(), gate, up, dgate, dup);
    std::vector<double> want, want_dgate_up;
    const auto in = gate_up.values(), dys = dy.values();
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < 2 * channels; ++c) {
        const bool is_gate = c < channels;
        const auto row = static_cast<std::size_t>(r * 2 * channels),
                   at = static_cast<std::size_t>(c % channels);
        const double g = in[row + at], u = in[row + at + static_cast<std::size_t>(channels)];
        const double d = dys[static_cast<std::size_t>(r * channels) + at];
        if (is_gate) want.push_back(silu_of(g) * u);
        want_dgate_up.push_back(is_gate ? d * u * slope(silu_of, g) : d * silu_of(g));
      }
    }
    EXPECT_LT(normalized_error(y.values(), want), 2 * tolerance<T>()) << channels;
    EXPECT_LT(normalized_error(dgate_up.values(), want_dgate_up), tolerance<T>() + kSlopeError) << channels;
  }
}

TYPED_TEST(Activation, SameBitsOnAnyThreads) {
  using T = TypeParam;
  expect_same_bits_on_threads([] {
    Array<T> gate({500, 130}), up({500, 130}), y({500, 130});
    gate.randomize(1), up.randomize(2);
    swiglu<T>(cpu(), gate.in(), up.in(), y.view());
    return y.values();
  });
}

TEST(ActivationWork, CountsEveryByteOnce) {
  const auto forward = launched_on_meta([](Stream& s) {
    swiglu<bf16>(s, meta_view<const bf16>({8, 32}), meta_view<const bf16>({8, 32}), meta_view<bf16>({8, 32}));
  });
  EXPECT_STREQ(forward.op, "swiglu");
  EXPECT_EQ(forward.bytes, 2 * 3 * 256);
  EXPECT_EQ(forward.flops, 5 * 256);
  const auto backward = launched_on_meta([](Stream& s) {
    const auto in = meta_view<const float>({8, 32});
    swiglu_backward<float>(s, in, in, in, meta_view<float>({8, 32}), meta_view<float>({8, 32}));
  });
  EXPECT_EQ(backward.bytes, 4 * 5 * 256);
}

TEST(ActivationShapes, WrongOnesAreErrors) {
  Array<float> x({2, 8}), y({2, 7}), flat({8});
  EXPECT_THROW(silu<float>(test_stream(), x.in(), y.view()), Error);
  EXPECT_THROW(silu<float>(test_stream(), flat.in(), flat.view()), Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
