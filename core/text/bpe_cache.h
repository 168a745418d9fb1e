// Remembers the ids of short pieces within one encoding.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ridge {

/// Bounded: starts anew after kMostPieces pieces. Not for several threads.
class PieceCache {
 public:
  static constexpr std::size_t kMostPieceBytes = 64;

  /// Appends the ids of a known piece; false where it is unknown.
  bool append(std::string_view piece, std::vector<std::int32_t>& ids);
  /// Adds the piece that `append` just missed.
  void add(std::string_view piece, std::span<const std::int32_t> ids);

 private:
  static constexpr std::size_t kMostPieces = std::size_t{1} << 17;
  struct Slot {
    std::uint32_t hash = 0;
    std::uint32_t piece = 0;  // offset in pieces_
    std::uint32_t ids = 0;    // offset in ids_
    std::uint16_t piece_bytes = 0;
    std::uint16_t id_count = 0;  // 0: a free slot, or a piece without ids, which is not kept
  };

  void grow();
  Slot* find(std::string_view piece, std::uint64_t hash);

  std::vector<Slot> slots_;
  std::string pieces_;
  std::vector<std::int32_t> ids_;
  std::size_t size_ = 0;
};

}  // namespace ridge
