// The one device, its properties, and errors.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "tests/emulated_gpu/runtime.h"

namespace ridge::emulated {
namespace {

constexpr int kVersion = 13000;

thread_local cudaError_t last_error = cudaSuccess;
std::atomic<cudaError_t> state{cudaSuccess};

// Few, so that grids made for the whole card stay small.
int multiprocessors() {
  static const int kCount = [] {
    const char* text = std::getenv("RIDGE_EMULATED_SMS");
    return text != nullptr ? std::clamp(std::atoi(text), 1, 1024) : 4;
  }();
  return kCount;
}

const std::map<cudaDeviceAttr, int>& attributes() {
  static const auto& kValues =
      *new std::map<cudaDeviceAttr, int>{{cudaDevAttrMaxThreadsPerBlock, kThreadsBlock},
                                         {cudaDevAttrMaxBlockDimX, 1024},
                                         {cudaDevAttrMaxBlockDimY, 1024},
                                         {cudaDevAttrMaxBlockDimZ, 64},
                                         {cudaDevAttrMaxGridDimX, 0x7FFFFFFF},
                                         {cudaDevAttrMaxGridDimY, 65535},
                                         {cudaDevAttrMaxGridDimZ, 65535},
                                         {cudaDevAttrMaxSharedMemoryPerBlock, kSharedDefault},
                                         {cudaDevAttrTotalConstantMemory, 65536},
                                         {cudaDevAttrWarpSize, 32},
                                         {cudaDevAttrMaxRegistersPerBlock, 65536},
                                         {cudaDevAttrMultiProcessorCount, multiprocessors()},
                                         {cudaDevAttrL2CacheSize, 60 << 20},
                                         {cudaDevAttrMaxThreadsPerMultiProcessor, kThreadsMultiprocessor},
                                         {cudaDevAttrUnifiedAddressing, 1},
                                         {cudaDevAttrComputeCapabilityMajor, 9},
                                         {cudaDevAttrComputeCapabilityMinor, 0},
                                         {cudaDevAttrStreamPrioritiesSupported, 1},
                                         {cudaDevAttrMaxSharedMemoryPerMultiprocessor, kSharedMultiprocessor},
                                         {cudaDevAttrMaxRegistersPerMultiprocessor, 65536},
                                         {cudaDevAttrCanUseHostPointerForRegisteredMem, 1},
                                         {cudaDevAttrCooperativeLaunch, 1},
                                         {cudaDevAttrMaxSharedMemoryPerBlockOptin, kSharedOptIn},
                                         {cudaDevAttrMaxBlocksPerMultiprocessor, 32},
                                         {cudaDevAttrReservedSharedMemoryPerBlock, kSharedReserved},
                                         {cudaDevAttrClusterLaunch, 1}};
  return kValues;
}

struct Name {
  const char* name;
  const char* text;
};

Name name_of(cudaError_t code) {
  static const auto& kNames = *new std::map<cudaError_t, Name>{
      {cudaSuccess, {"cudaSuccess", "no error"}},
      {cudaErrorInvalidValue, {"cudaErrorInvalidValue", "invalid argument"}},
      {cudaErrorMemoryAllocation, {"cudaErrorMemoryAllocation", "out of memory"}},
      {cudaErrorInvalidConfiguration, {"cudaErrorInvalidConfiguration", "invalid configuration argument"}},
      {cudaErrorInvalidSymbol, {"cudaErrorInvalidSymbol", "invalid device symbol"}},
      {cudaErrorInvalidDeviceFunction, {"cudaErrorInvalidDeviceFunction", "invalid device function"}},
      {cudaErrorNoDevice, {"cudaErrorNoDevice", "no CUDA-capable device is detected"}},
      {cudaErrorInvalidDevice, {"cudaErrorInvalidDevice", "invalid device ordinal"}},
      {cudaErrorInvalidKernelImage, {"cudaErrorInvalidKernelImage", "device kernel image is invalid"}},
      {cudaErrorNoKernelImageForDevice,
       {"cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device"}},
      {cudaErrorHostMemoryAlreadyRegistered,
       {"cudaErrorHostMemoryAlreadyRegistered",
        "part or all of the requested memory range is already mapped"}},
      {cudaErrorHostMemoryNotRegistered,
       {"cudaErrorHostMemoryNotRegistered", "pointer does not correspond to a registered memory region"}},
      {cudaErrorInvalidResourceHandle, {"cudaErrorInvalidResourceHandle", "invalid resource handle"}},
      {cudaErrorIllegalState,
       {"cudaErrorIllegalState", "the operation cannot be performed in the present state"}},
      {cudaErrorSymbolNotFound, {"cudaErrorSymbolNotFound", "named symbol not found"}},
      {cudaErrorNotReady, {"cudaErrorNotReady", "device not ready"}},
      {cudaErrorLaunchFailure, {"cudaErrorLaunchFailure", "unspecified launch failure"}},
      {cudaErrorNotSupported, {"cudaErrorNotSupported", "operation not supported"}},
      {cudaErrorStreamCaptureUnsupported,
       {"cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"}},
      {cudaErrorStreamCaptureInvalidated,
       {"cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"}},
      {cudaErrorStreamCaptureUnmatched,
       {"cudaErrorStreamCaptureUnmatched", "the capture was not initiated in this stream"}},
      {cudaErrorStreamCaptureIsolation,
       {"cudaErrorStreamCaptureIsolation",
        "dependency created on uncaptured work in another stream while capturing"}},
      {cudaErrorCapturedEvent,
       {"cudaErrorCapturedEvent", "operation not permitted on an event last recorded in a capturing stream"}},
  };
  const auto found = kNames.find(code);
  return found == kNames.end() ? Name{"cudaErrorUnknown", "unknown error"} : found->second;
}

}  // namespace

cudaError_t told(cudaError_t code) {
  if (code != cudaSuccess) last_error = code;
  return code;
}

cudaError_t device_state() { return state; }

cudaError_t break_device(const std::string& what) {
  std::fprintf(stderr, "emulated GPU: %s\n", what.c_str());
  state = cudaErrorLaunchFailure;
  return told(cudaErrorLaunchFailure);
}

std::recursive_mutex& device_mutex() {
  static std::recursive_mutex& mutex = *new std::recursive_mutex;
  return mutex;
}

bool tracing() {
  static const bool kTracing = std::getenv("RIDGE_EMULATED_TRACE") != nullptr;
  return kTracing;
}

}  // namespace ridge::emulated

