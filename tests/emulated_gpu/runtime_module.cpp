// Kernels and variables that a program registers before main().
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <stdexcept>
#include <tuple>

#include "tests/emulated_gpu/fat_binary.h"
#include "tests/emulated_gpu/runtime.h"
#include "tests/emulated_gpu/runtime_memory.h"

#define RIDGE_VISIBLE __attribute__((visibility("default")))

namespace ridge::emulated {
namespace {

struct Variable {
  Binary* binary = nullptr;
  std::string name;
  std::size_t bytes = 0;
};

// Lives on after exit(), when binaries are unregistered.
struct Program {
  std::mutex mutex;
  std::map<const void*, std::unique_ptr<CUkern_st>> kernels;  // by host function
  std::map<std::pair<Binary*, std::string>, std::unique_ptr<CUkern_st>> library_kernels;
  std::set<const void*> handles;
  std::map<const void*, Variable> variables;  // by the host's shadow
};

Program& program() {
  static Program& all = *new Program;
  return all;
}

std::unique_ptr<CUkern_st> made_kernel(Binary* binary, const char* name) {
  auto kernel = std::make_unique<CUkern_st>();
  kernel->binary = binary;
  kernel->name = name;
  program().handles.insert(kernel.get());
  return kernel;
}

// Null: no such variable. Told on stderr: its module cannot be read.
std::byte* address_of(const void* symbol, std::size_t* bytes) {
  Program& all = program();
  Variable variable;
  {
    const std::lock_guard lock(all.mutex);
    const auto found = all.variables.find(symbol);
    if (found == all.variables.end()) return nullptr;
    variable = found->second;
  }
  *bytes = variable.bytes;
  try {
    const std::lock_guard lock(device_mutex());
    return static_cast<std::byte*>(address_of_variable(variable.binary->module(), variable.name));
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "emulated GPU: variable %s: %s\n", variable.name.c_str(), error.what());
    return nullptr;
  }
}

}  // namespace

Module& Binary::module() {
  const std::lock_guard lock(mutex_);
  if (module_ == nullptr) {
    ptx_ = ptx_of(image_);
    module_ = parse_module(ptx_);
  }
  return *module_;
}

cudaKernel_t kernel_of(const void* function) {
  Program& all = program();
  const std::lock_guard lock(all.mutex);
  const auto found = all.kernels.find(function);
  if (found != all.kernels.end()) return found->second.get();
  if (!all.handles.contains(function)) return nullptr;
  return static_cast<cudaKernel_t>(const_cast<void*>(function));
}

}  // namespace ridge::emulated

using namespace ridge::emulated;

extern "C" {

RIDGE_VISIBLE void** __cudaRegisterFatBinary(void* image) {
  return reinterpret_cast<void**>(new Binary(image));
}
RIDGE_VISIBLE void __cudaRegisterFatBinaryEnd(void**) {}
RIDGE_VISIBLE void __cudaUnregisterFatBinary(void**) {}

RIDGE_VISIBLE void __cudaRegisterFunction(void** binary, const char* function, char*, const char* name, int,
                                          uint3*, uint3*, dim3*, dim3*, int*) {
  Program& all = program();
  const std::lock_guard lock(all.mutex);
  all.kernels[function] = made_kernel(reinterpret_cast<Binary*>(binary), name);
}

RIDGE_VISIBLE void __cudaRegisterVar(void** binary, char* shadow, char*, const char* name, int, size_t bytes,
                                     int, int) {
  Program& all = program();
  const std::lock_guard lock(all.mutex);
  all.variables[shadow] = {reinterpret_cast<Binary*>(binary), name, bytes};
}

RIDGE_VISIBLE cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = kernel_of(function);
  return *kernel != nullptr ? cudaSuccess : told(cudaErrorInvalidDeviceFunction);
}

cudaError_t cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  return __cudaGetKernel(kernel, function);
}

cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
  size_t bytes = 0;
  *address = address_of(symbol, &bytes);
  return *address != nullptr ? cudaSuccess : told(cudaErrorInvalidSymbol);
}

cudaError_t cudaGetSymbolSize(size_t* bytes, const void* symbol) {
  return address_of(symbol, bytes) != nullptr ? cudaSuccess : told(cudaErrorInvalidSymbol);
}

cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, size_t bytes, size_t offset,
                                    cudaMemcpyKind kind, cudaStream_t stream) {
  size_t all = 0;
  std::byte* to = address_of(symbol, &all);
  if (to == nullptr) return told(cudaErrorInvalidSymbol);
  if (offset > all || bytes > all - offset) return told(cudaErrorInvalidValue);
  return cudaMemcpyAsync(to + offset, from, bytes, kind, stream);
}
cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset,
                               cudaMemcpyKind kind) {
  return cudaMemcpyToSymbolAsync(symbol, from, bytes, offset, kind, nullptr);
}

cudaError_t cudaMemcpyFromSymbolAsync(void* to, const void* symbol, size_t bytes, size_t offset,
                                      cudaMemcpyKind kind, cudaStream_t stream) {
  size_t all = 0;
  const std::byte* from = address_of(symbol, &all);
  if (from == nullptr) return told(cudaErrorInvalidSymbol);
  if (offset > all || bytes > all - offset) return told(cudaErrorInvalidValue);
  return cudaMemcpyAsync(to, from + offset, bytes, kind, stream);
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset,
                                 cudaMemcpyKind kind) {
  return cudaMemcpyFromSymbolAsync(to, symbol, bytes, offset, kind, nullptr);
}

// What a program compiles while it runs must be PTX; machine code is nothing that can be run here.
cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void* code, cudaJitOption*, void**, unsigned,
                                cudaLibraryOption*, void**, unsigned) {
  if (std::memcmp(code, "\177ELF", 4) == 0) return told(cudaErrorInvalidKernelImage);
  auto binary = std::make_unique<Binary>(code);
  try {
    binary->module();
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "emulated GPU: a library: %s\n", error.what());
    return told(cudaErrorInvalidKernelImage);
  }
  *library = reinterpret_cast<cudaLibrary_t>(binary.release());
  return cudaSuccess;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t library, const char* name) {
  auto* binary = reinterpret_cast<Binary*>(library);
  if (!has_kernel(binary->module(), name)) return told(cudaErrorSymbolNotFound);
  Program& all = program();
  const std::lock_guard lock(all.mutex);
  std::unique_ptr<CUkern_st>& known = all.library_kernels[{binary, name}];
  if (known == nullptr) known = made_kernel(binary, name);
  *kernel = known.get();
  return cudaSuccess;
}

// Handles of its kernels may be held still.
cudaError_t cudaLibraryUnload(cudaLibrary_t) { return cudaSuccess; }

}  // extern "C"
