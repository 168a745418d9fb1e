// manifest.txt is read as untrusted text: its checksum speaks of accidents alone.
#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/base/error.h"
#include "core/base/shape.h"
#include "core/io/checksum.h"
#include "core/io/json_depth.h"
#include "core/io/quote.h"
#include "core/io/slab.h"
#include "launch/checkpoint_manifest.h"

namespace ridge {
namespace {

constexpr std::string_view kMagic = "ridge-checkpoint ";
constexpr std::string_view kEnd = "end ";

// The words of one line, one after another.
class Words {
 public:
  Words(std::string_view line, std::int64_t number, const std::string& source)
      : rest_(line), number_(number), source_(source) {}

  bool done() const { return rest_.empty(); }

  std::string_view word() {
    if (rest_.empty()) fail("it ends too early");
    const std::size_t end = std::min(rest_.find(' '), rest_.size());
    const std::string_view found = rest_.substr(0, end);
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    if (found.empty()) fail("an empty word");
    return found;
  }

  template <class T>
  T number(int base = 10) {
    const std::string_view text = word();
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc() || end != text.data() + text.size() || value < 0)
      fail(fmt::format("{} is no number", shown(text)));
    return value;
  }

  std::string_view rest() { return std::exchange(rest_, {}); }

  [[noreturn]] void fail(const std::string& what) const {
    fail_user("{}: line {}: {}: the file is damaged, or of another program", source_, number_, what);
  }

 private:
  std::string_view rest_;
  std::int64_t number_;
  const std::string& source_;
};

// The version in the first line; nothing where it is no manifest of ours.
std::optional<std::int64_t> version_of(std::string_view text) {
  if (!text.starts_with(kMagic)) return std::nullopt;
  text.remove_prefix(kMagic.size());
  std::int64_t version = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), version);
  if (error != std::errc() || end == text.data() + text.size() || *end != ' ') return std::nullopt;
  return version;
}

