// Context parallelism: the ranks of axis cp hold parts of the same sequences. A sequence is cut into 2 cp
// chunks, and rank r holds chunks r and 2 cp - 1 - r one behind the other, so that all ranks have the same
// number of visible pairs under a causal mask (Brandon et al., Striped Attention, 2023; Llama 3,
// 2024, 3.3.2).
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "core/nn/self_attention.h"
#include "parallel/communicator.h"

namespace ridge::parallel {

/// A UserError unless sequences of `tokens` can be cut for `cp` ranks.
void check_context(std::int64_t tokens, int cp);

/// The positions [first, end) of the chunks that a rank holds, in the order of its tokens.
std::vector<std::pair<std::int64_t, std::int64_t>> zigzag_ranges(std::int64_t tokens, int cp, int rank);

/// Of ids or targets [B, T], any dtype, what a rank holds: [B, T / cp], contiguous.
Tensor zigzag_part(const Tensor& ids_BT, int cp, int rank);

/// The rest of the sequence through the ring of ranks: any heads (Liu et al., 2023).
/// Or all of the sequence for a part of the heads: all-to-all (Jacobs et al., DeepSpeed Ulysses, 2023).
enum class ContextKind : std::uint8_t { ring, ulysses };
/// "ring" or "ulysses"; a UserError names them.
ContextKind parse_context_kind(std::string_view name);

/// A UserError unless `cp` ranks can have heads / cp query heads each, with whole key-value heads that belong
/// to them: kv_heads / cp, or one that cp / kv_heads ranks share. Ring attention asks for nothing.
void check_context_heads(ContextKind kind, std::int64_t heads, std::int64_t kv_heads, int cp);

/// Attention of a model whose tokens are zigzag parts over `ranks`, which must outlive it. Every rank calls
/// it, and its backward passes, in the same order.
std::shared_ptr<const nn::SelfAttention> context_attention(ContextKind kind, Communicator& ranks);

}  // namespace ridge::parallel
