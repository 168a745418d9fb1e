
#include "core/text/token_stream.h"
#include "core/text/tokenizer.h"
#include "launch/context.h"
#include "launch/evaluate.h"
#include "launch/model_options.h"

namespace ridge {
namespace {

struct Options {
  ModelOptions model;
  std::string text;
  std::int64_t window = 512;
  std::int64_t stride = 0;  // 0: half a window
  std::int64_t max_tokens = 0;
  std::string protocol = "windows";
};

// The token that the tokenizer puts before a text, or -1.
std::int32_t bos_of(const Tokenizer& tokenizer) {
  const auto ids = tokenizer.encode("", true);
  return ids.empty() ? -1 : ids.front();
}

void run(const Options& options, Context& context) {
  const Protocol protocol = parse_protocol(options.protocol);
  require(options.max_tokens == 0 || options.max_tokens >= 2,
          "--max-tokens is {}: give at least 2, or 0 for all", options.max_tokens);
  require(options.stride >= 0, "--stride is {}: give at least 1, or 0 for half a window", options.stride);
  const Tokenizer tokenizer = Tokenizer::load(options.model.model);
  const auto model = load(options.model, context);
  const bool special = protocol != Protocol::windows;
  auto tokens = encode_file(options.text, tokenizer, special, model->config().vocab_size);
  const bool cut = options.max_tokens > 0 && options.max_tokens < static_cast<std::int64_t>(tokens.size());
  if (cut) tokens.resize(static_cast<std::size_t>(options.max_tokens));
  require(options.window >= 2, "--window {} is too short: 2 tokens at least", options.window);
  const std::int64_t stride =
      options.stride > 0 ? options.stride : std::max<std::int64_t>(1, options.window / 2);
  const auto windows = cut_windows(tokens, protocol, options.window, stride, bos_of(tokenizer));
  const Perplexity p = evaluate(*model, windows, context.ranks());
  context.emit({{"nll", p.nll},
                {"tokens", p.tokens},
                {"perplexity", p.value},
                {"protocol", options.protocol},
                {"window", options.window}},
               fmt::format("perplexity {:.4f} (nll {:.6f}) over {} tokens, protocol {}, window {}\n", p.value,
                           p.nll, p.tokens, options.protocol, options.window));
}

}  // namespace

void add_eval(const Command& app, Context& context) {
  auto options = std::make_shared<Options>();
  const Command command =
      app.add("eval", "Quality of a model", true).add("perplexity", "Perplexity of a text");
  add_model_options(command, options->model, "f32");
  command.required("--text", options->text, "Text file");
  command.option("--window", options->window, "Tokens of a window");
  command.option("--stride", options->stride, "Protocol strided: tokens between windows; 0: half a window");
  command.option("--max-tokens", options->max_tokens, "Use the text's first tokens only; 0: all");
  command.option("--protocol", options->protocol, "windows, strided, gptq or llama.cpp");
  command.run([options, &context] { run(*options, context); });
}

}  // namespace ridge
