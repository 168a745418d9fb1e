#include <cstdio>
#include <utility>

#include "core/text/tokenizer.h"
#include "inference/generate.h"
#include "launch/context.h"
#include "launch/model_options.h"

namespace ridge {
namespace {

struct Options {
  ModelOptions model;
  std::string prompt;
  inference::GenerateOptions generate;
  bool ignore_eos = false;
};

void check_options(const Options& options) {
  const inference::SamplingOptions& s = options.generate.sampling;
  require(options.generate.max_new_tokens >= 1, "--max-new-tokens is {}: give at least 1",
          options.generate.max_new_tokens);
  require(s.temperature >= 0, "--temperature is {}: give at least 0", s.temperature);
  require(s.top_k >= 0, "--top-k is {}: give at least 0", s.top_k);
  require(s.top_p > 0 && s.top_p <= 1, "--top-p is {}: give more than 0 and at most 1", s.top_p);
}

void run(Options& options, Context& context) {
  check_options(options);
  const Tokenizer tokenizer = Tokenizer::load(options.model.model);
  const std::vector<std::int32_t> prompt = tokenizer.encode(options.prompt, true);
  const auto model = load(options.model, context);
  check_ids(prompt, model->config(), "--prompt");
  if (!context.is_root()) return;
  options.generate.vocabulary = tokenizer.vocab_size();
  if (!options.ignore_eos) options.generate.stop_ids = model->config().eos_ids;
  DecodeStream stream(tokenizer);
  const auto show = [&](const std::string& text) {
    if (context.json) return;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  };
  std::string before = options.prompt;  // shown once there is something to follow it
  const auto done = inference::generate(*model, prompt, options.generate, [&](std::int32_t id) {
    show(std::exchange(before, {}) + stream.push(id));
  });
  show(stream.flush() + "\n");
  const double rate = done.decoded > 0 ? static_cast<double>(done.decoded) / done.decode_seconds : 0;
  if (context.json) {
    context.emit({{"ids", done.ids},
                  {"text", tokenizer.decode_utf8(done.ids)},
                  {"prefill_ms", done.prefill_seconds * 1e3},
                  {"decode_tokens_per_s", rate}},
                 "");
  } else {
    context.note(fmt::format("prefill {} tokens in {:.1f} ms; decode {:.1f} tokens/s", prompt.size(),
                             done.prefill_seconds * 1e3, rate));
  }
}

}  // namespace

void add_generate(const Command& app, Context& context) {
  auto options = std::make_shared<Options>();
  const Command command = app.add("generate", "Text that follows a prompt");
  add_model_options(command, options->model, "auto");
  inference::SamplingOptions& sampling = options->generate.sampling;
  command.required("--prompt", options->prompt, "Text to go on from");
  command.option("--max-new-tokens", options->generate.max_new_tokens, "At most that many");
  command.option("--temperature", sampling.temperature, "0: greedy");
  command.option("--top-k", sampling.top_k, "0: off");
  command.option("--top-p", sampling.top_p, "1: off");
  command.option("--seed", sampling.seed, "Of the sampling");
  command.flag("--ignore-eos", options->ignore_eos, "Go on after an end-of-sequence token");
  command.run([options, &context] { run(*options, context); });
}

}  // namespace ridge
