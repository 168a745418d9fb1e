// Captures, the graphs that they make, and objects that live as long as a graph.
#include <algorithm>
#include <atomic>

#include "tests/emulated_gpu/runtime_stream.h"

struct CUuserObject_st {
  void* data = nullptr;
  cudaHostFn_t destroy = nullptr;
  std::atomic<long> count{0};
};

namespace ridge::emulated {
namespace {

std::atomic<int> captures{0};

void drop(cudaUserObject_t object, unsigned count) {
  if ((object->count -= count) > 0) return;
  object->destroy(object->data);
  delete object;
}

cudaStreamCaptureStatus status_of(const Capture* capture) {
  if (capture == nullptr) return cudaStreamCaptureStatusNone;
  return capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}

}  // namespace

Recording::~Recording() {
  for (const cudaUserObject_t object : objects) drop(object, 1);
}

bool any_capture() { return captures > 0; }

}  // namespace ridge::emulated

using namespace ridge::emulated;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  static unsigned long long count = 0;
  const std::lock_guard lock(device_mutex());
  if (device_state() != cudaSuccess) return told(device_state());
  // The null stream cannot be captured.
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread)
    return told(cudaErrorStreamCaptureUnsupported);
  if (capture_of(stream) != nullptr) return told(cudaErrorIllegalState);
  stream->capture = std::make_shared<Capture>();
  stream->capture->graph = new CUgraph_st;
  stream->capture->id = ++count;
  stream->capture->origin = stream;
  ++captures;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(device_mutex());
  *graph = nullptr;
  Capture* capture = capture_of(stream);
  if (capture == nullptr) return told(cudaErrorIllegalState);
  if (capture->origin != stream) return told(cudaErrorStreamCaptureUnmatched);
  capture->ended = true;
  --captures;
  if (capture->invalid) {
    delete capture->graph;
    stream->capture.reset();
    return told(cudaErrorStreamCaptureInvalidated);
  }
  *graph = capture->graph;
  stream->capture.reset();
  return told(device_state());
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const std::lock_guard lock(device_mutex());
  *status = status_of(capture_of(stream));
  return cudaSuccess;
}

// No nodes: what is recorded has an order and nothing more.
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies, const cudaGraphEdgeData** edges,
                                     size_t* dependency_count) {
  const std::lock_guard lock(device_mutex());
  const Capture* capture = capture_of(stream);
  *status = status_of(capture);
  if (id != nullptr && capture != nullptr) *id = capture->id;
  if (graph != nullptr) *graph = capture != nullptr ? capture->graph : nullptr;
  if (dependencies != nullptr) *dependencies = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (dependency_count != nullptr) *dependency_count = 0;
  return cudaSuccess;
}

// Nothing is refused for the mode's sake.
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static thread_local cudaStreamCaptureMode own = cudaStreamCaptureModeGlobal;
  std::swap(own, *mode);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  if (graph == nullptr) return told(cudaErrorInvalidValue);
  *executable = new CUgraphExec_st{graph->recording};
  return told(device_state());
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return enqueue(stream, [recording = executable->recording] {
    for (const auto& work : recording->work) work();
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return told(device_state()); }

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const std::lock_guard lock(device_mutex());
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const std::lock_guard lock(device_mutex());
  delete executable;
  return cudaSuccess;
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* data, cudaHostFn_t destroy, unsigned count,
                                 unsigned) {
  *object = new CUuserObject_st;
  (*object)->data = data;
  (*object)->destroy = destroy;
  (*object)->count = count;
  return cudaSuccess;
}

cudaError_t cudaUserObjectRetain(cudaUserObject_t object, unsigned count) {
  object->count += count;
  return cudaSuccess;
}

cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned count) {
  drop(object, count);
  return cudaSuccess;
}

cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count,
                                      unsigned flags) {
  const std::lock_guard lock(device_mutex());
  if ((flags & cudaGraphUserObjectMove) == 0) object->count += count;
  graph->recording->objects.insert(graph->recording->objects.end(), count, object);
  return cudaSuccess;
}

}  // extern "C"
