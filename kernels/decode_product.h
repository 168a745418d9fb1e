// A layer's product for few tokens with what stands before and after it: one pass over the weights.
#pragma once

#include <optional>
#include <variant>

#include "core/base/launch.h"
#include "core/base/view.h"
#include "kernels/formats/format.h"

namespace ridge::kernels {

/// Rows of x that one pass over the weights serves, or more passes where x is too long for a block's memory.
inline constexpr std::int64_t kDecodeRows = 8;

/// What becomes of y = x w' + bias, rounded to bf16: stored, added to what is there, or, w [2F, K] being rows
/// of a gate and then of an up projection, silu(gate) up is stored, [M, F]. The up projection may be a matrix
/// of its own, like the gate's in format and shape.
enum class ProductEnd { store, add, swiglu };

/// Weights [N, K]: bf16 with dense rows, or codes.
using DecodeWeight = std::variant<View<const bf16>, QuantView>;

struct ProductSteps {
  View<const bf16>
      norm_K;      // null data: x as it is; else x is RMS-normalized (Zhang and Sennrich, 2019) first
  double eps = 0;  // of the norm
  View<const bf16> bias_N;  // null data: none
  ProductEnd end = ProductEnd::store;
  std::optional<DecodeWeight> up_NK =
      std::nullopt;            // swiglu: w is the gate's [F, K], this the up projection's
  View<const bf16> up_bias_N;  // its bias
  bool early = false;  // on a GPU: weights, norm and bias are read before the kernels ahead have ended
};

/// Whether decode_product has a kernel for so many rows of such a matrix, on a GPU alone: for all up to
/// kDecodeRows or for none.
bool has_decode_product(const DecodeWeight& w, std::int64_t rows, const ProductSteps& steps, Device device);

/// y [M, N] (swiglu: [M, F]) of x [M, K], M at most kDecodeRows; x and y with dense rows of any stride, x's
/// on 16 bytes. Sums are kept in f32. Bits of a row do not depend on the other rows.
void decode_product(Stream& stream, View<const bf16> x_MK, const DecodeWeight& w, const ProductSteps& steps,
                    View<bf16> y_MN);

namespace cuda {
bool has_decode_product(const DecodeWeight& w, std::int64_t rows, const ProductSteps& steps);
void decode_product(Stream& stream, View<const bf16> x_MK, const DecodeWeight& w, const ProductSteps& steps,
                    View<bf16> y_MN);
}  // namespace cuda

}  // namespace ridge::kernels
