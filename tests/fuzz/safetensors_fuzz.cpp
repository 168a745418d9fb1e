// Any bytes either parse into a file whose tensors lie within them, or give a UserError of one line.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <span>
#include <string>

#include "core/base/error.h"
#include "core/io/safetensors.h"
#include "core/io/weight_index.h"

namespace {

void expect(bool ok) {
  if (!ok) std::abort();
}

void check_entries(const ridge::SafetensorsFile& file, std::span<const std::byte> bytes) {
  std::size_t total = 0;
  for (const ridge::TensorEntry& entry : file.entries()) {
    expect(entry.data.data() >= bytes.data() &&
           entry.data.data() + entry.data.size() <= bytes.data() + bytes.size());
    expect(&file.at(entry.name) == &entry);
    total += entry.data.size();
    if (const auto type = entry.type()) {
      const std::int64_t count =
          std::accumulate(entry.shape.begin(), entry.shape.end(), std::int64_t{1}, std::multiplies<>());
      expect(static_cast<std::size_t>(count) * ridge::size_of(*type) == entry.data.size());
    }
  }
  expect(total <= bytes.size());
}

template <class F>
void allow_user_error(F f) {
  try {
    f();
  } catch (const ridge::UserError& error) {
    expect(std::string(error.what()).find('\n') == std::string::npos);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  allow_user_error([&] { check_entries(ridge::SafetensorsFile::parse(bytes, "fuzz"), bytes); });
  // The same header with its length made right, so that the fuzzer need not find it; the rest is data.
  const std::size_t header =
      size == 0 ? 0 : std::string_view(reinterpret_cast<const char*>(data), size).rfind('}') + 1;
  const std::uint64_t length = header;
  std::string framed(reinterpret_cast<const char*>(&length), sizeof(length));
  framed.append(reinterpret_cast<const char*>(data), size);
  const auto framed_bytes = std::as_bytes(std::span(framed));
  allow_user_error([&] { check_entries(ridge::SafetensorsFile::parse(framed_bytes, "fuzz"), framed_bytes); });
  allow_user_error([&] { ridge::parse_weight_index({reinterpret_cast<const char*>(data), size}, "fuzz"); });
  return 0;
}
