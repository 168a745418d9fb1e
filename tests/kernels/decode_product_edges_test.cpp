// Strides, pieces, long rows, and values at the ends of what there is.
#include "core/base/error.h"
#include "tests/kernels/decode_product_inputs.h"

namespace ridge::kernels::testing {
namespace {

constexpr const char* kFormats[] = {"bf16",   "int8",        "fp8",         "fp8-block",   "nf4",
                                    "nf4-dq", "fp4",         "int4-g32",    "int4-g64",    "int4-g128",
                                    "fp4-dq", "int4-g32-zp", "int4-g64-zp", "int4-g128-zp"};

class DecodeProductEdges : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!on_gpu()) GTEST_SKIP() << "a GPU's kernel";
  }
};

ProductSteps ending(ProductEnd end) {
  ProductSteps steps;
  steps.end = end;
  return steps;
}

/// What y holds before, gaps and all.
Array<bf16> before(std::int64_t m, std::int64_t outputs, std::int64_t gap = 0) {
  return Array<bf16>::gapped({m, outputs}, gap).randomize(7);
}

/// Rows with NaN between them.
Array<bf16> rows_of_x(std::int64_t m, std::int64_t k, std::int64_t gap = 0) {
  Array<bf16> x = Array<bf16>::gapped({m, k}, gap).randomize(5);
  for (std::int64_t row = 0; row + 1 < m; ++row)
    std::fill_n(x.data().begin() + row * (k + gap) + k, gap, bf16(NAN));
  return x;
}

Array<bf16> multiply(const Array<bf16>& x, const DecodeWeight& w, const ProductSteps& steps,
                     std::int64_t outputs, std::int64_t gap = 0) {
  const std::int64_t m = x.in().dim(0);
  Array<bf16> y = before(m, outputs, gap);
  EXPECT_TRUE(has_decode_product(w, m, steps, Device::cuda));
  decode_product(test_stream(), x.in(), w, steps, y.view());
  wait_for_device();
  return y;
}

/// expected(m, n): of each result.
template <class F>
void expect_results(const Array<bf16>& y, const F& expected) {
  const std::int64_t outputs = y.in().dim(1);
  const auto got = y.values();
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto m = static_cast<std::int64_t>(i) / outputs, n = static_cast<std::int64_t>(i) % outputs;
    const Expected want = expected(m, n);
    ASSERT_NEAR(got[i], want.value, want.room) << "row " << m << ", result " << n;
  }
}

void expect_gaps_kept(Array<bf16>& y, std::int64_t gap) {
  const View<bf16> view = y.view();
  const std::int64_t m = view.dim(0), outputs = view.dim(1);
  Array<bf16> old = before(m, outputs, gap);
  for (std::int64_t row = 0; row + 1 < m; ++row) {
    for (std::int64_t at = row * view.strides[0] + outputs; at < (row + 1) * view.strides[0]; ++at)
      ASSERT_EQ(view.data[at].bits, old.view().data[at].bits) << "after row " << row;
  }
}

void expect_same_row(const Array<bf16>& a, const Array<bf16>& b, std::int64_t row) {
  const View<const bf16> x = a.in(), y = b.in();
  for (std::int64_t n = 0; n < x.dim(1); ++n)
    ASSERT_EQ(x(row, n).bits, y(row, n).bits) << "row " << row << ", result " << n;
}

/// Vectors [N] and [K] of a layer.
struct Vectors {
  Array<bf16> norm, bias, up_bias;
  Vectors(std::int64_t n, std::int64_t k) : norm({k}), bias({n}), up_bias({n}) {
    norm.randomize(2);
    bias.randomize(3);
    up_bias.randomize(4);
  }
  ProductSteps steps(ProductEnd end, bool normed) const {
    ProductSteps s;
    s.eps = 1e-5;
    s.end = end;
    s.bias_N = bias.in();
    if (normed) s.norm_K = norm.in();
    return s;
  }
};

