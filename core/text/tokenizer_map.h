// Open-addressing tables of the tokenizer: 64-bit keys, and strings.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ridge {

inline std::uint64_t pack_pair(std::uint32_t left, std::uint32_t right) {
  return static_cast<std::uint64_t>(left) << 32 | right;
}

/// Map of 64-bit keys with linear probing; the key ~0 is reserved.
template <class Value>
class PairMap {
 public:
  explicit PairMap(std::size_t expected = 0) : slots_(std::bit_ceil(expected * 2 + 2)) {}

  const Value* find(std::uint64_t key) const {
    for (std::size_t i = home(key);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].key == key) return &slots_[i].value;
      if (slots_[i].key == kFree) return nullptr;
    }
  }

  /// The last value given for a key stands.
  void assign(std::uint64_t key, const Value& value) {
    if ((size_ + 1) * 2 > slots_.size()) grow();
    Slot& slot = slot_for(key);
    if (slot.key == kFree) ++size_;
    slot = {key, value};
  }

  std::size_t size() const { return size_; }

 private:
  static constexpr std::uint64_t kFree = ~0ull;
  struct Slot {
    std::uint64_t key = kFree;
    Value value{};
  };

  // Fibonacci hashing of the folded key.
  std::size_t home(std::uint64_t key) const {
    return ((key ^ (key >> 29)) * 0x9E3779B97F4A7C15ull >> 20) & (slots_.size() - 1);
  }

  Slot& slot_for(std::uint64_t key) {
    std::size_t i = home(key);
    while (slots_[i].key != key && slots_[i].key != kFree) i = (i + 1) & (slots_.size() - 1);
    return slots_[i];
  }

  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != kFree) slot_for(slot.key) = slot;
    }
  }

  std::vector<Slot> slots_;
  std::size_t size_ = 0;
};

std::uint64_t hash_bytes(std::string_view bytes);

/// Strings with the ids that a file gives them; ids may have holes.
class Vocabulary {
 public:
  static constexpr std::int32_t kNone = -1;

  /// `size` ids at most (0 .. size-1), `count` strings expected.
  Vocabulary(std::size_t size, std::size_t count);

  /// False where the id or the string is taken. The id lies below the `size` given.
  bool add(std::string_view token, std::int32_t id);

  std::int32_t find(std::string_view token) const;
  bool contains(std::int32_t id) const;
  std::string_view token(std::int32_t id) const;
  std::size_t size() const { return spans_.size(); }
  std::size_t count() const { return count_; }

 private:
  struct Span {
    std::size_t offset = 0;
    std::size_t bytes = kAbsent;
  };
  struct Slot {
    std::uint32_t hash = 0;
    std::int32_t id = kNone;
  };
  static constexpr std::size_t kAbsent = ~std::size_t{0};

  std::string bytes_;
  std::vector<Span> spans_;  // [size]
  std::vector<Slot> slots_;
  std::size_t count_ = 0;
};

}  // namespace ridge
