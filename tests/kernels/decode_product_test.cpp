#include "kernels/decode_product.h"

#include <cmath>

#include "tests/kernels/decode_product_inputs.h"

namespace ridge::kernels::testing {
namespace {

constexpr const char* kFormats[] = {"bf16",   "int8",        "fp8",         "fp8-block",   "nf4",
                                    "nf4-dq", "fp4",         "int4-g32",    "int4-g64",    "int4-g128",
                                    "fp4-dq", "int4-g32-zp", "int4-g64-zp", "int4-g128-zp"};

struct Case {
  std::int64_t m, n, k;
  ProductEnd end;
  bool norm, bias;
};

Memory<bf16> random_values(std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> draw(0, 1);
  Memory<bf16> values(static_cast<std::size_t>(count));
  for (bf16& value : values) value = bf16(draw(engine));
  return values;
}

struct Inputs {
  Memory<bf16> x, norm, bias, before;
  explicit Inputs(const Case& c)
      : x(random_values(c.m * c.k, 1)),
        norm(random_values(c.k, 2)),
        bias(random_values(c.n, 3)),
        before(random_values(c.m * c.n, 4)) {
    if (c.k <= 16384) return;
    for (std::int64_t m = 0; m < c.m; ++m)  // the greatest is the last
      x[static_cast<std::size_t>((m + 1) * c.k - 1)] = bf16(static_cast<float>(8 << m % 4));
  }
  ProductSteps steps(const Case& c) const {
    ProductSteps s;
    if (c.norm) s.norm_K = View<const bf16>(norm.data(), {c.k}, {1});
    if (c.bias) s.bias_N = View<const bf16>(bias.data(), {c.n}, {1});
    s.eps = 1e-5;
    s.end = c.end;
    return s;
  }
};

struct Reference {
  std::vector<double> y;
  double size = 0;  // of a sum of terms with any sign

  Reference(const Case& c, const RandomMatrix& w, const Inputs& in) {
    const ReferenceRows rows(View<const bf16>(in.x.data(), {c.m, c.k}, {c.k, 1}), in.steps(c));
    const auto product = [&](std::int64_t m, std::int64_t n) {
      const auto sum = rows.sum(m, w, n);
      size = std::max(size, sum.size);
      return c.bias ? sum.value + f64_of(in.bias[static_cast<std::size_t>(n)]) : sum.value;
    };
    const std::int64_t outputs = c.end == ProductEnd::swiglu ? c.n / 2 : c.n;
    for (std::int64_t i = 0; i < c.m * outputs; ++i) {
      const std::int64_t m = i / outputs, n = i % outputs;
      double value = product(m, n);
      if (c.end == ProductEnd::add) value += f64_of(in.before[static_cast<std::size_t>(i)]);
      if (c.end == ProductEnd::swiglu) {
        const double gate = rounded(value);
        value = rounded(gate / (1 + std::exp(-gate))) * rounded(product(m, n + outputs));
      }
      y.push_back(value);
    }
  }
};

Memory<bf16> run(const Case& c, const RandomMatrix& w, const Inputs& in, std::int64_t rows,
                 std::int64_t first = 0) {
  const std::int64_t outputs = c.end == ProductEnd::swiglu ? c.n / 2 : c.n;
  Memory<bf16> y(in.before.begin() + first * outputs, in.before.begin() + (first + rows) * outputs);
  decode_product(test::test_stream(), View<const bf16>(in.x.data() + first * c.k, {rows, c.k}, {c.k, 1}), w.w,
                 in.steps(c), View<bf16>(y.data(), {rows, outputs}, {outputs, 1}));
  test::wait_for_device();
  return y;
}

void expect_product(const std::string& format, const Case& c, bool narrow = false) {
  SCOPED_TRACE(fmt::format("{} {} x {} x {} end {}{}{}", format, c.m, c.n, c.k, static_cast<int>(c.end),
                           c.norm ? " norm" : "", c.bias ? " bias" : ""));
  const RandomMatrix w(format, c.n, c.k, 9, 0, false, narrow);
  const Inputs in(c);
  ASSERT_TRUE(has_decode_product(w.w, c.m, in.steps(c), Device::cuda));
  const Reference expected(c, w, in);
  const Memory<bf16> y = run(c, w, in, c.m);
  for (std::size_t i = 0; i < expected.y.size(); ++i) {
    const double got = f64_of(y[i]), want = expected.y[i];
    // bf16 has 8 bits: of each rounding on the way, and of what the sum cancelled; a gate's error meets up.
    const double size = c.end == ProductEnd::swiglu ? 0.25 * expected.size * expected.size : expected.size;
    ASSERT_NEAR(got, want, 0.02 * std::abs(want) + 0.012 * size) << "element " << i;
  }
  for (std::int64_t m = 0; m < c.m; ++m) {  // a row's bits are its own
    const Memory<bf16> alone = run(c, w, in, 1, m);
    for (std::size_t n = 0; n < alone.size(); ++n)
      ASSERT_EQ(alone[n].bits, y[static_cast<std::size_t>(m) * alone.size() + n].bits) << "row " << m;
  }
}

class DecodeProduct : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!test::on_gpu()) GTEST_SKIP() << "a GPU's kernel";
  }
};