/// All ends of one matrix [N, K], or of a gate above an up projection.
void expect_product(const std::string& format, std::int64_t m, std::int64_t n, std::int64_t k, ProductEnd end,
                    std::int64_t x_gap, std::int64_t y_gap, std::int64_t w_gap, bool greatest_last = false) {
  SCOPED_TRACE(fmt::format("{} {} x {} x {} end {}", format, m, n, k, static_cast<int>(end)));
  const RandomMatrix w(format, n, k, 9, w_gap);
  const Vectors vectors(n, k);
  const bool gate = end == ProductEnd::swiglu;
  const std::int64_t outputs = gate ? n / 2 : n;
  const ProductSteps steps = vectors.steps(end, gate);
  Array<bf16> x = rows_of_x(m, k, x_gap);
  for (std::int64_t row = 0; greatest_last && row < m; ++row)
    x.view()(row, k - 1) = bf16(static_cast<float>(8 << row % 4));
  const ReferenceRows rows(x.in(), steps);
  Array<bf16> y = multiply(x, w.w, steps, outputs, y_gap);
  const Array<bf16> old = before(m, outputs, y_gap);
  expect_results(y, [&](std::int64_t row, std::int64_t i) {
    Expected want = rows.product(row, w, i, steps.bias_N);
    if (gate) return gated(want, rows.product(row, w, i + outputs, steps.bias_N));
    if (end == ProductEnd::store) return want;
    const double kept = f64_of(old.in()(row, i));
    return Expected{want.value + kept, want.room + 0.006 * std::abs(kept)};
  });
  expect_gaps_kept(y, y_gap);
}

TEST_F(DecodeProductEdges, RowsFarApart) {
  for (const char* format : {"bf16", "int8", "fp8-block", "nf4-dq", "int4-g64", "int4-g128-zp"}) {
    for (const ProductEnd end : {ProductEnd::store, ProductEnd::add, ProductEnd::swiglu})
      expect_product(format, 3, 64, 1024, end, 24, 5, 40);
  }
  for (const char* format : {"bf16", "int8"})  // in passes
    expect_product(format, 6, 16, 14336, ProductEnd::add, 8, 3, 8);
}

TEST_F(DecodeProductEdges, RowsBeyondWhatThreadsHold) {
  for (const char* format : {"fp8", "fp8-block"}) {
    expect_product(format, 1, 32, 28672, ProductEnd::store, 0, 0, 0, true);
    expect_product(format, 5, 16, 28672, ProductEnd::add, 8, 1, 0, true);
    expect_product(format, 2, 16, 16384 + 640, ProductEnd::add, 0, 0, 0);
  }
}

// Of a matrix cut by rows, by columns and by both, as ranks have it: rows of its second level begin anywhere.
TEST_F(DecodeProductEdges, PiecesWithScalesOfTheWhole) {
  struct Cut {
    std::int64_t first, rows, left, columns;
  };
  for (const std::string format : {"nf4-dq", "fp4-dq"}) {
    const RandomMatrix whole(format, 96, 2560, 9, 0, true);
    for (const Cut& cut :
         {Cut{0, 96, 0, 2560}, {48, 48, 0, 2560}, {0, 96, 1280, 1280}, {16, 64, 512, 1792}}) {
      SCOPED_TRACE(
          fmt::format("{} rows {} + {} columns {} + {}", format, cut.first, cut.rows, cut.left, cut.columns));
      const MatrixPiece piece(whole, cut.first, cut.rows, cut.left, cut.columns);
      const Array<bf16> x = rows_of_x(2, cut.columns);
      ProductSteps steps;
      const ReferenceRows rows(x.in(), steps);
      const auto at = [&](std::int64_t m, std::int64_t n) {
        return rows.product(m, whole, cut.first + n, {}, cut.left);
      };
      expect_results(multiply(x, piece.view, steps, cut.rows), at);
      if (cut.rows / 2 % 16 != 0) continue;
      steps.end = ProductEnd::swiglu;
      const std::int64_t half = cut.rows / 2;
      expect_results(multiply(x, piece.view, steps, half),
                     [&](std::int64_t m, std::int64_t n) { return gated(at(m, n), at(m, n + half)); });
    }
  }
}

