// Stands for peer_memory_cuda.cpp in a build without CUDA.
#include "parallel/peer_memory.h"

namespace ridge::parallel {

std::unique_ptr<PeerGroup> peer_group(Communicator&, std::string* why, std::chrono::milliseconds) {
  if (why != nullptr) *why = "this build has no CUDA";
  return nullptr;
}

}  // namespace ridge::parallel
