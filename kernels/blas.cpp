#include "kernels/blas.h"

#include <cblas.h>

#include <cstdlib>
#include <string_view>

extern "C" {
char* openblas_get_corename();
// Present in dynamic-arch builds only: chooses the kernels anew.
__attribute__((weak)) void gotoblas_dynamic_quit();
__attribute__((weak)) void gotoblas_dynamic_init();
}

namespace ridge::kernels {
namespace {

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

// OpenBLAS 0.3.21 falls back to Haswell's kernels on CPUs newer than itself: half the rate of their 512-bit
// units.
void choose_kernels() {
  const std::string_view name = openblas_get_corename();
  const bool narrow = name == "Haswell" || name == "Zen" || name == "ZEN";
  if (!narrow || !has_avx512() || gotoblas_dynamic_init == nullptr || gotoblas_dynamic_quit == nullptr)
    return;
  if (setenv("OPENBLAS_CORETYPE", "SKYLAKEX", 0) != 0) return;  // 0: the user's own choice stands
  gotoblas_dynamic_quit();
  gotoblas_dynamic_init();
}

}  // namespace

void prepare_blas() {
  static const bool once = [] {
    openblas_set_num_threads(1);
    choose_kernels();
    return true;
  }();
  static_cast<void>(once);
}

std::string blas_kernels() {
  prepare_blas();
  return openblas_get_corename();
}

}  // namespace ridge::kernels
