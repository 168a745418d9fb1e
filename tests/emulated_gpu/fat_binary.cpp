#include "tests/emulated_gpu/fat_binary.h"

#include <fatbinary_section.h>
#include <zstd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>

namespace ridge::emulated {
namespace {

constexpr std::uint32_t kMagic = 0xBA55ED50;
constexpr std::uint16_t kPtx = 1;
constexpr std::uint64_t kLz4 = 0x2000, kZstd = 0x8000;  // flags of an entry
constexpr std::uint32_t kArchitecture = 90;

struct Header {
  std::uint32_t magic;
  std::uint16_t version, header_bytes;
  std::uint64_t bytes;  // of the entries behind it
};
static_assert(sizeof(Header) == 16);

// Not documented; offsets as found in what nvcc 13.0 writes.
struct Entry {
  std::uint16_t kind, version;
  std::uint32_t header_bytes;
  std::uint64_t padded_bytes;
  std::uint32_t compressed_bytes, options_at, isa, architecture, bits, name_at;
  std::uint64_t flags, reserved;
  std::uint64_t plain_bytes;  // 0: not compressed
};
static_assert(sizeof(Entry) == 64);

// A length's further bytes in the LZ4 block format: 255 means that more follow.
std::size_t longer(const std::uint8_t*& from, const std::uint8_t* end, std::size_t length) {
  if (length != 15) return length;
  std::uint8_t byte = 255;
  while (byte == 255 && from < end) length += byte = *from++;
  return length;
}

std::string from_lz4(const std::uint8_t* from, std::size_t bytes, std::size_t plain_bytes) {
  const std::uint8_t* const end = from + bytes;
  std::string text;
  text.reserve(plain_bytes);
  while (from < end) {
    const std::uint8_t token = *from++;
    const std::size_t literals = longer(from, end, token >> 4);
    if (literals > static_cast<std::size_t>(end - from))
      throw std::runtime_error("fat binary: bad LZ4 block");
    text.append(reinterpret_cast<const char*>(from), literals);
    from += literals;
    if (end - from < 2) break;
    const std::size_t back = from[0] | from[1] << 8;
    from += 2;
    const std::size_t length = longer(from, end, token & 15) + 4;
    if (back == 0 || back > text.size()) throw std::runtime_error("fat binary: bad LZ4 block");
    for (std::size_t i = 0; i < length; ++i) text.push_back(text[text.size() - back]);
  }
  return text;
}

std::string from_zstd(const std::uint8_t* from, std::size_t bytes, std::size_t plain_bytes) {
  std::string text(plain_bytes, '\0');
  const std::size_t got = ZSTD_decompress(text.data(), text.size(), from, bytes);
  if (ZSTD_isError(got) != 0)
    throw std::runtime_error(std::string("fat binary: zstd: ") + ZSTD_getErrorName(got));
  text.resize(got);
  return text;
}

std::string text_of(const Entry& entry, const std::uint8_t* payload) {
  std::string text;
  if ((entry.flags & kZstd) != 0) {
    text = from_zstd(payload, entry.compressed_bytes, entry.plain_bytes);
  } else if ((entry.flags & kLz4) != 0) {
    text = from_lz4(payload, entry.compressed_bytes, entry.plain_bytes);
  } else {
    text.assign(reinterpret_cast<const char*>(payload), entry.padded_bytes);
  }
  if (text.find(".version") == std::string::npos)
    throw std::runtime_error(
        "fat binary: its PTX is compressed in a way not known here: build with nvcc --no-compress");
  return text.substr(0, text.find('\0'));
}

template <class T>
T read(const std::uint8_t* at) {
  T value{};
  std::memcpy(&value, at, sizeof(T));
  return value;
}

}  // namespace

std::string ptx_of(const void* image) {
  const auto* at = static_cast<const std::uint8_t*>(image);
  if (read<std::uint32_t>(at) == FATBINC_MAGIC)
    at = reinterpret_cast<const std::uint8_t*>(read<__fatBinC_Wrapper_t>(at).data);
  if (read<std::uint32_t>(at) != kMagic) {
    const std::string text(reinterpret_cast<const char*>(at));
    if (text.find(".version") != std::string::npos) return text;
    throw std::runtime_error("this is neither a fat binary nor PTX");
  }
  const auto header = read<Header>(at);
  const std::uint8_t* const end = at + header.header_bytes + header.bytes;
  std::uint32_t best = 0;
  std::optional<std::string> text;
  for (at += header.header_bytes; at < end;) {
    // Headers of what is not compressed may end before plain_bytes.
    const auto entry = read<Entry>(at);
    const std::uint8_t* const payload = at + entry.header_bytes;
    if (entry.kind == kPtx && entry.architecture <= kArchitecture && entry.architecture >= best) {
      best = entry.architecture;
      text = text_of(entry, payload);
    }
    at = payload + entry.padded_bytes;
  }
  if (!text) throw std::runtime_error("fat binary: no PTX for sm_90: build for code=[compute_90a,sm_90a]");
  return *text;
}

}  // namespace ridge::emulated
