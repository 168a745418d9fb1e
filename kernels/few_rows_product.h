// f32 products of few rows, whose bits do not depend on how many rows there are.
#pragma once

#include "core/base/launch.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// Most rows of x: of more the general product is the better one.
inline constexpr std::int64_t kMostFewRows = 64;

/// Whether few_rows_product has a kernel: on a GPU, whose library cuts its sums by the number of rows. On a
/// CPU those of matmul do not depend on it.
bool has_few_rows_product(std::int64_t rows, Device device);

/// y [M, N] of x [M, K] and w [N, K], all with dense rows of any stride. A row's sums are in one order, in
/// f32.
void few_rows_product(Stream& stream, View<const float> x_MK, View<const float> w_NK, View<float> y_MN);

namespace cuda {
void few_rows_product(Stream& stream, View<const float> x_MK, View<const float> w_NK, View<float> y_MN);
}  // namespace cuda

}  // namespace ridge::kernels
