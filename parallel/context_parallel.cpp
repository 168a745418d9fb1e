#include "parallel/context_parallel.h"

#include "parallel/ring_attention.h"
#include "parallel/ulysses_attention.h"

namespace ridge::parallel {
namespace {

template <ContextKind kKind>
class ContextAttention final : public nn::SelfAttention {
 public:
  explicit ContextAttention(Communicator& ranks) : ranks_(&ranks) {}
  std::int64_t positions(std::int64_t tokens) const override { return tokens * ranks_->size(); }
  Tensor forward(const Tensor& qkv, const ops::HeadCounts& heads, const nn::RotaryTable::Tables& tables,
                 const kernels::AttentionOptions& options) const override {
    if constexpr (kKind == ContextKind::ring) {
      return ring_attention(*ranks_, qkv, heads, tables.cos, tables.sin, options);
    } else {
      return ulysses_attention(*ranks_, qkv, heads, tables.cos, tables.sin, options);
    }
  }

 private:
  Communicator* ranks_;
};

}  // namespace

void check_context(std::int64_t tokens, int cp) {
  require(cp >= 1, "parallel.cp is {}: it must be at least 1", cp);
  require(cp == 1 || (tokens > 0 && tokens % (2 * cp) == 0),
          "a sequence of {} tokens cannot be cut into 2 x {} equal chunks for {} context-parallel ranks: "
          "choose a sequence length that is a multiple of {}",
          tokens, cp, cp, 2 * cp);
}

std::vector<std::pair<std::int64_t, std::int64_t>> zigzag_ranges(std::int64_t tokens, int cp, int rank) {
  check_context(tokens, cp);
  check(rank >= 0 && rank < cp, "a rank of the context-parallel group");
  if (cp == 1) return {{0, tokens}};
  const std::int64_t chunk = tokens / (2 * cp), late = 2 * cp - 1 - rank;
  return {{rank * chunk, (rank + 1) * chunk}, {late * chunk, (late + 1) * chunk}};
}

Tensor zigzag_part(const Tensor& ids_BT, int cp, int rank) {
  check(ids_BT.ndim() == 2, "ids or targets [B, T]");
  const auto ranges = zigzag_ranges(ids_BT.dim(1), cp, rank);
  if (ranges.size() == 1) return ids_BT.as_contiguous();
  const Tensor part = Tensor::empty({ids_BT.dim(0), ids_BT.dim(1) / cp}, ids_BT.dtype(), ids_BT.device());
  std::int64_t at = 0;
  for (const auto& [begin, end] : ranges) {
    part.sliced(1, at, at + end - begin).copy_from(ids_BT.sliced(1, begin, end));
    at += end - begin;
  }
  return part;
}

ContextKind parse_context_kind(std::string_view name) {
  if (name == "ring") return ContextKind::ring;
  if (name == "ulysses") return ContextKind::ulysses;
  fail_user("context parallelism '{}' is not known: ring or ulysses", name);
}

void check_context_heads(ContextKind kind, std::int64_t heads, std::int64_t kv_heads, int cp) {
  if (kind == ContextKind::ring) return;
  require(heads % cp == 0,
          "{} query heads cannot be divided among {} context-parallel ranks: choose a cp that divides {}, or "
          "ring attention",
          heads, cp, heads);
  require(kv_heads % cp == 0 || cp % kv_heads == 0,
          "{} key-value heads cannot be divided among {} context-parallel ranks, nor shared by them evenly: "
          "choose a cp that divides {} or is a multiple of it, or ring attention",
          kv_heads, cp, kv_heads);
}

std::shared_ptr<const nn::SelfAttention> context_attention(ContextKind kind, Communicator& ranks) {
  if (kind == ContextKind::ring) return std::make_shared<ContextAttention<ContextKind::ring>>(ranks);
  return std::make_shared<ContextAttention<ContextKind::ulysses>>(ranks);
}

}  // namespace ridge::parallel
