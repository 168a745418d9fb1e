// Any bytes either parse into a manifest whose boxes lie within their tensors and files, or give a UserError
// of one line.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "core/base/error.h"
#include "core/io/checksum.h"
#include "core/io/slab.h"
#include "launch/checkpoint_manifest.h"

namespace {

void expect(bool ok) {
  if (!ok) std::abort();
}

void check_manifest(const ridge::CheckpointManifest& manifest) {
  for (const ridge::StoredFile& file : manifest.files) expect(file.name.find('/') == std::string::npos);
  for (const ridge::StoredTensor& tensor : manifest.tensors) {
    expect(manifest.find(tensor.name) == &tensor);
    expect(ridge::element_count(tensor.dims).has_value());
    for (const ridge::StoredBox& stored : tensor.boxes) {
      expect(ridge::box_is_within(stored.box.offset, stored.box.extent, tensor.dims));
      const std::int64_t bytes = ridge::bytes_of(tensor, stored.box);
      const std::uint64_t room = manifest.files.at(static_cast<std::size_t>(stored.file)).bytes;
      expect(bytes > 0 && stored.position <= room &&
             static_cast<std::uint64_t>(bytes) <= room - stored.position);
      expect(static_cast<std::int64_t>(stored.checksums.size()) == ridge::chunk_count(bytes));
    }
  }
  // What is written again reads the same.
  const std::string text = ridge::manifest_text(manifest);
  expect(ridge::manifest_text(ridge::parse_manifest(text, "fuzz")) == text);
}

void try_parse(const std::string& text) {
  try {
    check_manifest(ridge::parse_manifest(text, "fuzz"));
  } catch (const ridge::UserError& error) {
    expect(std::string(error.what()).find('\n') == std::string::npos);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try_parse(text);
  // The same with its last line made right, so that the fuzzer need not find a checksum.
  const std::string body =
      text.substr(0, text.rfind("end ") == std::string::npos ? size : text.rfind("end "));
  const std::uint64_t checksum = ridge::xxh3_64(std::as_bytes(std::span(body)));
  try_parse(body + "end " + ridge::checksum_text(checksum) + "\n");
  return 0;
}
