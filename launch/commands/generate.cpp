#include <cstdio>
#include <optional>
#include <utility>

#include "core/io/file.h"
#include "core/text/tokenizer.h"
#include "inference/engine.h"
#include "launch/context.h"
#include "launch/model_options.h"
#include "launch/rank_model.h"
#include "launch/reply_text.h"

namespace ridge {
namespace {

using inference::Generation;

constexpr std::size_t kMostPromptBytes = std::size_t{256} << 20;

struct Options {
  ModelOptions model;
  std::string prompt, prompts, kv_cache = "auto";
  inference::GenerateOptions generate;
  inference::EngineOptions engine;
  std::vector<std::string> stops;
  std::int64_t tp = 1;
  bool ignore_eos = false, reference = false, stream = false;
};

// A prompt with its ids, and what comes of it.
struct Reply {
  std::string prompt;
  std::vector<std::int32_t> ids;
  ReplyText text;
  Generation done = {};
};

void check_options(const Options& options, bool one, bool many) {
  require(one || many, "--prompt is required, or --prompts with a file of them");
  require(!one || !many, "--prompt and --prompts: give one of them");
  require(options.generate.max_new_tokens >= 1, "--max-new-tokens is {}: give at least 1",
          options.generate.max_new_tokens);
  require(options.engine.slots >= 1, "--batch is {}: give at least 1", options.engine.slots);
  require(options.engine.prefill_chunk >= 1, "--prefill-chunk is {}: give at least 1",
          options.engine.prefill_chunk);
  require(options.tp >= 1, "--tp is {}: give at least 1", options.tp);
  require(options.tp == 1 || !options.reference, "--reference runs on one rank: --tp {} has no meaning",
          options.tp);
  require(!options.stream || !many,
          "--stream: texts of --prompts grow side by side, none of them can be shown as it comes");
  require(!options.reference || options.kv_cache == "auto",
          "--reference keeps keys and values in the model's dtype: --kv-cache {} has no meaning",
          options.kv_cache);
  if (options.kv_cache != "auto") kernels::parse_kv_format(options.kv_cache);
  inference::check_sampling(options.generate.sampling);
}

std::vector<std::string> prompts_of(const Options& options) {
  if (options.prompts.empty()) return {options.prompt};
  std::vector<std::string> lines;
  const std::string text = read_text_file(options.prompts, kMostPromptBytes);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    if (lines.back().ends_with('\r')) lines.back().pop_back();
    begin = end + 1;
  }
  require(!lines.empty(), "--prompts: {} has no line", options.prompts);
  return lines;
}

void write(std::FILE* file, const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), file);
  std::fflush(file);
}

// Shows text on stdout, or with --json on stderr where it was asked for.
class Screen {
 public:
  Screen(const Options& options, const Context& context)
      : file_(!context.is_root() || !options.prompts.empty() || (context.json && !options.stream)
                  ? nullptr
                  : (context.json ? stderr : stdout)) {}
  void show(const std::string& text) const {
    if (file_ != nullptr) write(file_, text);
  }

 private:
  std::FILE* file_;
};

void run_plain(models::Llama& model, std::vector<Reply>& replies, const Options& options,
               const std::function<bool(Reply&, std::int32_t)>& hear) {
  for (Reply& reply : replies)
    reply.done = inference::generate(model, reply.ids, options.generate,
                                     [&](std::int32_t id) { return hear(reply, id); });
}

void run_engine(models::Llama& model, std::vector<Reply>& replies, const Options& options,
                const std::function<bool(Reply&, std::int32_t)>& hear) {
  inference::EngineOptions how = options.engine;
  how.slots = std::min(how.slots, static_cast<std::int64_t>(replies.size()));
  how.vocabulary = options.generate.vocabulary;
  if (options.kv_cache != "auto") how.cache = kernels::parse_kv_format(options.kv_cache);
  std::vector<inference::Request> requests;
  for (Reply& reply : replies) {
    requests.push_back({reply.ids, options.generate.max_new_tokens, options.generate.sampling,
                        options.generate.stop_ids,
                        [&hear, &reply](std::int32_t id) { return hear(reply, id); }});
  }
  inference::Engine engine(model, how);
  auto done = engine.generate(requests);
  for (std::size_t i = 0; i < replies.size(); ++i) replies[i].done = std::move(done[i]);
}

double rate_of(const Generation& done) {
  return done.decoded > 0 ? static_cast<double>(done.decoded) / done.decode_seconds : 0;
}

// The text of the new ids alone, which may lack the blank that they have after a prompt.
std::string text_of(const Reply& reply, const Tokenizer& tokenizer) {
  const std::string whole = tokenizer.decode_utf8(reply.done.ids), &shown = reply.text.text();
  if (!reply.text.stopped()) return whole;
  return shown.starts_with(' ') && !whole.starts_with(' ') ? shown.substr(1) : shown;
}

JsonObject json_of(const Reply& reply, const Tokenizer& tokenizer) {
  return {{"ids", reply.done.ids},
          {"text", text_of(reply, tokenizer)},
          {"prefill_ms", reply.done.prefill_seconds * 1e3},
          {"decode_tokens_per_s", rate_of(reply.done)}};
}

