// One GPU a process: choice of device, memory, streams, events.
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>

#include <utility>

#include "core/base/cuda.h"
#include "core/base/cuda_check.h"
#include "core/base/error.h"
#include "core/base/stream.h"

namespace ridge {

void check_cuda(cudaError_t code, std::source_location where) {
  if (code == cudaSuccess) return;
  const char* name = cudaGetErrorName(code);
  const char* text = cudaGetErrorString(code);
  cudaGetLastError();
  fail("{}:{}: CUDA: {} ({})", where.file_name(), where.line(), text, name);
}

bool built_with_cuda() { return true; }

std::vector<std::string> cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return {};
  std::vector<std::string> names;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) continue;
    const int capability = properties.major * 10 + properties.minor;
    names.push_back(std::string(properties.name) + " (sm_" + std::to_string(capability) + ")");
  }
  return names;
}

namespace cuda {
namespace {

int& device_index() {
  static int index = 0;
  return index;
}

__global__ void probe() {}

// A card of another architecture has no code in this program: the first kernel would fail.
void check_architecture(int index) {
  cudaFuncAttributes attributes{};
  const cudaError_t code = cudaFuncGetAttributes(&attributes, probe);
  if (code == cudaSuccess) return;
  cudaGetLastError();
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, index));
  fail_user(
      "GPU {} ({}) is sm_{}{}: this build has no code for it ({}); build with "
      "-DCMAKE_CUDA_ARCHITECTURES={}{}",
      index, properties.name, properties.major, properties.minor, cudaGetErrorString(code), properties.major,
      properties.minor);
}

}  // namespace

void select_device(int index) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) fail_user("--device cuda: this machine has no NVIDIA driver: use --device cpu");
    fail_user("--device cuda: the driver knows CUDA {}.{}, this build needs {}.{}: update the driver",
              driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  }
  if (code != cudaSuccess || count == 0)
    fail_user("--device cuda: no GPU is found ({}): use --device cpu", cudaGetErrorString(code));
  if (index >= count)
    fail_user("rank {} of this host needs a GPU of its own, but there are {}: start at most {} ranks a host",
              index, count, count);
  check_cuda(cudaSetDevice(index));
  device_index() = index;
  check_architecture(index);
}

int selected_device() { return device_index(); }

int multiprocessors() {
  static const int kCount = [] {
    int count = 0;
    check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_index()));
    return count;
  }();
  return kCount;
}

DeviceMemory device_memory() {
  std::size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total));
  return {static_cast<std::int64_t>(free), static_cast<std::int64_t>(total)};
}

void* make_stream(const char*, bool urgent) {
  cudaStream_t stream = nullptr;
  check_cuda(cudaSetDevice(device_index()));
  int least = 0, greatest = 0;
  check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  check_cuda(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, urgent ? greatest : least));
  return stream;
}

void* compute_stream() {
  static void* stream = make_stream("compute");
  // A thread begins on GPU 0.
  static thread_local const bool kBound = (check_cuda(cudaSetDevice(device_index())), true);
  static_cast<void>(kBound);
  return stream;
}

void* allocate(std::int64_t bytes) {
  void* data = nullptr;
  compute_stream();
  const cudaError_t code = cudaMalloc(&data, static_cast<std::size_t>(bytes));
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check_cuda(code);
  return data;
}

void release(void* data) noexcept { cudaFree(data); }

void* allocate_pinned(std::int64_t bytes) {
  void* data = nullptr;
  compute_stream();
  check_cuda(cudaMallocHost(&data, static_cast<std::size_t>(bytes)));
  return data;
}

void release_pinned(void* data) noexcept { cudaFreeHost(data); }

void copy(void* to, const void* from, std::int64_t bytes, const Stream& stream) {
  if (bytes == 0) return;
  check_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault,
                             static_cast<cudaStream_t>(stream.native())));
}

void fill_bytes(void* data, int value, std::int64_t bytes, const Stream& stream) {
  if (bytes == 0) return;
  check_cuda(cudaMemsetAsync(data, value, static_cast<std::size_t>(bytes),
                             static_cast<cudaStream_t>(stream.native())));
}

