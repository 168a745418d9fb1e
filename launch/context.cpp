#include "launch/context.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/io/file.h"
#include "kernels/matmul_tuning.h"
#include "launch/environment.h"
#include "parallel/nccl_communicator.h"

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

std::unique_ptr<parallel::Groups> Context::groups(const parallel::Mesh& mesh, Device device) const {
  report_places(mesh, device);
  if (device != Device::cuda) return std::make_unique<parallel::Groups>(mesh, ranks());
  return std::make_unique<parallel::Groups>(
      mesh, ranks(), [](parallel::Communicator& host) { return parallel::nccl_communicator(host); });
}

// One line a rank: where it runs, and its coordinates.
void Context::report_places(const parallel::Mesh& mesh, Device device) const {
  if (ranks().size() == 1) return;
  constexpr std::size_t kLetters = 128;
  const std::string gpu = device == Device::cuda ? fmt::format(", GPU {}", cuda::selected_device()) : "";
  const std::string mine = fmt::format("{}{}", host_name(), gpu);
  std::array<std::uint8_t, kLetters> line{};
  std::copy_n(mine.begin(), std::min(mine.size(), kLetters - 1), line.begin());
  std::vector<std::uint8_t> all(kLetters * static_cast<std::size_t>(ranks().size()));
  ranks().all_gather(std::span<const std::uint8_t>(line), std::span<std::uint8_t>(all));
  for (int rank = 0; rank < ranks().size(); ++rank) {
    const auto* place = reinterpret_cast<const char*>(all.data() + kLetters * static_cast<std::size_t>(rank));
    note(fmt::format("rank {} on {}: {}", rank, place, mesh.describe(rank)));
  }
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
