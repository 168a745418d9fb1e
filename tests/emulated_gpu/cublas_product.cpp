#include "tests/emulated_gpu/cublas_product.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace ridge::emulated {
namespace {

constexpr std::int64_t kColumns = 4;  // of a tile

struct Brain {
  std::uint16_t bits;
};

float load(float value) { return value; }
double load(double value) { return value; }
float load(Brain value) { return std::bit_cast<float>(std::uint32_t{value.bits} << 16); }

void store(float& to, double value) { to = static_cast<float>(value); }
void store(double& to, double value) { to = value; }
// To the nearest, ties to even.
void store(Brain& to, double value) {
  const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
  const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  to.bits = static_cast<std::uint16_t>(nan ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Elements of one matrix: at(data, row, column).
struct Place {
  std::int64_t row = 0, column = 0;  // strides
  explicit Place(const Matrix& m, bool transposed = false)
      : row(m.by_rows ? m.ld : 1), column(m.by_rows ? 1 : m.ld) {
    if (transposed) std::swap(row, column);
  }
  template <class T>
  T& at(T* data, std::int64_t i, std::int64_t j) const {
    return data[i * row + j * column];
  }
};

// [panel of `width` rows, k, width], zeros where there are no rows.
template <class Sum, class T>
std::vector<Sum> panels(const T* data, const Place& place, std::int64_t rows, std::int64_t k,
                        std::int64_t width) {
  const std::int64_t count = (rows + width - 1) / width;
  std::vector<Sum> packed(static_cast<std::size_t>(count * k * width));
  for (std::int64_t i = 0; i < rows; ++i) {
    Sum* to = packed.data() + i / width * k * width + i % width;
    for (std::int64_t p = 0; p < k; ++p) to[p * width] = load(place.at(data, i, p));
  }
  return packed;
}

// A tile's sums, [kColumns, rows].
template <class Sum>
struct Tile {
  using Vector __attribute__((vector_size(32))) = Sum;
  static constexpr std::int64_t kRows = 32 / sizeof(Sum);
  Vector sums[kColumns] = {};

  // Sums of its own: those of the tile could be what `a` points to, for all the compiler knows.
  void add(const Sum* a, const Sum* b, std::int64_t k) {
    Vector s0 = {}, s1 = {}, s2 = {}, s3 = {};
    for (std::int64_t p = 0; p < k; ++p, a += kRows, b += kColumns) {
      Vector column;
      std::memcpy(&column, a, sizeof(column));
      s0 += column * b[0];
      s1 += column * b[1];
      s2 += column * b[2];
      s3 += column * b[3];
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
  }
};

template <class Sum, class In, class Out>
void multiply_one(const Product& q, const In* a, const In* b, const Out* c, Out* d) {
  constexpr std::int64_t kRows = Tile<Sum>::kRows;
  const std::int64_t m = q.d.rows, n = q.d.cols, k = q.a_transposed ? q.a.rows : q.a.cols;
  const std::vector<Sum> left = panels<Sum>(a, Place(q.a, q.a_transposed), m, k, kRows);
  const std::vector<Sum> right = panels<Sum>(b, Place(q.b, !q.b_transposed), n, k, kColumns);
  const Place from(q.c), to(q.d);
  const Sum alpha = static_cast<Sum>(q.alpha), beta = static_cast<Sum>(q.beta);
  for (std::int64_t j = 0; j < n; j += kColumns) {
    for (std::int64_t i = 0; i < m; i += kRows) {
      Tile<Sum> tile;
      tile.add(left.data() + i * k, right.data() + j * k, k);
      for (std::int64_t y = 0; y < std::min(kColumns, n - j); ++y) {
        for (std::int64_t x = 0; x < std::min(kRows, m - i); ++x) {
          Sum value = alpha * tile.sums[y][x];
          if (beta != 0) value += beta * static_cast<Sum>(load(from.at(c, i + x, j + y)));
          store(to.at(d, i + x, j + y), value);
        }
      }
    }
  }
}

template <class Sum, class In, class Out>
void multiply_all(const Product& q, const void* a, const void* b, const void* c, void* d) {
  for (std::int64_t p = 0; p < q.d.batch; ++p)
    multiply_one<Sum>(q, static_cast<const In*>(a) + p * q.a.step, static_cast<const In*>(b) + p * q.b.step,
                      static_cast<const Out*>(c) + p * q.c.step, static_cast<Out*>(d) + p * q.d.step);
}

template <class Sum, class In>
void multiply_to(const Product& q, const void* a, const void* b, const void* c, void* d) {
  if (q.d.type == CUDA_R_16BF) return multiply_all<Sum, In, Brain>(q, a, b, c, d);
  if (q.d.type == CUDA_R_32F) return multiply_all<Sum, In, float>(q, a, b, c, d);
  multiply_all<Sum, In, double>(q, a, b, c, d);
}

}  // namespace

std::size_t width_of(cudaDataType_t type) {
  if (type == CUDA_R_64F) return 8;
  if (type == CUDA_R_32F) return 4;
  return type == CUDA_R_16BF ? 2 : 0;
}

std::int64_t extent_of(const Matrix& matrix) {
  if (matrix.rows == 0 || matrix.cols == 0) return 0;
  const Place place(matrix);
  return (matrix.batch - 1) * matrix.step + (matrix.rows - 1) * place.row + (matrix.cols - 1) * place.column +
         1;
}

void multiply(const Product& product, const void* a, const void* b, const void* c, void* d) {
  if (product.a.type == CUDA_R_64F) return multiply_to<double, double>(product, a, b, c, d);
  if (product.a.type == CUDA_R_16BF) return multiply_to<float, Brain>(product, a, b, c, d);
  multiply_to<float, float>(product, a, b, c, d);
}

}  // namespace ridge::emulated