void report(const std::vector<Reply>& replies, const Tokenizer& tokenizer, const Options& options,
            const Context& context) {
  if (!context.is_root()) return;
  if (context.json && options.prompts.empty()) return context.emit(json_of(replies.front(), tokenizer), "");
  if (context.json) {
    std::string list;
    for (const Reply& reply : replies) list += (list.empty() ? "" : ",") + json_of(reply, tokenizer).dump();
    return write(stdout, "[" + list + "]\n");
  }
  std::size_t prompt = 0;
  double prefill = 0, slowest = 0, decoded = 0;
  for (const Reply& reply : replies) {
    if (!options.prompts.empty()) write(stdout, reply.prompt + reply.text.text() + "\n");
    prompt += reply.ids.size();
    prefill += reply.done.prefill_seconds;
    slowest = std::max(slowest, reply.done.decode_seconds);
    decoded += static_cast<double>(reply.done.decoded);
  }
  context.note(fmt::format("prefill {} tokens in {:.1f} ms; decode {:.1f} tokens/s", prompt, prefill * 1e3,
                           decoded > 0 ? decoded / slowest : 0));
}

// What comes behind the longest context is legitimate to ask for, and rarely good.
void note_length(const std::vector<Reply>& replies, const Options& options, const models::ModelConfig& config,
                 const Context& context) {
  std::int64_t longest = 0;
  for (const Reply& reply : replies) longest = std::max(longest, static_cast<std::int64_t>(reply.ids.size()));
  const std::int64_t most = config.max_position, asked = options.generate.max_new_tokens;
  if (asked <= most - longest) return;
  context.note(
      fmt::format("a prompt of {} tokens and {} new ones may go beyond the {} that the model is made for "
                  "(max_position_embeddings): what follows those is of no known quality",
                  longest, asked, most));
}

void run(Options& options, bool one, bool many, Context& context) {
  check_options(options, one, many);
  const Tokenizer tokenizer = Tokenizer::load(options.model.model);
  std::vector<Reply> replies;
  for (const std::string& prompt : prompts_of(options)) {
    const std::vector<std::int32_t> ids = tokenizer.encode(prompt, true);
    replies.push_back({prompt, ids, ReplyText(tokenizer, options.stops, ids)});
  }
  RankModel over_ranks;
  if (options.tp != 1) over_ranks = load_over_ranks(options.model, options.tp, context);
  const auto model = options.tp != 1 ? std::move(over_ranks.model) : load(options.model, context);
  for (const Reply& reply : replies) check_ids(reply.ids, model->config(), many ? "--prompts" : "--prompt");
  note_length(replies, options, model->config(), context);
  if (options.tp == 1 && !context.is_root()) return;
  options.generate.vocabulary = tokenizer.vocab_size();
  if (!options.ignore_eos) options.generate.stop_ids = model->config().eos_ids;
  const Screen screen(options, context);
  std::string before = options.prompt;  // shown once there is something to follow it
  const auto hear = [&](Reply& reply, std::int32_t id) {
    screen.show(std::exchange(before, {}) + reply.text.push(id));
    return !reply.text.stopped();
  };
  (options.reference ? run_plain : run_engine)(*model, replies, options, hear);
  for (Reply& reply : replies) screen.show(reply.text.flush() + "\n");
  report(replies, tokenizer, options, context);
}

void add_options(const Command& command, Options& options) {
  inference::SamplingOptions& sampling = options.generate.sampling;
  command.option("--prompt", options.prompt, "Text to go on from");
  command.option("--prompts", options.prompts,
                 "File of such texts, one a line; with --json an array of results");
  command.option("--max-new-tokens", options.generate.max_new_tokens, "At most that many");
  command.option("--temperature", sampling.temperature, "0: greedy");
  command.option("--top-k", sampling.top_k, "0: off");
  command.option("--top-p", sampling.top_p, "1: off");
  command.option("--min-p", sampling.min_p, "Share of the most likely token's probability; 0: off");
  command.option("--repetition-penalty", sampling.repetition_penalty, "1: off");
  command.option("--seed", sampling.seed, "Of the sampling");
  command.option("--stop", options.stops,
                 "Text that ends the reply, which it is not part of; may be repeated");
  command.flag("--ignore-eos", options.ignore_eos, "Go on after an end-of-sequence token");
  command.flag("--stream", options.stream, "Show the text as it comes with --json too, on stderr");
  command.option("--kv-cache", options.kv_cache,
                 "Of keys and values: auto (the model's dtype), f32, bf16, fp8 or int8");
  command.option("--batch", options.engine.slots, "Texts of --prompts at once");
  command.option("--prefill-chunk", options.engine.prefill_chunk, "Tokens of a prompt in one pass");
  command.option("--tp", options.tp, "Ranks that share the model, under mpirun");
  command.flag("--reference", options.reference, "The plain path, one text after the other");
}

}  // namespace

void add_generate(const Command& app, Context& context) {
  auto options = std::make_shared<Options>();
  options->engine.slots = 8;
  const Command command = app.add("generate", "Text that follows a prompt");
  add_model_options(command, options->model, "auto");
  add_options(command, *options);
  command.run([options, command, &context] {
    run(*options, command.given("--prompt"), command.given("--prompts"), context);
  });
}

}  // namespace ridge
