// Attention as graphs of cuDNN. A graph is built once for a shape, its strides and its options.
#include "kernels/attention_cudnn.h"

#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cuda_runtime.h>
#include <cudnn.h>
#include <cudnn_frontend.h>

#include <array>
#include <bit>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/base/cuda.h"
#include "core/base/error.h"

namespace ridge::kernels::cuda {
namespace {

namespace fe = cudnn_frontend;
using attention_detail::Problem;
using attention_detail::Workspace;
using ridge::cuda::Event;

constexpr std::size_t kMostPlans = 512;

enum class Id : std::int64_t { q = 1, k, v, o, grad, dq, dk, dv, lse };

// A [B, T, H, D] tensor of a graph, and where it lies in this call.
struct Operand {
  Id id;
  char* data;
  std::int64_t batch, token, head;  // strides, elements
  bool of_keys;                     // its heads are key-value heads
};

template <class T>
Operand operand(Id id, const View<T>& x) {
  const bool of_keys = id == Id::k || id == Id::v || id == Id::dk || id == Id::dv;
  const std::int64_t token = x.strides[1];
  return {id,
          reinterpret_cast<char*>(const_cast<bf16*>(x.data)),
          x.dim(0) == 1 ? token * x.dim(1) : x.strides[0],
          token,
          x.dim(2) == 1 ? x.dim(3) : x.strides[2],
          of_keys};
}

// One pass over some batch entries and heads.
struct Call {
  Problem problem;  // of one execution
  std::vector<Operand> operands;
  float* lse;  // [B, H, T]; may be null in a forward pass
  bool backward;

  const Operand& of(Id id) const {
    for (const Operand& x : operands) {
      if (x.id == id) return x;
    }
    fail("cuDNN attention: no operand {}", static_cast<int>(id));
  }
  bool windowed() const { return problem.options.window > 0 && problem.options.window < problem.keys; }
  std::vector<std::int64_t> key() const {
    const auto& options = problem.options;
    std::vector<std::int64_t> all{backward,
                                  lse != nullptr,
                                  problem.batch,
                                  problem.queries,
                                  problem.keys,
                                  problem.heads,
                                  problem.groups,
                                  problem.head_dim,
                                  options.causal,
                                  options.deterministic,
                                  windowed() ? options.window : 0,
                                  std::bit_cast<std::int64_t>(options.scale)};
    for (const Operand& x : operands) all.insert(all.end(), {x.batch, x.token, x.head});
    return all;
  }
};

// cuDNN's tensors are [B, H, T, D].
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

void describe(fe::graph::Tensor_attributes& tensor, const Call& call, const Operand& x) {
  const Problem& p = call.problem;
  tensor.set_uid(static_cast<std::int64_t>(x.id))
      .set_dim({p.batch, x.of_keys ? p.groups : p.heads, x.of_keys ? p.keys : p.queries, p.head_dim})
      .set_stride({x.batch, x.head, x.token, 1});
}

Tensor input(fe::graph::Graph& graph, const Call& call, Id id) {
  fe::graph::Tensor_attributes tensor;
  describe(tensor, call, call.of(id));
  return graph.tensor(tensor);
}

void output(const Tensor& tensor, const Call& call, Id id) {
  tensor->set_output(true);
  describe(*tensor, call, call.of(id));
}

void describe_lse(fe::graph::Tensor_attributes& tensor, const Problem& p) {
  tensor.set_uid(static_cast<std::int64_t>(Id::lse))
      .set_data_type(fe::DataType_t::FLOAT)
      .set_dim({p.batch, p.heads, p.queries, 1})
      .set_stride({p.heads * p.queries, p.queries, 1, 1});
}

// cuDNN shows key j to query i where j + left bound > i, and j <= i + right bound.
template <class Options>
Options options_of(const Call& call, const char* name) {
  Options options;
  options.set_name(name).set_attn_scale(static_cast<float>(call.problem.options.scale));
  if (!call.problem.options.causal) return options;
  options.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT).set_diagonal_band_right_bound(0);
  if (call.windowed()) options.set_diagonal_band_left_bound(static_cast<int>(call.problem.options.window));
  return options;
}

void add_forward(fe::graph::Graph& graph, const Call& call) {
  auto options = options_of<fe::graph::SDPA_attributes>(call, "attention");
  options.set_generate_stats(call.lse != nullptr);
  const auto [o, lse] =
      graph.sdpa(input(graph, call, Id::q), input(graph, call, Id::k), input(graph, call, Id::v), options);
  output(o, call, Id::o);
  if (call.lse == nullptr) return;
  lse->set_output(true);
  describe_lse(*lse, call.problem);
}

void add_backward(fe::graph::Graph& graph, const Call& call) {
  auto options = options_of<fe::graph::SDPA_backward_attributes>(call, "attention_backward");
  options.set_deterministic_algorithm(call.problem.options.deterministic);
  fe::graph::Tensor_attributes lse;
  describe_lse(lse, call.problem);
  const auto [dq, dk, dv] = graph.sdpa_backward(input(graph, call, Id::q), input(graph, call, Id::k),
                                                input(graph, call, Id::v), input(graph, call, Id::o),
                                                input(graph, call, Id::grad), graph.tensor(lse), options);
  output(dq, call, Id::dq);
  output(dk, call, Id::dk);
  output(dv, call, Id::dv);
}

struct Plan {
  std::unique_ptr<fe::graph::Graph> graph;  // null: refused
  std::int64_t workspace = 0;               // bytes
  std::int64_t last_use = 0;
};

// The process's handle and plans; one call at a time.
class Cudnn {
 public:
  // Never destroyed: at exit the driver may be gone before us.
  static Cudnn& instance() {
    static Cudnn& cudnn = *new Cudnn;
    return cudnn;
  }

