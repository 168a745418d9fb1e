// Streams and events.
#include "tests/emulated_gpu/runtime_stream.h"

#include <algorithm>
#include <cstdio>

namespace ridge::emulated {
namespace {

constexpr int kGreatestPriority = -5;
constexpr double kTick = 0.0005;  // ms, about what events of a card resolve

CUstream_st& stream_at(cudaStream_t stream) {
  static CUstream_st& null_stream = *new CUstream_st;
  const bool named = stream != nullptr && stream != cudaStreamLegacy && stream != cudaStreamPerThread;
  return named ? *stream : null_stream;
}

cudaError_t spoil(Capture& capture, cudaError_t code) {
  capture.invalid = true;
  return told(code);
}

// Waiting for what has only been recorded is an error that spoils the recording.
cudaError_t check_wait(cudaStream_t stream) {
  const std::lock_guard lock(device_mutex());
  if (Capture* capture = capture_of(stream)) return spoil(*capture, cudaErrorStreamCaptureUnsupported);
  return told(device_state());
}

cudaError_t check_event(const CUevent_st* event) {
  const std::lock_guard lock(device_mutex());
  if (event->capture == nullptr) return told(device_state());
  return spoil(*event->capture, cudaErrorCapturedEvent);
}

}  // namespace

Capture* capture_of(cudaStream_t stream) {
  std::shared_ptr<Capture>& capture = stream_at(stream).capture;
  if (capture != nullptr && capture->ended) capture.reset();
  return capture.get();
}

bool capturing(cudaStream_t stream) {
  const std::lock_guard lock(device_mutex());
  return capture_of(stream) != nullptr;
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  const std::lock_guard lock(device_mutex());
  if (device_state() != cudaSuccess) return told(device_state());
  if (Capture* capture = capture_of(stream)) {
    if (capture->invalid) return told(cudaErrorStreamCaptureInvalidated);
    capture->graph->recording->work.push_back(std::move(work));
    return cudaSuccess;
  }
  try {
    work();
  } catch (const std::exception& error) {
    return break_device(error.what());
  }
  return cudaSuccess;
}

}  // namespace ridge::emulated

using namespace ridge::emulated;

extern "C" {

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = kGreatestPriority;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  if (device_state() != cudaSuccess) return told(device_state());
  *stream = new CUstream_st;
  (*stream)->flags = flags;
  (*stream)->priority = std::clamp(priority, kGreatestPriority, 0);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(device_mutex());
  if (Capture* capture = capture_of(stream)) capture->invalid = true;
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return check_wait(stream); }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return check_wait(stream); }
cudaError_t cudaDeviceSynchronize() {
  return told(any_capture() ? cudaErrorStreamCaptureUnsupported : device_state());
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return enqueue(stream, [=] { function(data); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (device_state() != cudaSuccess) return told(device_state());
  *event = new CUevent_st;
  (*event)->timed = (flags & cudaEventDisableTiming) == 0;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard lock(device_mutex());
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(device_mutex());
  if (device_state() != cudaSuccess) return told(device_state());
  event->recorded = true;
  event->capture = capture_of(stream) != nullptr ? stream_at(stream).capture : nullptr;
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}

// A stream that waits for what is being recorded is recorded too.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(device_mutex());
  if (device_state() != cudaSuccess) return told(device_state());
  if (!event->recorded) return cudaSuccess;
  Capture* own = capture_of(stream);
  Capture* theirs = event->capture.get();
  if (own == theirs) return cudaSuccess;
  if (own != nullptr) return spoil(*own, cudaErrorStreamCaptureIsolation);
  if (theirs->ended) return told(cudaErrorCapturedEvent);
  stream_at(stream).capture = event->capture;
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) { return check_event(event); }
cudaError_t cudaEventQuery(cudaEvent_t event) { return check_event(event); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const std::lock_guard lock(device_mutex());
  const auto usable = [](const CUevent_st* event) { return event->timed && event->recorded; };
  if (!usable(from) || !usable(to)) return told(cudaErrorInvalidResourceHandle);
  if (from->capture != nullptr || to->capture != nullptr) return told(cudaErrorCapturedEvent);
  const double between = std::chrono::duration<double, std::milli>(to->time - from->time).count();
  *milliseconds = static_cast<float>(between >= 0 ? std::max(between, kTick) : between);
  return told(device_state());
}

}  // extern "C"
