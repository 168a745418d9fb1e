#include "launch/environment.h"

#include <unistd.h>

#include <array>

#include <cstdlib>
#include <string>

#include "core/base/error.h"

namespace ridge {

bool launched_by_mpi() {
  // Open MPI; Slurm with PMIx or PMI-2 inside a step; MPICH's Hydra.
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

std::string matmul_choices_file() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != '\0')
    return std::string(cache) + "/ridge/matmul.txt";
  const char* home = std::getenv("HOME");
  return home == nullptr || *home == '\0' ? std::string() : std::string(home) + "/.cache/ridge/matmul.txt";
}

constexpr long kMostThreads = 4096;

std::optional<int> threads_from_environment() {
  const char* text = std::getenv("RIDGE_THREADS");
  if (text == nullptr) return std::nullopt;
  char* end = nullptr;
  const long threads = std::strtol(text, &end, 10);
  require(*text != '\0' && *end == '\0' && threads >= 1 && threads <= kMostThreads,
          "RIDGE_THREADS is '{}': give a number from 1 to {}", text, kMostThreads);
  return static_cast<int>(threads);
}

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "an unnamed host";
}

void prepare_cuda_environment() { ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); }

}  // namespace ridge
