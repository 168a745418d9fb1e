#include "core/base/error.h"
#include "parallel/ring_attention.h"

namespace ridge::parallel {
namespace {

// Half `half` of what a rank holds is this chunk of the sequence.
std::int64_t chunk_of(int ranks, int rank, int half) { return half == 0 ? rank : 2 * ranks - 1 - rank; }

kernels::AttentionOptions masked(kernels::AttentionOptions options, std::int64_t q_offset) {
  options.q_offset = q_offset;
  return options;
}

kernels::AttentionOptions unmasked(kernels::AttentionOptions options) {
  options.causal = false;
  options.window = 0;
  options.q_offset = 0;
  return options;
}

// Half against half: a window may show all, some or none of an earlier chunk.
std::vector<RingBlock> windowed_blocks(std::int64_t half, int ranks, int rank, int owner,
                                       const kernels::AttentionOptions& options) {
  std::vector<RingBlock> blocks;
  for (int q = 0; q < 2; ++q) {
    for (int k = 0; k < 2; ++k) {
      const std::int64_t distance = (chunk_of(ranks, rank, q) - chunk_of(ranks, owner, k)) * half;
      if (distance < 0 || distance - (half - 1) >= options.window) continue;
      const bool all = distance > 0 && distance + half - 1 < options.window;
      blocks.push_back({q * half, (q + 1) * half, k * half, (k + 1) * half,
                        all ? unmasked(options) : masked(options, distance)});
    }
  }
  return blocks;
}

}  // namespace

std::vector<RingBlock> ring_blocks(std::int64_t tokens, int ranks, int rank, int owner,
                                   const kernels::AttentionOptions& options) {
  check(tokens % 2 == 0 && options.causal, "causal attention over two chunks a rank");
  const std::int64_t half = tokens / 2;
  if (options.window > 0 && options.window < tokens * ranks)
    return windowed_blocks(half, ranks, rank, owner, options);
  kernels::AttentionOptions whole = options;
  whole.window = 0;
  if (owner == rank) return {{0, tokens, 0, tokens, masked(whole, 0)}};
  // The early chunk of an earlier rank is before both of ours, both of a later one before our late one.
  if (owner < rank) return {{0, tokens, 0, half, unmasked(whole)}};
  return {{half, tokens, 0, tokens, unmasked(whole)}};
}

}  // namespace ridge::parallel