Fault* fault_slot() {
  static Fault* slot = [] {
    auto* fault = static_cast<Fault*>(allocate_pinned(sizeof(Fault)));
    *fault = Fault{};
    return fault;
  }();
  return slot;
}

namespace {

void throw_fault() {
  Fault* slot = fault_slot();
  const auto kind = static_cast<FaultKind>(*static_cast<volatile std::int32_t*>(&slot->kind));
  if (kind == FaultKind::none) return;
  const Fault fault = *slot;
  *slot = Fault{};
  if (kind == FaultKind::embedding_id) {
    fail_user(
        "embedding: id {} at position {} is outside the table of {} ids: check that tokenizer and model "
        "belong together",
        fault.value, fault.place, fault.limit);
  }
  if (kind == FaultKind::absent_rank)
    fail("a sum over ranks: rank {} did not come to it within {:g} s: it has ended, or hangs", fault.place,
         static_cast<double>(fault.limit) / 1e9);
  fail_user(
      "cross entropy: target {} in row {} is outside the vocabulary of {} ids: check that tokenizer and "
      "model belong together",
      fault.value, fault.place, fault.limit);
}

}  // namespace

void synchronize(const Stream& stream) {
  const cudaError_t code = cudaStreamSynchronize(static_cast<cudaStream_t>(stream.native()));
  throw_fault();  // before what a kernel that ended itself leaves behind
  check_cuda(code);
}

void forget_faults(const Stream& stream) {
  const cudaError_t code = cudaStreamSynchronize(static_cast<cudaStream_t>(stream.native()));
  *fault_slot() = Fault{};
  check_cuda(code);
}

void check_launch(const char* op) {
  const cudaError_t code = cudaGetLastError();
  if (code != cudaSuccess) fail("{}: CUDA: {} ({})", op, cudaGetErrorString(code), cudaGetErrorName(code));
}

Event::Event(bool timed) {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming));
  event_ = event;
}

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

Event::Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(event_, other.event_);
  return *this;
}

void Event::record(const Stream& stream) {
  check_cuda(cudaEventRecord(static_cast<cudaEvent_t>(event_), static_cast<cudaStream_t>(stream.native())));
}

void Event::hold(const Stream& stream) const {
  check_cuda(
      cudaStreamWaitEvent(static_cast<cudaStream_t>(stream.native()), static_cast<cudaEvent_t>(event_), 0));
}

void Event::synchronize() const {
  const cudaError_t code = cudaEventSynchronize(static_cast<cudaEvent_t>(event_));
  if (code != cudaSuccess) throw_fault();
  check_cuda(code);
}

bool Event::done() const {
  const cudaError_t code = cudaEventQuery(static_cast<cudaEvent_t>(event_));
  if (code != cudaErrorNotReady) check_cuda(code);
  return code == cudaSuccess;
}

double Event::nanoseconds_since(const Event& earlier) const {
  float milliseconds = 0;
  check_cuda(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(earlier.event_),
                                  static_cast<cudaEvent_t>(event_)));
  return static_cast<double>(milliseconds) * 1e6;
}

Graph::~Graph() {
  if (graph_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_));
}

Graph::Graph(Graph&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}

Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(graph_, other.graph_);
  return *this;
}

void Graph::record(const Stream& stream, const std::function<void()>& body) {
  const auto native = static_cast<cudaStream_t>(stream.native());
  // Relaxed: the pool may ask for memory meanwhile.
  check_cuda(cudaStreamBeginCapture(native, cudaStreamCaptureModeRelaxed));
  cudaGraph_t recorded = nullptr;
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(native, &recorded);
    if (recorded != nullptr) cudaGraphDestroy(recorded);
    cudaGetLastError();
    throw;
  }
  check_cuda(cudaStreamEndCapture(native, &recorded));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t code = cudaGraphInstantiate(&executable, recorded, 0);
  cudaGraphDestroy(recorded);
  check_cuda(code);
  if (graph_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_));
  graph_ = executable;
}

void Graph::launch(const Stream& stream) const {
  check(graph_ != nullptr, "a recorded graph");
  check_cuda(
      cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), static_cast<cudaStream_t>(stream.native())));
}

void range_push(const char* name) { nvtxRangePushA(name); }
void range_pop() { nvtxRangePop(); }

}  // namespace cuda
}  // namespace ridge
