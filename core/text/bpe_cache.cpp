#include "core/text/bpe_cache.h"

#include "core/text/tokenizer_map.h"

namespace ridge {

PieceCache::Slot* PieceCache::find(std::string_view piece, std::uint64_t hash) {
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t i = hash & mask;; i = (i + 1) & mask) {
    Slot& slot = slots_[i];
    if (slot.id_count == 0) return &slot;
    if (slot.hash == static_cast<std::uint32_t>(hash >> 32) && slot.piece_bytes == piece.size() &&
        std::string_view(pieces_.data() + slot.piece, slot.piece_bytes) == piece) {
      return &slot;
    }
  }
}

bool PieceCache::append(std::string_view piece, std::vector<std::int32_t>& ids) {
  if (slots_.empty()) return false;
  const Slot* slot = find(piece, hash_bytes(piece));
  if (slot->id_count == 0) return false;
  const auto begin = ids_.begin() + slot->ids;
  ids.insert(ids.end(), begin, begin + slot->id_count);
  return true;
}

void PieceCache::add(std::string_view piece, std::span<const std::int32_t> ids) {
  if (ids.empty() || ids.size() > 0xFFFF || piece.size() > kMostPieceBytes) return;
  if (size_ >= kMostPieces) *this = PieceCache();
  if ((size_ + 1) * 2 > slots_.size()) grow();
  const std::uint64_t hash = hash_bytes(piece);
  Slot* slot = find(piece, hash);
  if (slot->id_count == 0) ++size_;
  *slot = {static_cast<std::uint32_t>(hash >> 32), static_cast<std::uint32_t>(pieces_.size()),
           static_cast<std::uint32_t>(ids_.size()), static_cast<std::uint16_t>(piece.size()),
           static_cast<std::uint16_t>(ids.size())};
  pieces_.append(piece);
  ids_.insert(ids_.end(), ids.begin(), ids.end());
}

void PieceCache::grow() {
  std::vector<Slot> old(slots_.empty() ? 256 : slots_.size() * 2);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.id_count == 0) continue;
    const std::string_view piece(pieces_.data() + slot.piece, slot.piece_bytes);
    *find(piece, hash_bytes(piece)) = slot;
  }
}

}  // namespace ridge
