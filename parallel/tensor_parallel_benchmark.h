// How much of tensor parallelism's communication its products hide: a gated MLP, both passes.
#pragma once

#include <memory>

#include "core/base/dtype.h"
#include "parallel/overlapped_linear.h"

namespace ridge::parallel {

struct TensorParallelBenchmark {
  std::int64_t batch = 1;
  std::int64_t tokens = 8192;
  std::int64_t hidden = 4096;
  std::int64_t intermediate = 14336;  // of the whole MLP
  bool sequence_parallel = true;
  int chunks = 4;
  DType dtype = DType::bf16;
  Device device = Device::cuda;
  int repeats = 10;
  std::shared_ptr<PeerPieces> peers = nullptr;  // of the ranks: stages by copy engines
};

/// The slowest rank's mean seconds of a forward and backward pass.
struct TensorParallelTiming {
  double products = 0;    // one rank's share of the work without any communication
  double plain = 0;       // collectives whole; only the weights' gradients run beside one
  double overlapped = 0;  // in `chunks` stages
  double flops = 0;       // of one rank's pass
  int ranks = 1;

  double flops_per_s() const { return flops / overlapped; }
  /// The part of what plain collectives add that stages take away again.
  double hidden_share() const { return (plain - overlapped) / (plain - products); }
};

/// Every rank calls it. Random inputs; a few passes first, which are not timed. A UserError where `ranks`
/// cannot share the sizes.
TensorParallelTiming benchmark_tensor_parallel(Communicator& ranks, const TensorParallelBenchmark& benchmark);

}  // namespace ridge::parallel
