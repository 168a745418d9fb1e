#include "launch/sample_text.h"

#include <filesystem>

#include "core/base/error.h"
#include "core/io/file.h"
#include "core/text/bpe_trainer.h"
#include "launch/context.h"

namespace ridge {
namespace {

struct TextOptions {
  std::string kind = "tales", out;
  std::int64_t bytes = 1 << 20;
  std::uint64_t seed = 0;
};

struct TokenizerOptions {
  std::vector<std::string> text;
  std::string out;
  std::int64_t vocab_size = 512;
};

constexpr std::size_t kMaxTrainBytes = std::size_t{256} << 20;

SampleKind parse_kind(const std::string& name) {
  if (name == "tales") return SampleKind::tales;
  if (name == "notes") return SampleKind::notes;
  fail_user("--kind '{}' is unknown: use tales or notes", name);
}

void write_text(const TextOptions& options, const Context& context) {
  require(options.bytes >= 1 && options.bytes <= (std::int64_t{1} << 32), "--bytes is {}, outside [1, 2^32]",
          options.bytes);
  if (!context.is_root()) return;
  const std::string text = sample_text(parse_kind(options.kind), options.bytes, options.seed);
  write_file_atomically(options.out, text);
  context.emit({{"out", options.out}, {"bytes", text.size()}},
               fmt::format("{}: {} bytes\n", options.out, text.size()));
}

void train_tokenizer(const TokenizerOptions& options, const Context& context) {
  require(options.vocab_size >= 258 && options.vocab_size <= 1000000,
          "--vocab-size is {}, outside [258, 1000000]", options.vocab_size);
  if (!context.is_root()) return;
  std::string text;
  for (const std::string& path : options.text) text += read_text_file(path, kMaxTrainBytes);
  std::filesystem::create_directories(options.out);
  write_file_atomically(options.out + "/tokenizer.json",
                        train_byte_level_bpe(text, static_cast<int>(options.vocab_size), {"<|endoftext|>"}));
  context.emit({{"out", options.out}, {"vocab_size", options.vocab_size}},
               fmt::format("{}/tokenizer.json\n", options.out));
}

}  // namespace

void add_sample_text(const Command& app, Context& context) {
  auto text = std::make_shared<TextOptions>();
  const Command write = app.add("sample-text", "Simple English made by the program itself");
  write.option("--kind", text->kind, "tales or notes");
  write.option("--bytes", text->bytes, "About that much");
  write.option("--seed", text->seed, "Of the dice");
  write.required("--out", text->out, "File to write");
  write.run([text, &context] { write_text(*text, context); });
  auto tokenizer = std::make_shared<TokenizerOptions>();
  const Command train = app.add("train-tokenizer", "A byte-level BPE tokenizer.json from texts");
  train.required("--text", tokenizer->text, "Text files");
  train.option("--vocab-size", tokenizer->vocab_size, "Tokens in all");
  train.required("--out", tokenizer->out, "Folder to write tokenizer.json into");
  train.run([tokenizer, &context] { train_tokenizer(*tokenizer, context); });
}

}  // namespace ridge
