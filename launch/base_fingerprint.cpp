#include "launch/base_fingerprint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <vector>

#include "core/base/error.h"
#include "core/io/checksum.h"
#include "core/io/file.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxConfigBytes = std::size_t{64} << 20;
constexpr std::size_t kMaxHeaderBytes = std::size_t{1} << 20;  // of a header that is sampled whole
constexpr std::size_t kSamples = 64, kSampleBytes = 4096;

void add(Xxh3& hash, std::string_view text) { hash.update(std::as_bytes(std::span(text))); }

void add_file(Xxh3& hash, const fs::path& path) {
  const MappedFile file = MappedFile::open(path.string());
  const std::span<const std::byte> bytes = file.bytes();
  add(hash, fmt::format("{} {}\n", path.filename().string(), bytes.size()));
  std::uint64_t header = 0;
  if (bytes.size() >= sizeof header) std::memcpy(&header, bytes.data(), sizeof header);
  const std::size_t begin = std::min<std::size_t>({bytes.size(), kMaxHeaderBytes, header});
  hash.update(bytes.first(begin));
  const std::span<const std::byte> rest = bytes.subspan(begin);
  if (rest.size() <= kSamples * kSampleBytes) return hash.update(rest);
  const std::size_t last = rest.size() - kSampleBytes;
  for (std::size_t i = 0; i < kSamples; ++i)
    hash.update(rest.subspan(last / (kSamples - 1) * i, kSampleBytes));
}

}  // namespace

std::string base_fingerprint(const std::string& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  require(!error, "{}: the folder cannot be read: {}", folder, error.message());
  std::ranges::sort(files);
  Xxh3 hash;
  add(hash, read_text_file(folder + "/config.json", kMaxConfigBytes));
  for (const fs::path& file : files) add_file(hash, file);
  return checksum_text(hash.digest());
}

}  // namespace ridge
