// Weights and references for tests of the step's products. M rows of x, N rows of w, K columns.
#pragma once

#include <algorithm>
#include <memory>

#include "kernels/decode_product.h"
#include "kernels/quantize.h"
#include "tests/kernels/kernel_test.h"
#include "tests/kernels/quantized_array.h"

namespace ridge::kernels::testing {

inline double f64_of(bf16 x) { return static_cast<double>(static_cast<float>(x)); }
inline double rounded(double x) { return f64_of(bf16(static_cast<float>(x))); }

/// A matrix and the values that it stands for, [N, K], by the CPU's dequantize. `loud`: stretches of 256
/// scales of nf4 and fp4 differ, so that one of the second level in another's place is seen. `narrow`: scales
/// are bf16.
struct RandomMatrix {
  std::int64_t n, k;
  Array<bf16> dense;
  std::unique_ptr<QuantizedArray> coded;
  std::vector<double> values;
  DecodeWeight w;

  RandomMatrix(const RandomMatrix&) = delete;
  RandomMatrix& operator=(const RandomMatrix&) = delete;
  RandomMatrix(const std::string& format, std::int64_t rows, std::int64_t columns, std::uint64_t seed,
               std::int64_t gap = 0, bool loud = false, bool narrow = false)
      : n(rows), k(columns), dense(Array<bf16>::gapped({rows, columns}, gap)) {
    draw(seed, loud);
    if (format == "bf16") {
      values = dense.values();
      w = dense.in();
      return;
    }
    coded = std::make_unique<QuantizedArray>(format, n, k, narrow);
    quantize<bf16>(cpu(), dense.in(), coded->target());
    decode();
  }
  /// What its codes stand for now.
  void decode() {
    Memory<float> back(static_cast<std::size_t>(n * k));
    dequantize<float>(cpu(), coded->view(), View<float>(back.data(), {n, k}));
    values.assign(back.begin(), back.end());
    w = coded->view();
  }
  double value(std::int64_t row, std::int64_t column) const {
    return values[static_cast<std::size_t>(row * k + column)];
  }
  /// The length of a row.
  double size(std::int64_t row) const {
    double squares = 0;
    for (std::int64_t column = 0; column < k; ++column) squares += std::pow(value(row, column), 2);
    return std::sqrt(squares);
  }

 private:
  void draw(std::uint64_t seed, bool loud) {
    constexpr float kSizes[] = {0.125f, 1, 0.5f, 2};
    std::mt19937_64 engine(seed);
    std::normal_distribution<float> normal(0, 0.5f);
    const View<bf16> to = dense.view();
    std::fill(dense.data().begin(), dense.data().end(), bf16(NAN));
    for (std::int64_t i = 0; i < n * k; ++i) {
      const float size = loud ? kSizes[i / (kNestedBlock * kFlatBlock) % 4] : 1;
      to.data[i / k * to.strides[0] + i % k] = bf16(size * normal(engine));
    }
  }
};

/// Rows [first, first + rows) and columns [left, left + columns) of a matrix, in memory of their own; scales
/// of the second level are the whole matrix's.
struct MatrixPiece {
  Memory<std::uint8_t> codes, scale_codes;
  QuantView view;

  MatrixPiece(const MatrixPiece&) = delete;
  MatrixPiece& operator=(const MatrixPiece&) = delete;
  MatrixPiece(const RandomMatrix& whole, std::int64_t first, std::int64_t rows, std::int64_t left,
              std::int64_t columns)
      : view(whole.coded->view()) {
    const std::int64_t blocks = view.row_blocks, row_bytes = view.row_bytes();
    view.rows = rows;
    view.cols = columns;
    for (std::int64_t r = first; r < first + rows; ++r) {
      const std::uint8_t *code = view.codes + r * row_bytes + left / 2,
                         *scale = view.scale_codes + r * blocks + left / kFlatBlock;
      codes.insert(codes.end(), code, code + columns / 2);
      scale_codes.insert(scale_codes.end(), scale, scale + columns / kFlatBlock);
    }
    view.codes = codes.data();
    view.scale_codes = scale_codes.data();
    view.first_block = first * blocks + left / kFlatBlock;
  }
};

/// A result, and how far from it a kernel's may be: bf16 has 8 bits, of each rounding on the way and of what
/// a sum cancelled.
struct Expected {
  double value = 0, room = 0;
  static Expected of(double sum, double size) { return {sum, 0.006 * (std::abs(sum) + size)}; }
};

/// silu(gate) up. No slope of silu is above 1.1.
inline Expected gated(const Expected& gate, const Expected& up) {
  const double g = rounded(gate.value), silu = rounded(g / (1 + std::exp(-g))), u = rounded(up.value);
  const double of_gate = 1.1 * gate.room + 0.006 * std::abs(silu);
  return {silu * u, of_gate * (std::abs(u) + up.room) + std::abs(silu) * up.room};
}

/// What rows of x are multiplied by a matrix's rows, in f64.
class ReferenceRows {
 public:
  ReferenceRows(const View<const bf16>& x, const ProductSteps& steps) : m_(x.dim(0)), k_(x.dim(1)) {
    const bool normed = steps.norm_K.data != nullptr;
    for (std::int64_t m = 0; m < m_; ++m) {
      double squares = 0;
      for (std::int64_t k = 0; k < k_; ++k) squares += std::pow(f64_of(x.data[m * x.strides[0] + k]), 2);
      const double inverse = 1 / std::sqrt(squares / static_cast<double>(k_) + steps.eps);
      for (std::int64_t k = 0; k < k_; ++k) {
        const double as_it_is = f64_of(x.data[m * x.strides[0] + k]);
        x_.push_back(normed ? rounded(rounded(as_it_is * inverse) * f64_of(steps.norm_K.data[k])) : as_it_is);
      }
    }
  }
  struct Sum {
    double value, size;  // size: of a sum of the terms with any sign
  };
  /// Of row m with row n of w, from column `left` on.
  Sum sum(std::int64_t m, const RandomMatrix& w, std::int64_t n, std::int64_t left = 0) const {
    double sum = 0, squares = 0;
    for (std::int64_t k = 0; k < k_; ++k) {
      const double term = x_[static_cast<std::size_t>(m * k_ + k)] * w.value(n, left + k);
      sum += term;
      squares += term * term;
    }
    return {sum, std::sqrt(squares)};
  }
  Expected product(std::int64_t m, const RandomMatrix& w, std::int64_t n, const View<const bf16>& bias = {},
                   std::int64_t left = 0) const {
    const auto [value, size] = sum(m, w, n, left);
    return Expected::of(bias.data == nullptr ? value : value + f64_of(bias.data[n]), size);
  }

 private:
  std::int64_t m_, k_;
  std::vector<double> x_;
};

}  // namespace ridge::kernels::testing
