// Philox words for a run of elements, many counters at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "core/base/random.h"

namespace ridge::kernels {

inline constexpr std::int64_t kPhiloxCounters = 256;
inline constexpr std::int64_t kPhiloxWords = 4 * kPhiloxCounters;

/// words[4c + k] = philox(key, counter + c)[k] for c in [0, count), count <= kPhiloxCounters: the rounds of
/// `philox` on scalars, since GCC does not vectorise a loop that holds an array.
inline void philox_block(RandomKey key, std::uint64_t counter, std::int64_t count, std::uint32_t* words) {
  std::uint32_t lane[4][kPhiloxCounters];
#pragma omp simd
  for (std::int64_t c = 0; c < count; ++c) {
    const std::uint64_t at = counter + static_cast<std::uint64_t>(c);
    std::uint64_t c0 = at & 0xFFFFFFFFu, c1 = at >> 32;
    std::uint64_t c2 = key.stream & 0xFFFFFFFFu, c3 = key.stream >> 32;
    std::uint64_t k0 = key.seed & 0xFFFFFFFFu, k1 = key.seed >> 32;
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = 0xD2511F53u * c0, p1 = 0xCD9E8D57u * c2;
      c0 = (p1 >> 32) ^ c1 ^ k0;
      c2 = (p0 >> 32) ^ c3 ^ k1;
      c1 = p1 & 0xFFFFFFFFu;
      c3 = p0 & 0xFFFFFFFFu;
      k0 = (k0 + 0x9E3779B9u) & 0xFFFFFFFFu;
      k1 = (k1 + 0xBB67AE85u) & 0xFFFFFFFFu;
    }
    lane[0][c] = static_cast<std::uint32_t>(c0);
    lane[1][c] = static_cast<std::uint32_t>(c1);
    lane[2][c] = static_cast<std::uint32_t>(c2);
    lane[3][c] = static_cast<std::uint32_t>(c3);
  }
  for (std::int64_t c = 0; c < count; ++c) {
    for (std::int64_t k = 0; k < 4; ++k) words[4 * c + k] = lane[k][c];
  }
}

/// Element i has word (first + i) of the stream. Calls `body(i, words, count)` over [begin, end).
template <class Body>
void for_random_words(RandomKey key, std::uint64_t first, std::int64_t begin, std::int64_t end,
                      const Body& body) {
  std::array<std::uint32_t, kPhiloxWords> words;
  while (begin < end) {
    const std::uint64_t word = first + static_cast<std::uint64_t>(begin);
    const auto skip = static_cast<std::int64_t>(word % 4);
    const std::int64_t count = std::min(end - begin, kPhiloxWords - skip);
    philox_block(key, word / 4, (skip + count + 3) / 4, words.data());
    body(begin, words.data() + skip, count);
    begin += count;
  }
}

}  // namespace ridge::kernels
