#include "kernels/device/gemm.h"

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <source_location>

#include "core/base/cuda_check.h"
#include "core/base/error.h"

namespace ridge::kernels::device {
namespace {

void check_cublas(cublasStatus_t status, std::source_location where = std::source_location::current()) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail("{}:{}: cuBLAS: {}", where.file_name(), where.line(), cublasLtGetStatusString(status));
}

cublasLtHandle_t handle() {
  static cublasLtHandle_t handle = [] {
    cublasLtHandle_t made = nullptr;
    check_cublas(cublasLtCreate(&made));
    return made;
  }();
  return handle;
}

// A descriptor that is destroyed with its owner.
template <class T, cublasStatus_t (*destroy)(T)>
struct Owned {
  T value = nullptr;
  Owned() = default;
  ~Owned() {
    if (value != nullptr) destroy(value);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
};
using MatmulDesc = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

struct Plan {
  MatmulDesc desc;
  Layout a, b, c;
  cublasLtMatmulHeuristicResult_t choice{};
};

// Largest power of two, up to 256, that divides an address and the bytes of a leading dimension.
std::uint32_t alignment(const void* data, std::int64_t ld, std::size_t width) {
  const auto bits = reinterpret_cast<std::uintptr_t>(data) | static_cast<std::uintptr_t>(ld) * width | 256u;
  return static_cast<std::uint32_t>(bits & (~bits + 1));
}

std::size_t width_of(cudaDataType_t type) { return type == CUDA_R_64F ? 8 : (type == CUDA_R_32F ? 4 : 2); }

using Key = std::array<std::int64_t, 16>;

Key key_of(const Gemm& g, std::int64_t workspace_bytes) {
  return {g.m,
          g.n,
          g.k,
          g.a.ld,
          g.b.ld,
          g.ldc,
          g.a.transposed,
          g.b.transposed,
          g.input,
          g.output,
          g.compute,
          g.beta != 0,
          alignment(g.a.data, g.a.ld, width_of(g.input)),
          alignment(g.b.data, g.b.ld, width_of(g.input)),
          alignment(g.c, g.ldc, width_of(g.output)),
          workspace_bytes};
}

void make_layout(Layout& layout, cudaDataType_t type, std::int64_t rows, std::int64_t cols, std::int64_t ld) {
  check_cublas(cublasLtMatrixLayoutCreate(&layout.value, type, static_cast<std::uint64_t>(rows),
                                          static_cast<std::uint64_t>(cols), ld));
}

void make_operand(Layout& layout, const Gemm& g, const GemmOperand& operand, std::int64_t rows,
                  std::int64_t cols) {
  make_layout(layout, g.input, operand.transposed ? cols : rows, operand.transposed ? rows : cols,
              operand.ld);
}

void set_transposes(const Plan& plan, const Gemm& g) {
  const cublasOperation_t a = g.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t b = g.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  check_cublas(cublasLtMatmulDescSetAttribute(plan.desc.value, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof(a)));
  check_cublas(cublasLtMatmulDescSetAttribute(plan.desc.value, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof(b)));
}

void choose(Plan& plan, const Gemm& g, std::int64_t workspace_bytes) {
  Preference preference;
  check_cublas(cublasLtMatmulPreferenceCreate(&preference.value));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check_cublas(cublasLtMatmulPreferenceSetAttribute(preference.value, attribute, &value, sizeof(value)));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(workspace_bytes));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(g.a.data, g.a.ld, width_of(g.input)));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(g.b.data, g.b.ld, width_of(g.input)));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(g.c, g.ldc, width_of(g.output)));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(g.c, g.ldc, width_of(g.output)));
  int found = 0;
  check_cublas(cublasLtMatmulAlgoGetHeuristic(handle(), plan.desc.value, plan.a.value, plan.b.value,
                                              plan.c.value, plan.c.value, preference.value, 1, &plan.choice,
                                              &found));
  if (found == 0) fail("cuBLAS has no algorithm for a product of {} x {} x {}", g.m, g.n, g.k);
}

std::unique_ptr<Plan> make_plan(const Gemm& g, std::int64_t workspace_bytes) {
  auto plan = std::make_unique<Plan>();
  check_cublas(cublasLtMatmulDescCreate(&plan->desc.value, g.compute, g.scale));
  set_transposes(*plan, g);
  make_operand(plan->a, g, g.a, g.m, g.k);
  make_operand(plan->b, g, g.b, g.k, g.n);
  make_layout(plan->c, g.output, g.m, g.n, g.ldc);
  choose(*plan, g, workspace_bytes);
  return plan;
}

const Plan& plan_of(const Gemm& g, std::int64_t workspace_bytes) {
  static std::mutex mutex;
  static std::map<Key, std::unique_ptr<Plan>> plans;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Plan>& plan = plans[key_of(g, workspace_bytes)];
  if (plan == nullptr) plan = make_plan(g, workspace_bytes);
  return *plan;
}

}  // namespace

void run_gemm(const Stream& stream, const Gemm& g, void* workspace, std::int64_t workspace_bytes) {
  const Plan& plan = plan_of(g, workspace_bytes);
  const float alpha = static_cast<float>(g.alpha), beta = static_cast<float>(g.beta);
  const bool wide = g.scale == CUDA_R_64F;
  check_cublas(
      cublasLtMatmul(handle(), plan.desc.value, wide ? static_cast<const void*>(&g.alpha) : &alpha, g.a.data,
                     plan.a.value, g.b.data, plan.b.value, wide ? static_cast<const void*>(&g.beta) : &beta,
                     g.c, plan.c.value, g.c, plan.c.value, &plan.choice.algo, workspace,
                     static_cast<std::size_t>(workspace_bytes), static_cast<cudaStream_t>(stream.native())));
}

}  // namespace ridge::kernels::device
