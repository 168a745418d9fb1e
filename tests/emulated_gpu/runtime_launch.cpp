// Launches: what the runtime and the card refuse, and the rest handed to the machine.
#include <cxxabi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "tests/emulated_gpu/runtime.h"

#define RIDGE_VISIBLE __attribute__((visibility("default")))

namespace ridge::emulated {
namespace {

struct Call {
  dim3 grid, block;
  std::size_t shared = 0;
  cudaStream_t stream = nullptr;
};

// Between <<<...>>> and the function that nvcc makes of the kernel.
std::vector<Call>& pushed_calls() {
  static thread_local std::vector<Call> calls;
  return calls;
}

Size3 size3(dim3 size) { return {size.x, size.y, size.z}; }

std::string readable(const std::string& name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string result = status == 0 ? text : name;
  std::free(text);
  return result;
}

std::string text_of(const Size3& size) {
  return std::to_string(size.x) + "x" + std::to_string(size.y) + "x" + std::to_string(size.z);
}

std::string text_of(const CUkern_st& kernel, const Launch& launch) {
  std::string text = "kernel " + readable(kernel.name) + ", grid " + text_of(launch.grid) + ", block " +
                     text_of(launch.block) + ", " + std::to_string(launch.shared_bytes) + " bytes shared";
  if (launch.cluster.x != 0) text += ", cluster " + text_of(launch.cluster);
  return text;
}

/// The kernel's module; null: `error` says why, and stderr more.
Module* module_of(const CUkern_st& kernel, cudaError_t* error) {
  try {
    Module& module = kernel.binary->module();
    if (has_kernel(module, kernel.name)) return &module;
    *error = cudaErrorInvalidDeviceFunction;
    std::fprintf(stderr, "emulated GPU: no kernel %s in its PTX\n", readable(kernel.name).c_str());
  } catch (const std::runtime_error& failed) {
    *error = cudaErrorNoKernelImageForDevice;
    std::fprintf(stderr, "emulated GPU: kernel %s: %s\n", readable(kernel.name).c_str(), failed.what());
  }
  return nullptr;
}

std::int64_t dynamic_limit(const CUkern_st& kernel, unsigned static_bytes) {
  return kernel.dynamic_shared.value_or(kSharedDefault - static_cast<std::int64_t>(static_bytes));
}

bool fits(const Size3& size, const std::array<unsigned, 3>& most) {
  return size.count() != 0 && size.x <= most[0] && size.y <= most[1] && size.z <= most[2];
}

cudaError_t check_sizes(const CUkern_st& kernel, const Launch& launch, unsigned static_bytes) {
  if (!fits(launch.grid, {0x7FFFFFFF, 65535, 65535}) || !fits(launch.block, {1024, 1024, 64}) ||
      launch.block.count() > kThreadsBlock)
    return cudaErrorInvalidConfiguration;
  if (launch.shared_bytes > dynamic_limit(kernel, static_bytes)) return cudaErrorInvalidValue;
  const Size3& cluster = launch.cluster;
  if (cluster.x == 0) return cudaSuccess;
  if (cluster.count() == 0 || cluster.count() > (kernel.wide_clusters ? 16 : 8) ||
      launch.grid.x % cluster.x != 0 || launch.grid.y % cluster.y != 0 || launch.grid.z % cluster.z != 0)
    return cudaErrorInvalidConfiguration;
  return cudaSuccess;
}

void run_told(Module& module, const CUkern_st& kernel, const Launch& launch) {
  const auto begin = std::chrono::steady_clock::now();
  try {
    run_kernel(module, kernel.name, launch);
  } catch (const std::exception& error) {
    throw std::runtime_error(text_of(kernel, launch) + ": " + error.what());
  }
  if (!tracing()) return;
  const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - begin;
  std::fprintf(stderr, "emulated GPU: %s: %.2f ms\n", text_of(kernel, launch).c_str(), spent.count());
}

// A graph runs with the arguments of when it was recorded.
std::vector<std::vector<std::byte>> copied_arguments(Module& module, const std::string& name,
                                                     void** arguments) {
  std::vector<std::vector<std::byte>> copies;
  for (const unsigned bytes : parameter_sizes(module, name)) {
    const auto* from = static_cast<const std::byte*>(arguments[copies.size()]);
    copies.emplace_back(from, from + bytes);
  }
  return copies;
}

cudaError_t launch_kernel(cudaKernel_t kernel, const Launch& launch, cudaStream_t stream) {
  if (kernel == nullptr) return told(cudaErrorInvalidDeviceFunction);
  if (device_state() != cudaSuccess) return told(device_state());
  std::unique_lock lock(device_mutex());
  cudaError_t error = cudaSuccess;
  Module* module = module_of(*kernel, &error);
  if (module == nullptr) return told(error);
  error = check_sizes(*kernel, launch, static_shared_bytes(*module, kernel->name));
  if (error != cudaSuccess) {
    std::fprintf(stderr, "emulated GPU: refused: %s\n", text_of(*kernel, launch).c_str());
    return told(error);
  }
  if (!capturing(stream)) return enqueue(stream, [=] { run_told(*module, *kernel, launch); });
  const auto copies = copied_arguments(*module, kernel->name, launch.arguments);
  return enqueue(stream, [=]() mutable {
    std::vector<std::vector<std::byte>> arguments = copies;
    std::vector<void*> places;
    for (auto& argument : arguments) places.push_back(argument.data());
    Launch again = launch;
    again.arguments = places.data();
    run_told(*module, *kernel, again);
  });
}

}  // namespace
}  // namespace ridge::emulated

