#include "kernels/device/gemm.h"

#include <fmt/ranges.h>

#include <array>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <source_location>
#include <sstream>
#include <vector>

#include "core/base/cuda.h"
#include "core/base/cuda_check.h"
#include "core/base/error.h"
#include "kernels/matmul_tuning.h"

namespace ridge::kernels::device {
namespace {

constexpr int kCandidates = 24;
constexpr int kTuningRuns = 6;  // the first warms up

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
  cublasLtMatmulAlgo_t algo{};
};

std::size_t width_of(cudaDataType_t type) { return type == CUDA_R_64F ? 8 : (type == CUDA_R_32F ? 4 : 2); }

// Largest power of two, up to 256, that divides an address and the bytes of its strides.
std::uint32_t alignment_of(const GemmOperand& o, cudaDataType_t type) {
  const auto strides = static_cast<std::uintptr_t>(o.ld | o.step) * width_of(type);
  const auto bits = reinterpret_cast<std::uintptr_t>(o.data) | strides | 256u;
  return static_cast<std::uint32_t>(bits & (~bits + 1));
}

using Key = std::array<std::int64_t, 20>;

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
          alignment_of(g.a, g.input),
          alignment_of(g.b, g.input),
          alignment_of({g.c, g.ldc, false, g.c_step}, g.output),
          workspace_bytes,
          g.batch,
          g.a.step,
          g.b.step,
          g.c_step};
}

void make_layout(Layout& layout, cudaDataType_t type, std::int64_t rows, std::int64_t cols, std::int64_t ld,
                 std::int64_t batch, std::int64_t step) {
  check_cublas(cublasLtMatrixLayoutCreate(&layout.value, type, static_cast<std::uint64_t>(rows),
                                          static_cast<std::uint64_t>(cols), ld));
  if (batch == 1) return;
  const auto count = static_cast<std::int32_t>(batch);
  check_cublas(cublasLtMatrixLayoutSetAttribute(layout.value, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                                sizeof(count)));
  check_cublas(cublasLtMatrixLayoutSetAttribute(layout.value, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                &step, sizeof(step)));
}

void make_operand(Layout& layout, const Gemm& g, const GemmOperand& operand, std::int64_t rows,
                  std::int64_t cols) {
  make_layout(layout, g.input, operand.transposed ? cols : rows, operand.transposed ? rows : cols, operand.ld,
              g.batch, operand.step);
}

void set_transposes(const Plan& plan, const Gemm& g) {
  const cublasOperation_t a = g.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t b = g.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  check_cublas(cublasLtMatmulDescSetAttribute(plan.desc.value, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof(a)));
  check_cublas(cublasLtMatmulDescSetAttribute(plan.desc.value, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof(b)));
}

// The library's candidates, the one it thinks fastest first.
std::vector<cublasLtMatmulAlgo_t> candidates(const Plan& plan, const Gemm& g, std::int64_t workspace_bytes,
                                             int most) {
  Preference preference;
  check_cublas(cublasLtMatmulPreferenceCreate(&preference.value));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check_cublas(cublasLtMatmulPreferenceSetAttribute(preference.value, attribute, &value, sizeof(value)));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(workspace_bytes));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(g.a, g.input));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(g.b, g.input));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of({g.c, g.ldc, false, g.c_step}, g.output));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of({g.c, g.ldc, false, g.c_step}, g.output));
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<std::size_t>(most));
  int found = 0;
  check_cublas(cublasLtMatmulAlgoGetHeuristic(handle(), plan.desc.value, plan.a.value, plan.b.value,
                                              plan.c.value, plan.c.value, preference.value, most,
                                              results.data(), &found));
  if (found == 0) fail("cuBLAS has no algorithm for {} products of {} x {} x {}", g.batch, g.m, g.n, g.k);
  std::vector<cublasLtMatmulAlgo_t> algos;
  for (int i = 0; i < found; ++i) algos.push_back(results[static_cast<std::size_t>(i)].algo);
  return algos;
}

std::unique_ptr<Plan> describe(const Gemm& g) {
  auto plan = std::make_unique<Plan>();
  check_cublas(cublasLtMatmulDescCreate(&plan->desc.value, g.compute, g.scale));
  set_transposes(*plan, g);
  make_operand(plan->a, g, g.a, g.m, g.k);
  make_operand(plan->b, g, g.b, g.k, g.n);
  make_layout(plan->c, g.output, g.m, g.n, g.ldc, g.batch, g.c_step);
  return plan;
}

