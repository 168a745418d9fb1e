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
//
// Or, for the smallest sums, a rank puts its values into every other rank's region, at its own place in
// slot n % 2 of what is pushed there: 4 bytes beside 4 of a mark of the use, written and read as one. Who
// waits for values sees them with their mark: one trip between GPUs in place of two (the LL protocol of
// NCCL). A channel has a pack at least, so that it hears of every rank in every use, and the same two slots
// do.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ridge::kernels::small_sum {

inline constexpr int kMostRanks = 8;
inline constexpr int kChannels = 32;       // few enough for all to run at once on any GPU
inline constexpr int kThreads = 256;       // of a channel
inline constexpr std::int64_t kPack = 16;  // bytes that move as one
inline constexpr std::int64_t kLine = 32;  // words: channels share no 128 bytes

inline constexpr int kPushChannels = 16;            // of sums that are pushed, a pack a thread
inline constexpr std::int64_t kPushed = 2 * kPack;  // bytes of a pack with its marks

constexpr std::int64_t packs_of(std::int64_t bytes) { return (bytes + kPack - 1) / kPack; }

/// Whether a rank has come to use `use`: it may be one ahead.
constexpr bool has_come(std::uint32_t flag, std::uint32_t use) {
  return static_cast<std::int32_t>(flag - use) >= 0;
}

/// Whether so many packs are pushed: the same on all ranks.
constexpr bool is_pushed(std::int64_t packs) { return packs <= std::int64_t{kPushChannels} * kThreads; }
/// What values of a use are marked with. No mark is 0, as memory is that nobody has written to.
constexpr std::uint32_t mark_of(std::uint32_t use) { return 2 * use + 1; }

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

/// Of a region: flags [channel, rank], counts of uses [channel], slots [2, channel, slot_packs], what is
/// pushed [2, channel, rank, push_packs()].
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
  constexpr std::int64_t push_packs() const { return std::min<std::int64_t>(slot_packs, kThreads); }
  constexpr std::int64_t push_byte(int channel, std::uint32_t use, int rank) const {
    const std::int64_t place =
        (static_cast<std::int64_t>(use % 2) * kPushChannels + channel) * kMostRanks + rank;
    return slot_byte(kChannels, 1) + place * push_packs() * kPushed;
  }
  /// All of it.
  constexpr std::int64_t bytes() const { return push_byte(kPushChannels, 1, 0); }
};

}  // namespace ridge::kernels::small_sum