using namespace ridge::emulated;

extern "C" {

RIDGE_VISIBLE unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared,
                                                   CUstream_st* stream) {
  pushed_calls().push_back({grid, block, shared, stream});
  return 0;
}

RIDGE_VISIBLE cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (pushed_calls().empty()) return told(cudaErrorInvalidConfiguration);
  const Call call = pushed_calls().back();
  pushed_calls().pop_back();
  *grid = call.grid;
  *block = call.block;
  *shared = call.shared;
  *static_cast<cudaStream_t*>(stream) = call.stream;
  return cudaSuccess;
}

RIDGE_VISIBLE cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                                             size_t shared, cudaStream_t stream) {
  const Launch launch{size3(grid), size3(block), {0, 0, 0}, static_cast<unsigned>(shared), arguments};
  return launch_kernel(kernel, launch, stream);
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t stream) {
  return __cudaLaunchKernel(kernel_of(function), grid, block, arguments, shared, stream);
}

// Kernels never overlap here: programmatic launches need nothing.
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  Launch launch{size3(config->gridDim),
                size3(config->blockDim),
                {0, 0, 0},
                static_cast<unsigned>(config->dynamicSmemBytes),
                arguments};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id != cudaLaunchAttributeClusterDimension) continue;
    launch.cluster = {attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z};
  }
  return launch_kernel(kernel_of(function), launch, config->stream);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const cudaKernel_t kernel = kernel_of(function);
  if (kernel == nullptr) return told(cudaErrorInvalidDeviceFunction);
  const std::lock_guard lock(device_mutex());
  cudaError_t error = cudaSuccess;
  Module* module = module_of(*kernel, &error);
  if (module == nullptr) return told(error);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    const auto taken = static_cast<int>(static_shared_bytes(*module, kernel->name));
    if (value < 0 || value > kSharedOptIn - taken) return told(cudaErrorInvalidValue);
    kernel->dynamic_shared = value;
  } else if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
    if (value < -1 || value > 100) return told(cudaErrorInvalidValue);
    kernel->carveout = value;
  } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    kernel->wide_clusters = value != 0;
  } else {
    return told(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, cudaFuncAttribute attribute, int value,
                                            int) {
  return cudaFuncSetAttribute(kernel, attribute, value);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  const cudaKernel_t kernel = kernel_of(function);
  if (kernel == nullptr) return told(cudaErrorInvalidDeviceFunction);
  const std::lock_guard lock(device_mutex());
  cudaError_t error = cudaSuccess;
  Module* module = module_of(*kernel, &error);
  if (module == nullptr) return told(error);
  *attributes = {};
  attributes->sharedSizeBytes = static_shared_bytes(*module, kernel->name);
  attributes->maxThreadsPerBlock = kThreadsBlock;
  attributes->numRegs = 64;  // the assembler's choice, which PTX does not say
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes =
      static_cast<int>(dynamic_limit(*kernel, static_shared_bytes(*module, kernel->name)));
  attributes->preferredShmemCarveout = kernel->carveout;
  attributes->nonPortableClusterSizeAllowed = kernel->wide_clusters ? 1 : 0;
  return cudaSuccess;
}

// At most 2: grids made to fill the card stay small.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                                   int threads, size_t shared, unsigned) {
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, function);
  if (error != cudaSuccess) return error;
  if (threads <= 0) return told(cudaErrorInvalidValue);
  const std::size_t each = attributes.sharedSizeBytes + shared + kSharedReserved;
  const bool runs = threads <= kThreadsBlock && attributes.sharedSizeBytes + shared <= kSharedOptIn;
  *blocks =
      runs ? std::min({2, kThreadsMultiprocessor / threads, static_cast<int>(kSharedMultiprocessor / each)})
           : 0;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}

}  // extern "C"