cublasStatus_t execute(const Stream& stream, const Plan& plan, const Gemm& g, void* workspace,
                       std::int64_t workspace_bytes) {
  const float alpha = static_cast<float>(g.alpha), beta = static_cast<float>(g.beta);
  const bool wide = g.scale == CUDA_R_64F;
  return cublasLtMatmul(handle(), plan.desc.value, wide ? static_cast<const void*>(&g.alpha) : &alpha,
                        g.a.data, plan.a.value, g.b.data, plan.b.value,
                        wide ? static_cast<const void*>(&g.beta) : &beta, g.c, plan.c.value, g.c,
                        plan.c.value, &plan.algo, workspace, static_cast<std::size_t>(workspace_bytes),
                        static_cast<cudaStream_t>(stream.native()));
}

// Seconds of the fastest of a few runs; infinite where the algorithm fails.
double time_of(const Stream& stream, const Plan& plan, const Gemm& g, void* workspace,
               std::int64_t workspace_bytes) {
  double best = std::numeric_limits<double>::infinity();
  for (int run = 0; run < kTuningRuns; ++run) {
    ridge::cuda::Event begin(true), end(true);
    begin.record(stream);
    if (execute(stream, plan, g, workspace, workspace_bytes) != CUBLAS_STATUS_SUCCESS) return best;
    end.record(stream);
    end.synchronize();
    if (run > 0) best = std::min(best, end.nanoseconds_since(begin) * 1e-9);
  }
  return best;
}

// Products of the sizes at hand differ by less than a few per cent among the best: the first choice stays
// unless another is clearly faster.
void tune(const Stream& stream, Plan& plan, const Gemm& g, void* workspace, std::int64_t workspace_bytes) {
  const auto algos = candidates(plan, g, workspace_bytes, kCandidates);
  cublasLtMatmulAlgo_t chosen = algos.front();
  double least = std::numeric_limits<double>::infinity();
  for (const cublasLtMatmulAlgo_t& algo : algos) {
    plan.algo = algo;
    const double seconds = time_of(stream, plan, g, workspace, workspace_bytes);
    if (seconds < 0.99 * least) {
      chosen = algo;
      least = seconds;
    }
  }
  plan.algo = chosen;
}

struct Choices {
  std::mutex mutex;
  bool tuning = false;
  std::map<Key, cublasLtMatmulAlgo_t> chosen;  // tuned or read
  std::map<Key, std::unique_ptr<Plan>> plans;
};

Choices& choices() {
  static Choices& all = *new Choices;
  return all;
}

const Plan& plan_of(const Stream& stream, const Gemm& g, void* workspace, std::int64_t workspace_bytes) {
  Choices& all = choices();
  const std::lock_guard lock(all.mutex);
  const Key key = key_of(g, workspace_bytes);
  std::unique_ptr<Plan>& plan = all.plans[key];
  if (plan != nullptr) return *plan;
  plan = describe(g);
  if (const auto found = all.chosen.find(key); found != all.chosen.end()) {
    plan->algo = found->second;
  } else if (all.tuning) {
    tune(stream, *plan, g, workspace, workspace_bytes);
    all.chosen[key] = plan->algo;
  } else {
    plan->algo = candidates(*plan, g, workspace_bytes, 1).front();
  }
  return *plan;
}

// What choices hold for: "NVIDIA H200 cublas 130000 key 20"; the last is the number of a key's fields.
std::string place() {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, ridge::cuda::selected_device()));
  return fmt::format("{} cublas {} key {}", properties.name, cublasLtGetVersion(), std::tuple_size_v<Key>);
}

}  // namespace

void run_gemm(const Stream& stream, const Gemm& g, void* workspace, std::int64_t workspace_bytes) {
  check_cublas(
      execute(stream, plan_of(stream, g, workspace, workspace_bytes), g, workspace, workspace_bytes));
}

}  // namespace ridge::kernels::device

namespace ridge::kernels {

using namespace device;

void set_matmul_tuning(bool on) {
  const std::lock_guard lock(choices().mutex);
  choices().tuning = on;
}

std::string matmul_choices() {
  const std::lock_guard lock(choices().mutex);
  std::string text = place() + "\n";
  for (const auto& [key, algo] : choices().chosen) {
    text += fmt::format("{} |", fmt::join(key, " "));
    for (const std::uint64_t word : algo.data) text += fmt::format(" {:x}", word);
    text += "\n";
  }
  return text;
}

std::int64_t set_matmul_choices(const std::string& text, const std::string& source) {
  std::istringstream lines(text);
  std::string line;
  std::getline(lines, line);
  if (line != place()) return 0;
  const std::lock_guard lock(choices().mutex);
  std::int64_t count = 0;
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    Key key{};
    cublasLtMatmulAlgo_t algo{};
    std::string bar;
    for (std::int64_t& value : key) fields >> value;
    fields >> bar >> std::hex;
    for (std::uint64_t& word : algo.data) fields >> word;
    require(!fields.fail() && bar == "|",
            "{}: '{}' is no choice of an algorithm: remove the file and tune again", source, line);
    choices().chosen[key] = algo;
    ++count;
  }
  return count;
}

}  // namespace ridge::kernels
