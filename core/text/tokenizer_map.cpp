#include "core/text/tokenizer_map.h"

#include <xxhash.h>

#include "core/base/error.h"

namespace ridge {

std::uint64_t hash_bytes(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

Vocabulary::Vocabulary(std::size_t size, std::size_t count)
    : spans_(size), slots_(std::bit_ceil(count * 2 + 2)) {}

bool Vocabulary::add(std::string_view token, std::int32_t id) {
  check((count_ + 1) * 2 <= slots_.size(), "more tokens than the vocabulary was made for");
  Span& span = spans_[static_cast<std::size_t>(id)];
  if (span.bytes != kAbsent || find(token) != kNone) return false;
  span = {bytes_.size(), token.size()};
  bytes_.append(token);
  const std::uint64_t hash = hash_bytes(token);
  std::size_t i = hash & (slots_.size() - 1);
  while (slots_[i].id != kNone) i = (i + 1) & (slots_.size() - 1);
  slots_[i] = {static_cast<std::uint32_t>(hash >> 32), id};
  ++count_;
  return true;
}

std::int32_t Vocabulary::find(std::string_view token) const {
  const std::uint64_t hash = hash_bytes(token);
  for (std::size_t i = hash & (slots_.size() - 1);; i = (i + 1) & (slots_.size() - 1)) {
    const Slot& slot = slots_[i];
    if (slot.id == kNone) return kNone;
    if (slot.hash == static_cast<std::uint32_t>(hash >> 32) && this->token(slot.id) == token) return slot.id;
  }
}

bool Vocabulary::contains(std::int32_t id) const {
  return id >= 0 && static_cast<std::size_t>(id) < spans_.size() &&
         spans_[static_cast<std::size_t>(id)].bytes != kAbsent;
}

std::string_view Vocabulary::token(std::int32_t id) const {
  const Span span = spans_[static_cast<std::size_t>(id)];
  return std::string_view(bytes_).substr(span.offset, span.bytes);
}

}  // namespace ridge
