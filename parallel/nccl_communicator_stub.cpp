// Stands for nccl_communicator_nccl.cpp in a build without CUDA.
#include "core/base/error.h"
#include "parallel/nccl_communicator.h"

namespace ridge::parallel {

std::unique_ptr<Communicator> nccl_communicator(Communicator&, std::chrono::milliseconds) {
  fail_user("this build has no NCCL: use --device cpu, or build with -DRIDGE_CUDA=ON");
}

}  // namespace ridge::parallel
