// How attention over a cache is cut along the keys: from positions and heads alone, so that no sequence
// depends on another, nor on the device's size. 32 bits: a GPU divides them several times as fast.
#pragma once

#include <cstdint>

namespace ridge::kernels::cached_detail {

inline constexpr std::int32_t kMostKeys = 1 << 28;  // of a cache

inline constexpr std::int32_t kWholeKeys = 16;  // parts are of a multiple of these

/// At most `most` parts of at least `least` keys.
struct CutRule {
  std::int32_t most, least;
};

inline constexpr CutRule kCpuCut{16, 256};

inline constexpr std::int32_t kGpuUnits = 264;         // two blocks on each of an H200's multiprocessors
inline constexpr std::int32_t kGpuRows = 16;           // query rows of a key-value head that a block takes
inline constexpr std::int32_t kGpuWideRows = 64;       // the same where a sequence has as many and more
inline constexpr std::int32_t kGpuCounters = 1 << 16;  // at the head of the scratch
/// A GPU's parts where a sequence has `blocks` blocks of rows, of all key-value heads together.
constexpr CutRule gpu_cut(std::int32_t blocks) { return {blocks < kGpuUnits ? kGpuUnits / blocks : 1, 64}; }

/// Parts of the keys [begin, end).
struct KeyCut {
  std::int32_t begin = 0, end = 0, part_keys = 1, parts = 0;

  constexpr KeyCut(std::int32_t from, std::int32_t to, CutRule rule) : begin(from), end(to) {
    const std::int32_t n = end - begin;
    if (n <= 0) return;
    const std::int32_t even = (n + rule.most - 1) / rule.most,
                       whole = (even + kWholeKeys - 1) / kWholeKeys * kWholeKeys;
    part_keys = whole > rule.least ? whole : rule.least;
    parts = (n + part_keys - 1) / part_keys;
  }
  constexpr std::int32_t part_begin(std::int32_t part) const { return begin + part * part_keys; }
  constexpr std::int32_t part_end(std::int32_t part) const {
    const std::int32_t to = part_begin(part) + part_keys;
    return to < end ? to : end;
  }
};

/// The first key that a query at `position` sees.
template <class I>
constexpr I first_key(I position, I window) {
  return window > 0 && window <= position ? position + 1 - window : 0;
}

/// The greatest number of parts of up to `keys` keys.
constexpr std::int32_t parts_below(std::int32_t keys, CutRule rule) {
  const std::int32_t least = (keys + rule.least - 1) / rule.least;
  return least < 1 ? 1 : (least < rule.most ? least : rule.most);
}

}  // namespace ridge::kernels::cached_detail