// Version 1 had a line a file: XXH3, bytes, name.
bool is_version_1(std::string_view text) {
  const std::string_view line = text.substr(0, text.find('\n'));
  return line.size() > 17 && line[16] == ' ' && line.ends_with(".h5") &&
         line.substr(0, 16).find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

void check_version(std::string_view text, const std::string& source) {
  const std::string_view line = text.substr(0, text.find('\n'));
  require(!is_version_1(text),
          "{}: checkpoint format 1 is not read any more, this program reads {}: finish that run with the "
          "version of ridge that began it, and start from the model that it saves",
          source, kCheckpointVersion);
  const auto version = version_of(text);
  require(version.has_value(), "{}: it does not begin as a checkpoint's manifest does: the file is damaged",
          source);
  require(*version == kCheckpointVersion,
          "{}: checkpoint format {} (of ridge {}) is not {}, which ridge {} reads: use a {} ridge", source,
          *version, shown(line.substr(std::min(line.rfind(' ') + 1, line.size()))), kCheckpointVersion,
          program_version(), *version > kCheckpointVersion ? "newer" : "older");
}

// The text without its last line, which holds the checksum of the rest.
std::string_view checked_body(std::string_view text, const std::string& source) {
  const std::size_t size = kEnd.size() + 16 + 1;
  const bool whole = text.size() > size && text.ends_with('\n') &&
                     text.substr(text.size() - size).starts_with(kEnd) &&
                     text[text.size() - size - 1] == '\n';
  require(whole, "{}: its last line is missing: the file is damaged", source);
  const std::string_view body = text.substr(0, text.size() - size);
  const std::string stored(text.substr(text.size() - 17, 16));
  const std::string found = checksum_text(xxh3_64(std::as_bytes(std::span(body))));
  require(stored == found, "{}: the file is damaged: its checksum is {}, and {} stands at its end", source,
          found, shown(stored));
  return body;
}

std::int64_t integer_at(const nlohmann::json& json, const char* key, const Words& words) {
  const nlohmann::json& value = json.at(key);
  if (!value.is_number_integer()) words.fail(fmt::format("{} is no whole number", key));
  return value.get<std::int64_t>();
}

TrainingState parse_state(Words& words, const std::string& source) {
  const std::string_view text = words.rest();
  check_json_depth(text, source);
  TrainingState state;
  try {
    const auto json = nlohmann::json::parse(text);
    state.step = integer_at(json, "step", words);
    state.tokens = integer_at(json, "tokens", words);
    state.next_sample = integer_at(json, "next_sample", words);
    state.seed = integer_at(json, "seed", words);
    json.at("config").get_to(state.config);
    json.at("layout").get_to(state.layout);
    json.at("weights_only").get_to(state.weights_only);
    state.base = json.value("base", "");  // none in older checkpoints
  } catch (const nlohmann::json::exception& error) {
    words.fail(fmt::format("the state is not as expected ({})", shown(error.what())));
  }
  if (state.step < 0 || state.tokens < 0 || state.next_sample < 0) words.fail("a count below zero");
  return state;
}

StoredFile parse_file(Words& words) {
  StoredFile file{std::string(words.word()), words.number<std::uint64_t>(), 0};
  file.frame = words.number<std::uint64_t>(16);
  const bool plain = file.name.find('/') == std::string::npos && file.name.find('\0') == std::string::npos &&
                     !file.name.starts_with('.');
  if (!plain) words.fail(fmt::format("{} is no plain file name", shown(file.name)));
  return file;
}

DType parse_type(Words& words) {
  try {
    return parse_dtype(words.word());
  } catch (const UserError& error) {
    words.fail(error.what());
  }
}

StoredTensor parse_tensor(Words& words) {
  StoredTensor tensor;
  tensor.name = words.word();
  tensor.dtype = parse_type(words);
  while (!words.done()) tensor.dims.push_back(words.number<std::int64_t>());
  if (tensor.dims.empty() || tensor.dims.size() > static_cast<std::size_t>(kMaxDims))
    words.fail(fmt::format("{} dims", tensor.dims.size()));
  const auto count = element_count(tensor.dims);
  std::int64_t bytes = 0;
  if (!count || __builtin_mul_overflow(*count, static_cast<std::int64_t>(size_of(tensor.dtype)), &bytes))
    words.fail(fmt::format("the dims {} overflow", dims_text(tensor.dims)));
  return tensor;
}

StoredBox parse_box(Words& words, const CheckpointManifest& manifest, const StoredTensor& tensor) {
  StoredBox stored;
  stored.file = words.number<std::int64_t>();
  stored.position = words.number<std::uint64_t>();
  for (auto* values : {&stored.box.offset, &stored.box.extent})
    while (values->size() < tensor.dims.size()) values->push_back(words.number<std::int64_t>());
  if (!box_is_within(stored.box.offset, stored.box.extent, tensor.dims) || stored.box.numel() == 0)
    words.fail(fmt::format("a box of {} at {} in {} {}", dims_text(stored.box.extent),
                           dims_text(stored.box.offset), shown(tensor.name), dims_text(tensor.dims)));
  if (stored.file >= static_cast<std::int64_t>(manifest.files.size()))
    words.fail("a file that is not listed");
  const std::int64_t bytes = bytes_of(tensor, stored.box);
  const std::uint64_t room = manifest.files[static_cast<std::size_t>(stored.file)].bytes;
  if (stored.position > room || static_cast<std::uint64_t>(bytes) > room - stored.position)
    words.fail("a box behind the end of its file");
  while (!words.done()) stored.checksums.push_back(words.number<std::uint64_t>(16));
  if (static_cast<std::int64_t>(stored.checksums.size()) != chunk_count(bytes))
    words.fail(fmt::format("{} checksums for {} bytes", stored.checksums.size(), bytes));
  return stored;
}

void parse_line(Words words, const std::string& source, CheckpointManifest& manifest) {
  const std::string_view kind = words.word();
  if (kind == "state") {
    manifest.state = parse_state(words, source);
  } else if (kind == "file") {
    manifest.files.push_back(parse_file(words));
  } else if (kind == "tensor") {
    manifest.tensors.push_back(parse_tensor(words));
  } else if (kind == "box" && !manifest.tensors.empty()) {
    manifest.tensors.back().boxes.push_back(parse_box(words, manifest, manifest.tensors.back()));
  } else {
    words.fail(fmt::format("{} is unknown", shown(kind)));
  }
  if (!words.done()) words.fail(fmt::format("{} too much", shown(words.rest())));
}

}  // namespace

CheckpointManifest parse_manifest(std::string_view text, const std::string& source) {
  check_version(text, source);
  std::string_view body = checked_body(text, source);
  CheckpointManifest manifest;
  std::int64_t number = 0;
  while (!body.empty()) {
    const std::size_t end = std::min(body.find('\n'), body.size());
    Words words(body.substr(0, end), ++number, source);
    if (number == 1) {
      words.word(), words.word();
      manifest.program = words.word();
    } else {
      parse_line(words, source, manifest);
    }
    body.remove_prefix(std::min(end + 1, body.size()));
  }
  std::ranges::sort(manifest.tensors, {}, &StoredTensor::name);
  const auto twice = std::ranges::adjacent_find(manifest.tensors, {}, &StoredTensor::name);
  require(twice == manifest.tensors.end(), "{}: it holds a tensor twice: the file is damaged", source);
  return manifest;
}

}  // namespace ridge