using namespace ridge::emulated;

extern "C" {

// A broken device's error stays.
cudaError_t cudaGetLastError() {
  const cudaError_t broken = device_state();
  const cudaError_t error = broken != cudaSuccess ? broken : last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() {
  const cudaError_t broken = device_state();
  return broken != cudaSuccess ? broken : last_error;
}
const char* cudaGetErrorName(cudaError_t code) { return name_of(code).name; }
const char* cudaGetErrorString(cudaError_t code) { return name_of(code).text; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return told(device == 0 ? device_state() : cudaErrorInvalidDevice); }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return told(cudaErrorInvalidDevice);
  const auto found = attributes().find(attribute);
  *value = found == attributes().end() ? 0 : found->second;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return told(cudaErrorInvalidDevice);
  const auto value = [](cudaDeviceAttr attribute) { return attributes().at(attribute); };
  *properties = {};
  std::strcpy(properties->name, "Emulated H200");
  size_t free = 0;
  cudaMemGetInfo(&free, &properties->totalGlobalMem);
  properties->sharedMemPerBlock = kSharedDefault;
  properties->sharedMemPerBlockOptin = kSharedOptIn;
  properties->sharedMemPerMultiprocessor = kSharedMultiprocessor;
  properties->reservedSharedMemPerBlock = kSharedReserved;
  properties->regsPerBlock = properties->regsPerMultiprocessor = value(cudaDevAttrMaxRegistersPerBlock);
  properties->warpSize = value(cudaDevAttrWarpSize);
  properties->maxThreadsPerBlock = kThreadsBlock;
  properties->maxThreadsPerMultiProcessor = kThreadsMultiprocessor;
  for (int dim = 0; dim < 3; ++dim) {
    properties->maxThreadsDim[dim] = value(static_cast<cudaDeviceAttr>(cudaDevAttrMaxBlockDimX + dim));
    properties->maxGridSize[dim] = value(static_cast<cudaDeviceAttr>(cudaDevAttrMaxGridDimX + dim));
  }
  properties->totalConstMem = 65536;
  properties->major = 9;
  properties->multiProcessorCount = multiprocessors();
  properties->maxBlocksPerMultiProcessor = value(cudaDevAttrMaxBlocksPerMultiprocessor);
  properties->l2CacheSize = value(cudaDevAttrL2CacheSize);
  properties->concurrentKernels = properties->unifiedAddressing = properties->canMapHostMemory = 1;
  properties->streamPrioritiesSupported = properties->cooperativeLaunch = properties->clusterLaunch = 1;
  properties->memoryBusWidth = 6144;
  return cudaSuccess;
}

// Nothing of the driver's own interface is here.
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = nullptr;
  if (result != nullptr) *result = cudaDriverEntryPointSymbolNotFound;
  return result != nullptr ? cudaSuccess : told(cudaErrorSymbolNotFound);
}

}  // extern "C"
