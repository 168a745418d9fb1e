// A GPU without a GPU: kernels run from the PTX that nvcc leaves in a program, one instruction of a warp
// after the other, as the PTX ISA says (docs.nvidia.com/cuda/parallel-thread-execution). Copies that are
// awaited come as late as they may, memory that nobody wrote is NaN.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ridge::emulated {

struct Size3 {
  unsigned x = 1, y = 1, z = 1;
  std::uint64_t count() const { return std::uint64_t{x} * y * z; }
};

struct Launch {
  Size3 grid, block, cluster;  // cluster {0, 0, 0}: as the kernel's source says, else one block
  unsigned shared_bytes = 0;   // dynamic
  void** arguments = nullptr;
};

class Module;

/// Of one translation unit; throws std::runtime_error. Kernels are parsed when they first run.
std::shared_ptr<Module> parse_module(std::string_view ptx);
bool has_kernel(const Module& module, const std::string& name);
unsigned static_shared_bytes(Module& module, const std::string& name);
/// Of each parameter, bytes.
std::vector<unsigned> parameter_sizes(Module& module, const std::string& name);
/// Returns when it is done; throws std::runtime_error with what is wrong.
void run_kernel(Module& module, const std::string& name, const Launch& launch);
/// Of a .global or .const variable.
void* address_of_variable(Module& module, const std::string& name);

}  // namespace ridge::emulated