TEST_F(DecodeProduct, EveryFormatGivesTheProduct) {
  for (const std::string format : kFormats) {
    const std::int64_t odd =
        format == "int4-g128-zp" ? 512 : 0;  // zero points of four groups are read at once
    expect_product(format, {1, 64, 512, ProductEnd::store, false, false});
    expect_product(format, {3, 2144, 1280 + odd / 2, ProductEnd::store, true, true});
    expect_product(format, {8, 48, 2816 + odd / 2, ProductEnd::add, false, true});
    expect_product(format, {2, 4512, 768 + odd / 2, ProductEnd::swiglu, true, false});
  }
}

// A gate and an up projection of two matrices, each with scales of the second level of its own.
TEST_F(DecodeProduct, GateAndUpApart) {
  for (const std::string format : {"bf16", "int8", "nf4", "nf4-dq", "int4-g64"}) {
    SCOPED_TRACE(format);
    const Case c{2, 208, 1024, ProductEnd::store, true, true};
    const RandomMatrix gate(format, c.n, c.k, 11), up(format, c.n, c.k, 12);
    const Inputs in(c);
    ProductSteps steps = in.steps(c);
    const Memory<bf16> a = run(c, gate, in, c.m), b = run(c, up, in, c.m);
    steps.end = ProductEnd::swiglu;
    steps.up_NK = up.w;
    steps.up_bias_N = steps.bias_N;
    ASSERT_TRUE(has_decode_product(gate.w, c.m, steps, Device::cuda));
    Memory<bf16> y(a.size());
    decode_product(test::test_stream(), View<const bf16>(in.x.data(), {c.m, c.k}, {c.k, 1}), gate.w, steps,
                   View<bf16>(y.data(), {c.m, c.n}, {c.n, 1}));
    test::wait_for_device();
    for (std::size_t i = 0; i < y.size(); ++i) {
      const double g = f64_of(a[i]), u = f64_of(b[i]);
      const double want = rounded(g / (1 + std::exp(-g))) * u;
      ASSERT_NEAR(f64_of(y[i]), want, 0.01 * std::abs(want) + 1e-6) << i;
    }
  }
}

TEST_F(DecodeProduct, ScalesInBf16) {
  for (const char* format : {"int4-g32", "int4-g64", "int4-g128", "int4-g128-zp"})
    expect_product(format, {2, 176, 3584, ProductEnd::store, true, false}, true);
}

TEST_F(DecodeProduct, LongRows) {
  for (const char* format : {"bf16", "int8", "nf4-dq", "int4-g128"})
    expect_product(format, {1, 2128, 14336, ProductEnd::add, false, false});
  expect_product("nf4-dq", {2, 48, 16384, ProductEnd::store, false, true});  // a block a multiprocessor
}

// Where a block's memory holds fewer rows than there are, the weights are read more than once.
TEST_F(DecodeProduct, RowsInPasses) {
  for (const std::string format : kFormats) {
    expect_product(format, {5, 16, 14336, ProductEnd::store, false, true});
    expect_product(format, {8, 16, 14336, ProductEnd::add, false, false});
  }
  for (const std::int64_t m : {6, 7}) expect_product("int8", {m, 48, 14336, ProductEnd::add, false, true});
  for (const char* format : {"bf16", "int8", "nf4"})
    expect_product(format, {7, 64, 8192, ProductEnd::swiglu, true, false});
}

// Whole numbers of rows that a block's threads cannot hold at once.
TEST_F(DecodeProduct, VeryLongRows) {
  for (const char* format : {"bf16", "int8", "int4-g32", "int4-g64", "int4-g128"}) {
    expect_product(format, {1, 48, 16384 + 512, ProductEnd::store, false, false});
    expect_product(format, {5, 16, 20480, ProductEnd::add, false, true});
  }
  expect_product("int4-g128", {3, 32, 20480, ProductEnd::store, false, true}, true);
}

// What a sequence's token runs by may not depend on how many there are beside it.
TEST_F(DecodeProduct, AsManyRowsAsOne) {
  for (const std::string format : kFormats) {
    for (const std::int64_t k : {512, 8192, 14336, 20480, 28672, 57344}) {
      const Memory<bf16> dense(format == "bf16" ? static_cast<std::size_t>(32 * k) : 0);
      QuantizedArray coded(format == "bf16" ? "int8" : format, 32, k);
      const DecodeWeight w =
          format == "bf16" ? DecodeWeight(View<const bf16>(dense.data(), {32, k}, {k, 1})) : coded.view();
      for (const ProductEnd end : {ProductEnd::store, ProductEnd::swiglu}) {
        ProductSteps steps;
        steps.end = end;
        const bool one = has_decode_product(w, 1, steps, Device::cuda);
        EXPECT_TRUE(one || k > 16384) << format << ", " << k;
        for (std::int64_t m = 2; m <= kDecodeRows; ++m)
          EXPECT_EQ(has_decode_product(w, m, steps, Device::cuda), one) << format << ", " << k << ", " << m;
      }
    }
  }
}

TEST_F(DecodeProduct, RefusesWhatItCannotRead) {
  const Memory<bf16> w = random_values(64 * 72, 1);
  ProductSteps steps;
  const auto has = [&](std::int64_t n, std::int64_t k, std::int64_t offset, std::int64_t rows = 1) {
    return has_decode_product(View<const bf16>(w.data() + offset, {n, k}, {k, 1}), rows, steps, Device::cuda);
  };
  EXPECT_TRUE(has(32, 64, 0));
  EXPECT_FALSE(has(32, 72, 0));
  EXPECT_FALSE(has(33, 64, 0));
  EXPECT_FALSE(has(32, 64, 1));
  EXPECT_FALSE(has(32, 64, 0, 9));
}

}  // namespace
}  // namespace ridge::kernels::testing
