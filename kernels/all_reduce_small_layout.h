// Where ranks meet in memory to add up a few values, and when what one has put there may be read or replaced:
// the same on every device.
//
// Each rank has a region that all ranks see. It is cut into channels that know nothing of each other; a block
// of the kernel is one. In its n-th use a channel puts the rank's values into slot n % 2 of the rank's own
// region, sets the rank's flag in every other rank's region to n, waits until all flags in its own region are
// n, and reads all ranks' slots. Counts wrap around.
//
// Two slots are enough: use n + 2 replaces what use n has put there, and comes after this rank has seen every
// rank's n + 1, which a rank says in its use n + 1, after all that it has read in its use n.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ridge::kernels::small_sum {

inline constexpr int kMostRanks = 8;
inline constexpr int kChannels = 32;       // few enough for all to run at once on any GPU
inline constexpr int kThreads = 256;       // of a channel
inline constexpr std::int64_t kPack = 16;  // bytes that move as one
inline constexpr std::int64_t kLine = 32;  // words: channels share no 128 bytes

constexpr std::int64_t packs_of(std::int64_t bytes) { return (bytes + kPack - 1) / kPack; }

/// Whether a rank has come to use `use`: it may be one ahead.
constexpr bool has_come(std::uint32_t flag, std::uint32_t use) {
  return static_cast<std::int32_t>(flag - use) >= 0;
}

/// How values are cut: `each` packs for each channel, the last ones fewer or none.
struct Cut {
  std::int64_t packs = 0;
  int channels = 1;
  std::int64_t each = 0;

  static constexpr Cut of(std::int64_t packs) {
    const auto blocks = std::clamp<std::int64_t>((packs + kThreads - 1) / kThreads, 1, kChannels);
    return {packs, static_cast<int>(blocks), (packs + blocks - 1) / blocks};
  }
  constexpr std::int64_t begin(int channel) const { return std::min(packs, channel * each); }
  constexpr std::int64_t count(int channel) const { return begin(channel + 1) - begin(channel); }
};

/// Of a region: flags [channel, rank], counts of uses [channel], slots [2, channel, slot_packs].
struct Layout {
  std::int64_t slot_packs = 0;

  /// For sums of up to so many bytes: a sum may have fewer bytes and yet more in each of fewer channels.
  static constexpr Layout of(std::int64_t bytes) {
    const std::int64_t packs = packs_of(bytes);
    return {std::max(Cut::of(packs).each, std::min<std::int64_t>(packs, kThreads))};
  }
  static constexpr std::int64_t flag_word(int channel, int rank) { return channel * kLine + rank; }
  static constexpr std::int64_t use_word(int channel) { return (kChannels + channel) * kLine; }
  constexpr std::int64_t slot_byte(int channel, std::uint32_t use) const {
    const std::int64_t slot = static_cast<std::int64_t>(use % 2) * kChannels + channel;
    return 2 * kChannels * kLine * 4 + slot * slot_packs * kPack;
  }
  /// All of it.
  constexpr std::int64_t bytes() const { return slot_byte(kChannels, 1); }
};

}  // namespace ridge::kernels::small_sum
