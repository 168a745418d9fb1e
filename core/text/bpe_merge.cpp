// The merge loop: always the pair of lowest rank, the leftmost of equals.
#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <queue>

#include "core/base/error.h"
#include "core/text/bpe.h"

namespace ridge {
namespace {

constexpr std::size_t kShort = 48;  // symbols; up to here a scan beats a heap
constexpr std::uint32_t kNoRank = std::numeric_limits<std::uint32_t>::max();

}  // namespace

void Bpe::merge(std::vector<std::int32_t>& symbols) const {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kShort) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
}

void Bpe::merge_short(std::vector<std::int32_t>& symbols) const {
  std::array<std::uint32_t, kShort> ranks;  // of the pair (i, i+1)
  std::array<std::int32_t, kShort> results;
  std::size_t count = symbols.size();
  const auto look_up = [&](std::size_t i) {
    const Step* found = i + 1 < count ? step(symbols[i], symbols[i + 1]) : nullptr;
    ranks[i] = found ? found->rank : kNoRank;
    results[i] = found ? found->result : Vocabulary::kNone;
  };
  for (std::size_t i = 0; i < count; ++i) look_up(i);
  while (count > 1) {
    const auto best = static_cast<std::size_t>(
        std::min_element(ranks.begin(), ranks.begin() + static_cast<std::ptrdiff_t>(count - 1)) -
        ranks.begin());
    if (ranks[best] == kNoRank) break;
    symbols[best] = results[best];
    for (std::size_t i = best + 1; i + 1 < count; ++i) {
      symbols[i] = symbols[i + 1];
      ranks[i] = ranks[i + 1];
      results[i] = results[i + 1];
    }
    --count;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  symbols.resize(count);
}

// Heap of (rank, position); an entry whose pair has changed since is dropped when it comes up.
void Bpe::merge_long(std::vector<std::int32_t>& symbols) const {
  require(symbols.size() < std::numeric_limits<std::int32_t>::max(),
          "a piece of {} symbols is too long; cut the text", symbols.size());
  constexpr std::int32_t kGone = -2, kEnd = -1;
  const auto count = static_cast<std::int32_t>(symbols.size());
  std::vector<std::int32_t> next(symbols.size()), previous(symbols.size());
  const auto at = [](auto& list, std::int32_t i) -> auto& { return list[static_cast<std::size_t>(i)]; };

  std::vector<std::uint64_t> entries;
  for (std::int32_t i = 0; i < count; ++i) {
    at(previous, i) = i - 1;
    at(next, i) = i + 1 < count ? i + 1 : kEnd;
    const Step* found = i + 1 < count ? step(at(symbols, i), at(symbols, i + 1)) : nullptr;
    if (found) entries.push_back(pack_pair(found->rank, static_cast<std::uint32_t>(i)));
  }
  std::priority_queue<std::uint64_t, std::vector<std::uint64_t>, std::greater<>> queue({},
                                                                                       std::move(entries));
  const auto push = [&](std::int32_t i) {
    if (i == kEnd || at(next, i) == kEnd) return;
    const Step* found = step(at(symbols, i), at(symbols, at(next, i)));
    if (found) queue.push(pack_pair(found->rank, static_cast<std::uint32_t>(i)));
  };

  while (!queue.empty()) {
    const std::uint64_t entry = queue.top();
    queue.pop();
    const auto left = static_cast<std::int32_t>(entry & 0xFFFFFFFFu);
    const std::int32_t right = at(next, left);
    if (right == kGone || right == kEnd) continue;
    const Step* found = step(at(symbols, left), at(symbols, right));
    if (!found || found->rank != entry >> 32) continue;
    at(symbols, left) = found->result;
    at(next, left) = at(next, right);
    if (at(next, left) != kEnd) at(previous, at(next, left)) = left;
    at(next, right) = kGone;
    push(at(previous, left));
    push(left);
  }
  std::size_t kept = 0;
  for (std::int32_t i = 0; i != kEnd; i = at(next, i)) symbols[kept++] = at(symbols, i);
  symbols.resize(kept);
}

}  // namespace ridge