// The gate's rows and the up projection's, each a piece of a matrix with scales of its own.
TEST_F(DecodeProductEdges, PiecesOfGateAndUp) {
  const RandomMatrix a("nf4-dq", 96, 2560, 9, 0, true), b("nf4-dq", 96, 2560, 10, 0, true);
  const MatrixPiece gate(a, 32, 48, 1280, 1280), up(b, 48, 48, 768, 1280);
  const Array<bf16> x = rows_of_x(3, 1280);
  ProductSteps steps;
  steps.end = ProductEnd::swiglu;
  steps.up_NK = up.view;
  const ReferenceRows rows(x.in(), steps);
  expect_results(multiply(x, gate.view, steps, 48), [&](std::int64_t m, std::int64_t n) {
    return gated(rows.product(m, a, 32 + n, {}, 1280), rows.product(m, b, 48 + n, {}, 768));
  });
}

TEST_F(DecodeProductEdges, GateAndUpApart) {
  for (const char* format : {"bf16", "int8", "fp8", "fp8-block", "nf4-dq", "int4-g32-zp", "int4-g64-zp",
                             "int4-g128-zp", "int4-g128"}) {
    SCOPED_TRACE(format);
    constexpr std::int64_t kOutputs = 144, kColumns = 1024;
    const RandomMatrix gate(format, kOutputs, kColumns, 11, 8), up(format, kOutputs, kColumns, 12, 8);
    const Vectors vectors(kOutputs, kColumns);
    ProductSteps steps = vectors.steps(ProductEnd::swiglu, true);
    steps.up_NK = up.w;
    steps.up_bias_N = vectors.up_bias.in();
    const Array<bf16> x = rows_of_x(2, kColumns, 8);
    const ReferenceRows rows(x.in(), steps);
    expect_results(multiply(x, gate.w, steps, kOutputs, 3), [&](std::int64_t m, std::int64_t n) {
      return gated(rows.product(m, gate, n, steps.bias_N), rows.product(m, up, n, steps.up_bias_N));
    });
  }
}

TEST_F(DecodeProductEdges, NothingButZeros) {
  constexpr std::int64_t kRows = 32, kColumns = 512;
  const Vectors vectors(kRows, kColumns);
  for (const std::string format : kFormats) {
    SCOPED_TRACE(format);
    const RandomMatrix w(format, kRows, kColumns, 9);
    Array<bf16> x = rows_of_x(2, kColumns);
    std::fill_n(x.data().begin() + kColumns, kColumns, bf16(0.0f));
    for (const bool normed : {false, true}) {
      const Array<bf16> sum = multiply(x, w.w, vectors.steps(ProductEnd::add, normed), kRows);
      const Array<bf16> gate = multiply(x, w.w, ending(ProductEnd::swiglu), kRows / 2);
      for (std::int64_t n = 0; n < kRows; ++n) {
        const double was = f64_of(before(2, kRows).in()(1, n));
        ASSERT_EQ(f64_of(sum.in()(1, n)), rounded(was + f64_of(vectors.bias.in()(n))));
        ASSERT_EQ(f64_of(gate.in()(1, n / 2)), 0);
      }
    }
  }
}

