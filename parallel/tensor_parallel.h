// Tensor parallelism of the Llama family (Shoeybi et al., Megatron-LM, 2019) with sequence parallelism
// (Korthikanti et al., 2022): which parameters are cut, where, and how their gradients come together.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "core/models/llama.h"
#include "parallel/communicator.h"
#include "parallel/one_shot_reduce.h"
#include "parallel/peer_memory.h"
#include "parallel/placement.h"

namespace ridge::parallel {

struct TensorParallelOptions {
  bool sequence_parallel = false;              // norms and residuals on pieces of the sequence
  int chunks = 1;                              // above 1: products and collectives overlap in so many stages
  std::shared_ptr<PeerGroup> peers = nullptr;  // of tp; with chunks: copy engines carry pieces of a sequence
  std::shared_ptr<OneShotReduce> one_shot = nullptr;  // of tp; sums what it takes, such as a decoding step's
};

/// A UserError unless `tp` ranks can share such a model, with the nearest number that can: query heads and
/// are multiples of tp, the MLP at least as wide, key-value heads a multiple of it or a divisor; under
/// sequence parallelism so is the length of a sequence on one rank of the other axes.
void check_tensor_parallel(const models::ModelConfig& config, int tp, bool sequence_parallel,
                           std::int64_t sequence_length);

/// Puts this rank's pieces in place of the layers of a model that was built on meta, and says where every
/// parameter of it lies; those of units that were dropped are left out. `tp` must outlive the model,
/// and so must the groups of ranks of `options`; all ranks give such a model up together.
/// Key-value heads that are fewer than ranks have tp / kv_heads copies each, whose gradients are parts of a
/// sum. The vocabulary is cut in pieces of ceil(V / tp) ids, the last ones shorter, or empty. Under sequence
/// parallelism norms and biases after a sum have partial gradients.
std::map<std::string, Placement> apply_tensor_parallel(models::Llama& model, Communicator& tp,
                                                       TensorParallelOptions options);

/// Turns sequence parallelism of such a model off, for sequences that cannot be cut, or on again: between
/// passes, on all ranks.
void set_sequence_parallel(models::Llama& model, bool on);

/// Of the adapter of a linear layer whose weight lies so: lora_A [rank, in] is whole where rows of the weight
/// are cut and cut where columns are; lora_B [out, rank] the other way round. The gradient of the whole one
/// is the sum of the ranks'.
Placement adapter_placement(const Placement& linear_weight, bool is_a, int tp, int tp_rank);

}  // namespace ridge::parallel