  // Executes `call` for every `batch` entries and `groups` key-value heads of `all`.
  bool run(Stream& stream, const Problem& all, const Call& call, Workspace workspace) {
    const std::lock_guard lock(mutex_);
    void* native = stream.native();
    ensure_handle();
    const Plan& plan = plan_of(stream, call);
    if (plan.graph == nullptr) return false;
    const bool enough = plan.workspace <= workspace.bytes;
    if (!enough && call.backward) ++report_.over_planned;
    const PurposeScope purpose(Purpose::workspace);
    std::optional<Storage> own;
    if (!enough) own.emplace(Device::cuda, plan.workspace);
    expect(cudnnSetStream(handle_, static_cast<cudaStream_t>(native)), "cudnnSetStream");
    for (std::int64_t b = 0; b < all.batch; b += call.problem.batch) {
      for (std::int64_t g = 0; g < all.groups; g += call.problem.groups)
        execute(plan, all, call, b, g, enough ? workspace.data : own->data());
    }
    ++report_.served;
    return true;
  }

  FusedReport report() {
    const std::lock_guard lock(mutex_);
    return report_;
  }

 private:
  static void expect(cudnnStatus_t status, const char* what) {
    if (status != CUDNN_STATUS_SUCCESS) fail("{}: {}", what, cudnnGetErrorString(status));
  }

  void ensure_handle() {
    if (handle_ == nullptr) expect(cudnnCreate(&handle_), "cudnnCreate");
  }

  Plan& plan_of(const Stream& stream, const Call& call) {
    const auto [place, fresh] = plans_.try_emplace(call.key());
    Plan& plan = place->second;
    plan.last_use = ++clock_;
    if (!fresh) return plan;
    build(call, plan);
    if (plans_.size() > kMostPlans) retire_oldest(stream);
    return plan;
  }