// A row that is not finite is so in all results, and the rows beside it do not see it.
TEST_F(DecodeProductEdges, InfinityAndNanStayInTheirRow) {
  constexpr std::int64_t kRows = 32, kColumns = 1024, kBad = 1, kM = 4;
  const Vectors vectors(kRows, kColumns);
  for (const std::string format : kFormats) {
    const RandomMatrix w(format, kRows, kColumns, 9);
    for (const ProductEnd end : {ProductEnd::store, ProductEnd::swiglu}) {
      const ProductSteps steps = vectors.steps(end, end == ProductEnd::swiglu);
      const std::int64_t outputs = end == ProductEnd::swiglu ? kRows / 2 : kRows;
      const Array<bf16> sane = multiply(rows_of_x(kM, kColumns), w.w, steps, outputs);
      for (const float value : {NAN, INFINITY, -INFINITY}) {
        for (const std::int64_t column : {std::int64_t{130}, kColumns - 1}) {
          SCOPED_TRACE(fmt::format("{} end {}: {} at {}", format, static_cast<int>(end), value, column));
          Array<bf16> x = rows_of_x(kM, kColumns);
          x.view()(kBad, column) = bf16(value);
          const Array<bf16> y = multiply(x, w.w, steps, outputs);
          for (std::int64_t n = 0; n < outputs; ++n)
            ASSERT_FALSE(std::isfinite(f64_of(y.in()(kBad, n)))) << "result " << n;
          for (const std::int64_t row : {0, 2, 3}) expect_same_row(y, sane, row);
        }
      }
    }
  }
}

// Great and small side by side in a warp's columns, in other warps', and in other rows. What is 2^-18 of the
// greatest of a row may be lost: sums are of f32.
TEST_F(DecodeProductEdges, ManyOrdersOfMagnitude) {
  constexpr std::int64_t kRows = 32, kColumns = 1024;
  for (const std::string format : kFormats) {
    SCOPED_TRACE(format);
    const RandomMatrix w(format, kRows, kColumns, 9);
    Array<bf16> x = rows_of_x(6, kColumns);
    const View<bf16> at = x.view();
    const auto scale = [&](std::int64_t row, std::int64_t k, float by) {
      at(row, k) = bf16(static_cast<float>(at(row, k)) * by);
    };
    for (std::int64_t k = 0; k < kColumns; ++k) {
      scale(0, k, k % 2 == 0 ? 1e30f : 1e-30f);
      scale(1, k, k < kColumns / 2 ? 1e-30f : 1e30f);
      scale(2, k, k == 77 ? 1e30f : 1);
      scale(4, k, k == 77 ? 1e3f : 1);
      scale(5, k, 1e-30f);
    }
    const ReferenceRows rows(x.in(), {});
    expect_results(multiply(x, w.w, {}, kRows), [&](std::int64_t m, std::int64_t n) {
      Expected want = rows.product(m, w, n);
      if (m < 3) want.room += std::ldexp(2e30 * w.size(n), -18);
      return want;
    });
  }
}

// A code that is NaN makes its row of w give NaN, whatever x has there, and no other.
TEST_F(DecodeProductEdges, CodesThatAreNan) {
  constexpr std::int64_t kRows = 32, kColumns = 640;
  for (const char* format : {"fp8", "fp8-block"}) {
    RandomMatrix w(format, kRows, kColumns, 9);
    Array<bf16> x = rows_of_x(3, kColumns);
    std::fill_n(x.data().begin() + kColumns, kColumns, bf16(0.0f));
    const Array<bf16> sane = multiply(x, w.w, {}, kRows);
    w.coded->codes[3 * kColumns] = 0x7F;
    w.coded->codes[26 * kColumns - 1] = 0xFF;  // row 25
    w.decode();
    ASSERT_TRUE(std::isnan(w.value(3, 0)) && std::isnan(w.value(25, kColumns - 1)));
    const Array<bf16> y = multiply(x, w.w, {}, kRows),
                      gate = multiply(x, w.w, ending(ProductEnd::swiglu), 16);
    for (std::int64_t m = 0; m < 3; ++m) {
      for (std::int64_t n = 0; n < kRows; ++n) {
        SCOPED_TRACE(fmt::format("{} row {}, result {}", format, m, n));
        const bool bad = n == 3 || n == 25;
        if (bad) {
          EXPECT_TRUE(std::isnan(f64_of(y.in()(m, n))));
        } else {
          EXPECT_EQ(y.in()(m, n).bits, sane.in()(m, n).bits);
        }
        EXPECT_EQ(std::isnan(f64_of(gate.in()(m, n % 16))), n % 16 == 3 || n % 16 == 9);
      }
    }
  }
}

}  // namespace
}  // namespace ridge::kernels::testing
