#include "launch/context.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/io/file.h"
#include "kernels/matmul_tuning.h"
#include "launch/checkpoint_manifest.h"
#include "launch/environment.h"
#include "parallel/nccl_communicator.h"

namespace ridge {
namespace {

constexpr std::size_t kMostChoices = std::size_t{16} << 20;  // bytes

// What every rank says, at most kLetters - 1 of it.
template <std::size_t kLetters>
std::vector<std::string> gather_words(parallel::Communicator& ranks, const std::string& mine) {
  std::array<std::uint8_t, kLetters> word{};
  std::copy_n(mine.begin(), std::min(mine.size(), kLetters - 1), word.begin());
  std::vector<std::uint8_t> all(kLetters * static_cast<std::size_t>(ranks.size()));
  ranks.all_gather(std::span<const std::uint8_t>(word), std::span<std::uint8_t>(all));
  std::vector<std::string> words;
  for (std::size_t at = 0; at < all.size(); at += kLetters)
    words.emplace_back(reinterpret_cast<const char*>(all.data() + at));
  return words;
}

}  // namespace

void require_one_program(parallel::Communicator& ranks, const std::string& mine) {
  const std::vector<std::string> versions = gather_words<64>(ranks, mine);
  const auto other = std::ranges::find_if(versions, [&](const auto& v) { return v != versions.front(); });
  if (other == versions.end()) return;
  fail_user("rank 0 runs ridge {} and rank {} runs ridge {}: start all of them with the same program",
            versions.front(), other - versions.begin(), *other);
}

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
  require_one_program(ranks(), program_version());
  const std::string gpu = device == Device::cuda ? fmt::format(", GPU {}", cuda::selected_device()) : "";
  const std::vector<std::string> places = gather_words<128>(ranks(), host_name() + gpu);
  for (std::size_t rank = 0; rank < places.size(); ++rank)
    note(fmt::format("rank {} on {}: {}", rank, places[rank], mesh.describe(static_cast<int>(rank))));
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