  void build(const Call& call, Plan& plan) {
    auto graph = std::make_unique<fe::graph::Graph>();
    graph->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    std::string refusal;
    try {
      call.backward ? add_backward(*graph, call) : add_forward(*graph, call);
      fe::error_t status = graph->build(handle_, {fe::HeurMode_t::A});
      if (status.is_good()) status = graph->get_workspace_size(plan.workspace);
      if (status.is_bad()) refusal = status.get_message();
    } catch (const std::exception& error) {
      refusal = error.what();
    }
    if (refusal.empty()) {
      plan.graph = std::move(graph);
      report_.workspace = plan.workspace;
    } else {
      cudaGetLastError();  // what cuDNN tried is no error of ours
      ++report_.refused;
      report_.last_refusal = refusal;
    }
  }

  // A plan may own code that is still queued: it goes once the device has passed this point.
  void retire_oldest(const Stream& stream) {
    const auto oldest = std::min_element(plans_.begin(), plans_.end(), [](const auto& a, const auto& b) {
      return a.second.last_use < b.second.last_use;
    });
    Event passed;
    passed.record(stream);
    retired_.emplace_back(std::move(passed), std::move(oldest->second.graph));
    plans_.erase(oldest);
    std::erase_if(retired_, [](const auto& plan) { return plan.first.done(); });
  }

  void execute(const Plan& plan, const Problem& all, const Call& call, std::int64_t b, std::int64_t g,
               void* workspace) {
    const std::int64_t share = all.heads / all.groups;
    std::unordered_map<std::int64_t, void*> data;
    for (const Operand& x : call.operands) {
      const std::int64_t offset = b * x.batch + (x.of_keys ? g : g * share) * x.head;
      data[static_cast<std::int64_t>(x.id)] = x.data + offset * static_cast<std::int64_t>(sizeof(bf16));
    }
    if (call.lse != nullptr)
      data[static_cast<std::int64_t>(Id::lse)] = call.lse + (b * all.heads + g * share) * all.queries;
    fe::error_t status = plan.graph->execute(handle_, data, workspace);
    if (status.is_bad()) fail("cuDNN attention: {}", status.get_message());
  }

  std::mutex mutex_;
  cudnnHandle_t handle_ = nullptr;
  std::map<std::vector<std::int64_t>, Plan> plans_;
  std::vector<std::pair<Event, std::unique_ptr<fe::graph::Graph>>> retired_;
  std::int64_t clock_ = 0;
  FusedReport report_;
};

bool aligned(const Call& call) {
  return std::all_of(call.operands.begin(), call.operands.end(),
                     [](const Operand& x) { return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0; });
}

}  // namespace

bool fused_available() { return true; }

bool fused_attention(Stream& stream, const Problem& problem, const View<const bf16>& q,
                     const View<const bf16>& k, const View<const bf16>& v, const View<bf16>& o,
                     const View<float>& lse) {
  const Call call{problem,
                  {operand(Id::q, q), operand(Id::k, k), operand(Id::v, v), operand(Id::o, o)},
                  lse.ndim() == 0 ? nullptr : lse.data,
                  false};
  return aligned(call) && Cudnn::instance().run(stream, problem, call, {});
}

bool fused_attention_backward(Stream& stream, const Problem& problem, const FusedGradients& x,
                              Workspace workspace) {
  const auto cut = attention_detail::fused_backward_cut(problem);
  if (cut.batch == 0) return false;
  Call call{problem,
            {operand(Id::q, x.q_BTHD), operand(Id::k, x.k_BSGD), operand(Id::v, x.v_BSGD),
             operand(Id::o, x.o_BTHD), operand(Id::grad, x.do_BTHD), operand(Id::dq, x.dq_BTHD),
             operand(Id::dk, x.dk_BSGD), operand(Id::dv, x.dv_BSGD)},
            const_cast<float*>(x.lse_BHT.data),
            true};
  call.problem.batch = cut.batch;
  call.problem.groups = cut.groups;
  call.problem.heads = cut.groups * (problem.heads / problem.groups);
  return aligned(call) && Cudnn::instance().run(stream, problem, call, workspace);
}

FusedReport fused_report() { return Cudnn::instance().report(); }

}  // namespace ridge::kernels::cuda
