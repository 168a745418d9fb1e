// The CUDA runtime as the house uses it, without its headers: one GPU a process. A build without CUDA links a
// stub whose calls throw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace ridge {

class Stream;

/// Whether this build has CUDA code.
bool built_with_cuda();

/// Names of the GPUs, such as "NVIDIA H200 (sm_90)"; empty where there is no GPU, no driver, or no CUDA in
/// this build.
std::vector<std::string> cuda_devices();

namespace cuda {

/// Makes GPU `index` this process's; before anything else touches CUDA. UserErrors: no such GPU, a driver
/// that is too old, an architecture that this build has no code for.
void select_device(int index);
int selected_device();
int multiprocessors();
/// Bytes of the GPU's memory: free now, and in all.
struct DeviceMemory {
  std::int64_t free = 0;
  std::int64_t total = 0;
};
DeviceMemory device_memory();

/// A cudaStream_t. The compute stream is one a process: memory goes back to the pool in its order.
void* compute_stream();
/// An urgent stream's kernels start before those of others that wait.
void* make_stream(const char* name, bool urgent = false);

/// Null where the device has no room. 256-byte aligned.
void* allocate(std::int64_t bytes);
void release(void* data) noexcept;
/// Page-locked memory of the host, which copies to and from the GPU need to run beside work.
void* allocate_pinned(std::int64_t bytes);
void release_pinned(void* data) noexcept;

/// Queued on the stream; any direction. From or to pageable host memory it returns when that is done with.
void copy(void* to, const void* from, std::int64_t bytes, const Stream& stream);
void fill_bytes(void* data, int value, std::int64_t bytes, const Stream& stream);

/// Waits for all work of a stream, and throws what went wrong in it. Kernels report bad indices here.
void synchronize(const Stream& stream);
/// Waits too, and forgets what kernels reported: for who knows what came before it.
void forget_faults(const Stream& stream);
/// Throws if the last launch was refused.
void check_launch(const char* op);

/// What a kernel reports about bad input, such as an id outside a table, or of a rank that it waited for in
/// vain: first come, first kept.
struct Fault {
  std::int32_t kind = 0;  // FaultKind; 0: none
  std::int32_t reserved = 0;
  std::int64_t place = 0, value = 0, limit = 0;
};
enum class FaultKind : std::int32_t { none, embedding_id, target_id, absent_rank };
/// Host memory that kernels write to.
Fault* fault_slot();

/// A point in a stream's work.
class Event {
 public:
  explicit Event(bool timed = false);
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(const Stream& stream);
  /// Work queued on `stream` from now on waits for this point.
  void hold(const Stream& stream) const;
  void synchronize() const;
  bool done() const;
  /// Nanoseconds from `earlier` to this point; both timed and done.
  double nanoseconds_since(const Event& earlier) const;

 private:
  void* event_ = nullptr;
};

/// Work of a stream that was recorded and can be run again at the cost of one launch.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  bool recorded() const { return graph_ != nullptr; }
  /// Records what `body` queues on the stream, which runs nothing of it. It may not wait for the stream, and
  /// what it has kernels read and write must live as long as this.
  void record(const Stream& stream, const std::function<void()>& body);
  void launch(const Stream& stream) const;

 private:
  void* graph_ = nullptr;  // cudaGraphExec_t
};

/// Named spans for NVIDIA's tools.
void range_push(const char* name);
void range_pop();

}  // namespace cuda
}  // namespace ridge
