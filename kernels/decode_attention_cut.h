// How the keys of a new token are cut into parts: from their number and the model's heads alone, so that no
// sequence depends on another, nor on what a GPU's grid was recorded for.
#pragma once

#include "kernels/cached_attention_cut.h"

namespace ridge::kernels::decode_detail {

inline constexpr std::int32_t kClusterParts = 8;  // of few keys
inline constexpr std::int32_t kPartWarps = 4;
inline constexpr std::int32_t kMostParts = 64;  // of many, in whole eights
inline constexpr std::int32_t kMostShare = 8;   // query heads a key-value head

/// Up to so many keys are few: a cluster of blocks reads them as fast as all blocks do.
constexpr std::int32_t few_keys(std::int32_t groups) {
  const std::int32_t n = 256 * groups;
  return n < 1024 ? 1024 : (n < 2048 ? n : 2048);
}
constexpr std::int32_t most_parts(std::int32_t groups) {
  const std::int32_t n = cached_detail::kGpuUnits / groups / 8 * 8;
  return n < kClusterParts ? kClusterParts : (n < kMostParts ? n : kMostParts);
}

struct DecodeCut : cached_detail::KeyCut {
  constexpr DecodeCut(std::int32_t from, std::int32_t to, std::int32_t groups)
      : KeyCut(
            from, to,
            {to - from <= few_keys(groups) ? kClusterParts : most_parts(groups), cached_detail::kWholeKeys}) {
  }
};

}  // namespace ridge::kernels::decode_detail
