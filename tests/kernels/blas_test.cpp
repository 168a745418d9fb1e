#include "kernels/blas.h"

#include <cblas.h>
#include <gtest/gtest.h>

namespace ridge::kernels {
namespace {

TEST(Blas, RunsOnOneThreadAndNamesItsKernels) {
  openblas_set_num_threads(2);
  prepare_blas();
  EXPECT_EQ(openblas_get_num_threads(), 1);
  EXPECT_FALSE(blas_kernels().empty());
  EXPECT_EQ(blas_kernels(), blas_kernels());
}

TEST(Blas, PreparedItStillMultiplies) {
  prepare_blas();
  const float a[] = {1, 2, 3, 4}, b[] = {5, 6, 7, 8};
  float c[4] = {};
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, 2, 2, 2, 1, a, 2, b, 2, 0, c, 2);
  EXPECT_EQ(c[0], 19);
  EXPECT_EQ(c[1], 22);
  EXPECT_EQ(c[2], 43);
  EXPECT_EQ(c[3], 50);
}

}  // namespace
}  // namespace ridge::kernels
