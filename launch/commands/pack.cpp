#include <filesystem>

#include "core/base/error.h"
#include "core/io/file.h"
#include "core/io/token_file.h"
#include "core/text/token_stream.h"
#include "core/text/tokenizer.h"
#include "launch/context.h"

namespace ridge {
namespace {

// A text beyond this is encoded in pieces that end at line ends, in bounded memory.
constexpr std::size_t kPieceBytes = std::size_t{64} << 20;

struct Options {
  std::string model;
  std::vector<std::string> text;
  std::string out;
};

std::size_t piece_end(std::string_view text, std::size_t begin) {
  if (text.size() - begin <= kPieceBytes) return text.size();
  const std::size_t line = text.rfind('\n', begin + kPieceBytes);
  return line == std::string_view::npos || line <= begin ? begin + kPieceBytes : line + 1;
}

void run(const Options& options, Context& context) {
  if (!context.is_root()) return;
  std::error_code error;
  for (const std::string& path : options.text)
    require(!std::filesystem::equivalent(path, options.out, error),
            "--out {} is one of the texts, which it would replace: give another name", options.out);
  const Tokenizer tokenizer = Tokenizer::load(options.model);
  TokenFileWriter writer(options.out, tokenizer.vocab_size(), tokenizer_fingerprint(tokenizer), options.text);
  std::size_t bytes = 0;
  for (const std::string& path : options.text) {
    const MappedFile file = MappedFile::open(path);
    require(!file.bytes().empty(), "{}: the file is empty: give a text", path);
    const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = piece_end(text, begin);
      writer.append(tokenizer.encode(text.substr(begin, end - begin), false));
      begin = end;
    }
    bytes += text.size();
  }
  writer.finish();
  const double ratio =
      static_cast<double>(bytes) / static_cast<double>(std::max<std::int64_t>(writer.count(), 1));
  context.emit({{"out", options.out}, {"tokens", writer.count()}, {"bytes", bytes}},
               fmt::format("{}: {} tokens of {} bytes ({:.2f} bytes a token)\n", options.out, writer.count(),
                           bytes, ratio));
}

}  // namespace

void add_pack(const Command& app, Context& context) {
  auto options = std::make_shared<Options>();
  const Command command = app.add("pack", "Texts to a token file that training streams");
  command.required("--model", options->model, "Folder with tokenizer.json");
  command.required("--text", options->text, "Text files, in order");
  command.required("--out", options->out, "Token file to write (.h5)");
  command.run([options, &context] { run(*options, context); });
}

}  // namespace ridge
