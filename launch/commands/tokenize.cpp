#include <algorithm>
#include <charconv>

#include "core/base/error.h"
#include "core/io/file.h"
#include "core/text/tokenizer.h"
#include "launch/context.h"

namespace ridge {
namespace {

constexpr std::size_t kMaxTextBytes = std::size_t{4} << 30;

struct Options {
  std::string model;
  std::string text;
  std::string file;
  std::string decode;
  bool has_text = false, has_decode = false, no_special = false;
};

// "1,2,3"; an empty text has no ids.
std::vector<std::int32_t> parse_ids(std::string_view text) {
  std::vector<std::int32_t> ids;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const char* end = text.data() + comma;
    std::int32_t id = 0;
    const auto parsed = std::from_chars(text.data() + at, end, id);
    require(parsed.ec == std::errc() && parsed.ptr == end && comma + 1 != text.size(),
            "--decode: '{}' is not an id: give them as 1,2,3", text.substr(at, comma - at));
    ids.push_back(id);
    at = comma + 1;
  }
  return ids;
}

void run(const Options& options, Context& context) {
  const int given =
      (options.has_text ? 1 : 0) + (options.file.empty() ? 0 : 1) + (options.has_decode ? 1 : 0);
  require(given == 1, "tokenize: give exactly one of --text, --file and --decode");
  const Tokenizer tokenizer = Tokenizer::load(options.model);
  if (options.has_decode) {
    const JsonObject json{{"text", tokenizer.decode_utf8(parse_ids(options.decode), options.no_special)}};
    context.emit(json, json.dump() + "\n");
  } else {
    const std::string text = options.has_text ? options.text : read_text_file(options.file, kMaxTextBytes);
    const JsonObject json{{"ids", tokenizer.encode(text, !options.no_special)}};
    context.emit(json, json.dump() + "\n");
  }
}

}  // namespace

void add_tokenize(const Command& app, Context& context) {
  auto options = std::make_shared<Options>();
  const Command command = app.add("tokenize", "Text to ids, and back");
  command.required("--model", options->model, "Folder with tokenizer.json");
  command.option("--text", options->text, "Text to encode");
  command.option("--file", options->file, "File to encode");
  command.option("--decode", options->decode, "Ids to decode, such as 1,2,3");
  command.flag("--no-special", options->no_special, "Add no special tokens; with --decode, leave them out");
  command.run([options, command, &context] {
    options->has_text = command.given("--text");
    options->has_decode = command.given("--decode");
    run(*options, context);
  });
}

}  // namespace ridge
