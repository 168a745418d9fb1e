// Stands for cuda_runtime.cu in a build without CUDA.
#include "core/base/cuda.h"
#include "core/base/error.h"

namespace ridge {
namespace {

[[noreturn]] void none() {
  fail_user("this build has no CUDA: use --device cpu, or build with -DRIDGE_CUDA=ON");
}

}  // namespace

bool built_with_cuda() { return false; }

std::vector<std::string> cuda_devices() { return {}; }

namespace cuda {

void select_device(int) { none(); }
int selected_device() { none(); }
int multiprocessors() { none(); }
DeviceMemory device_memory() { none(); }
void* compute_stream() { none(); }
void* make_stream(const char*, bool) { none(); }
void* allocate(std::int64_t) { none(); }
void release(void*) noexcept {}
void* allocate_pinned(std::int64_t) { none(); }
void release_pinned(void*) noexcept {}
void copy(void*, const void*, std::int64_t, const Stream&) { none(); }
void fill_bytes(void*, int, std::int64_t, const Stream&) { none(); }
void synchronize(const Stream&) { none(); }
void forget_faults(const Stream&) { none(); }
void check_launch(const char*) { none(); }
Fault* fault_slot() { none(); }
Event::Event(bool) { none(); }
Event::~Event() = default;
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;
void Event::record(const Stream&) { none(); }
void Event::hold(const Stream&) const { none(); }
void Event::synchronize() const { none(); }
bool Event::done() const { none(); }
double Event::nanoseconds_since(const Event&) const { none(); }
Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
void Graph::record(const Stream&, const std::function<void()>&) { none(); }
void Graph::launch(const Stream&) const { none(); }
void range_push(const char*) {}
void range_pop() {}

}  // namespace cuda
}  // namespace ridge
