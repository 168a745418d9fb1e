#include "launch/context.h"

#include <cstdio>
#include <filesystem>

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/io/file.h"
#include "kernels/matmul_tuning.h"
#include "launch/environment.h"

namespace ridge {
namespace {

constexpr std::size_t kMostChoices = std::size_t{16} << 20;  // bytes

}  // namespace

Device Context::use_device(const std::string& fallback) const {
  const std::string& name = device == "auto" ? fallback : device;
  Device chosen = parse_device(name);
  if (chosen == Device::cuda && name == "auto" &&
      static_cast<int>(cuda_devices().size()) < mpi_.local_size()) {
    note(fmt::format("{} rank(s) on this host share {} GPU(s): the CPU is used", mpi_.local_size(),
                     cuda_devices().size()));
    chosen = Device::cpu;
  }
  if (chosen != Device::cuda) return chosen;
  cuda::select_device(mpi_.local_rank());
  const std::string choices = matmul_choices_file();
  if (!choices.empty() && std::filesystem::exists(choices))
    kernels::set_matmul_choices(read_text_file(choices, kMostChoices), choices);
  return chosen;
}

void Context::emit(const JsonObject& object, const std::string& text) const {
  if (!is_root()) return;
  const std::string out = json ? object.dump() + "\n" : text;
  std::fwrite(out.data(), 1, out.size(), stdout);
  std::fflush(stdout);
}

void Context::note(const std::string& line) const {
  if (is_root()) std::fprintf(stderr, "%s\n", line.c_str());
}

}  // namespace ridge
