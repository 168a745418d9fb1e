// Checksums: XXH3 (64 bits) for our own files, CRC-32C where a foreign format asks for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace ridge {

/// XXH3 with 64 bits and seed 0, as `xxhsum -H3` prints it.
std::uint64_t xxh3_64(std::span<const std::byte> bytes);

/// The same of a whole file, mapped; UserError when it cannot be read.
std::uint64_t xxh3_64_of_file(const std::string& path);

/// XXH3 of bytes that come in pieces.
class Xxh3 {
 public:
  Xxh3();
  Xxh3(Xxh3&&) noexcept;
  Xxh3& operator=(Xxh3&&) noexcept;
  ~Xxh3();
  void update(std::span<const std::byte> bytes);
  std::uint64_t digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// 16 hexadecimal digits.
std::string checksum_text(std::uint64_t checksum);

/// CRC-32C (Castagnoli, RFC 3720).
std::uint32_t crc32c(std::span<const std::byte> bytes);

}  // namespace ridge
