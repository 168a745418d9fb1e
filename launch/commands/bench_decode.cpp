#include "launch/commands/bench_decode.h"

#include <charconv>
#include <chrono>
#include <limits>

#include "core/base/cuda.h"
#include "core/base/memory.h"
#include "core/base/threads.h"
#include "inference/engine.h"
#include "launch/ceilings.h"
#include "launch/commands/bench_context.h"
#include "launch/context.h"
#include "launch/decode_fit.h"
#include "launch/decoder_model.h"
#include "launch/rank_model.h"
#include "launch/workloads.h"

namespace ridge {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();  // null in JSON

double mib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

struct DecodeOptions {
  DecoderOptions model;
  std::int64_t tokens = 10000, prompt = 25, batch = 1, tp = 1;
};

// Bytes are one rank's.
struct DecodeReport {
  std::vector<double> latencies;  // of each token after the first
  LatencyFit fit;
  double seconds = 0, weight_bytes = 0, token_bytes = 0;  // token_bytes: of the cache, of all sequences
  std::int64_t cache_bytes = 0, peak_bytes = 0;
  bool recorded = false;  // steps, on a GPU
  Ceilings roof;

  double count() const { return static_cast<double>(latencies.size()); }
};

std::vector<inference::Request> requests_of(const DecodeOptions& options, const models::Llama& model,
                                            std::vector<double>& latencies) {
  std::vector<inference::Request> requests;
  for (std::int64_t b = 0; b < options.batch; ++b) {
    requests.push_back(
        {random_prompt(options.prompt, model.config().vocab_size, static_cast<std::uint64_t>(b)),
         options.tokens + 1});
  }
  // The last sequence's ids come after those of all others.
  requests.back().on_token = [&latencies, last = Clock::time_point{}, first = true](std::int32_t) mutable {
    const auto now = Clock::now();
    if (!std::exchange(first, false)) latencies.push_back(std::chrono::duration<double>(now - last).count());
    last = now;
    return true;
  };
  return requests;
}

DecodeReport measure(const DecodeOptions& options, Context& context) {
  const Device device = context.use_device();
  DecodeReport r;
  const RankModel held = options.tp == 1 ? RankModel{nullptr, decoder_model(options.model, device)}
                                         : random_over_ranks(options.model, options.tp, device, context);
  models::Llama& model = *held.model;
  inference::EngineOptions how = options.model.engine();
  how.slots = options.batch;
  how.capacity = options.prompt + options.tokens + 1;
  inference::Engine engine(model, how);
  reset_memory_peaks(device);
  std::vector<inference::Request> warm = requests_of(options, model, r.latencies);
  for (inference::Request& request : warm) request.max_new_tokens = std::min<std::int64_t>(4, options.tokens);
  engine.generate(warm);
  r.latencies.clear();
  const auto results = engine.generate(requests_of(options, model, r.latencies));
  r.seconds = results.back().decode_seconds;
  r.fit = fit_latency(r.latencies);
  r.weight_bytes = decoded_weight_bytes(model);
  r.token_bytes = static_cast<double>(engine.cache_bytes_per_token() * options.batch);
  r.cache_bytes = engine.cache_bytes();
  r.peak_bytes = memory_stats(device).peak_reserved;
  r.recorded = engine.records();
  r.roof = measure_ceilings(device, parse_dtype(options.model.dtype));
  return r;
}

// Of the time that a token takes at the first: weights, and the prompt's keys and values.
double ideal_base(const DecodeReport& r, const DecodeOptions& options) {
  return (r.weight_bytes + r.token_bytes * static_cast<double>(options.prompt + 1)) / r.roof.read_bytes_per_s;
}

double mean_bytes(const DecodeReport& r, const DecodeOptions& options) {
  return r.weight_bytes + r.token_bytes * (static_cast<double>(options.prompt) + 0.5 * (r.count() + 1));
}

JsonObject json_of(const DecodeReport& r, const DecodeOptions& options) {
  const double token = median(r.latencies), rate = mean_bytes(r, options) * r.count() / r.seconds;
  const double growth = r.fit.growth > 0 ? r.fit.growth : kNone;
  return {{"tp", options.tp},
          {"recorded", r.recorded},
          {"token_seconds", token},
          {"tokens_per_s", static_cast<double>(options.batch) * r.count() / r.seconds},
          {"bytes_per_token", mean_bytes(r, options)},
          {"bytes_per_s", rate},
          {"limit_share", rate / r.roof.read_bytes_per_s},
          {"read_bytes_per_s", r.roof.read_bytes_per_s},
          {"base_seconds", r.fit.base},
          {"base_share", ideal_base(r, options) / r.fit.base},
          {"cached_tokens_per_s", 1 / growth},
          {"cache_bytes_per_s", r.token_bytes / growth},
          {"cache_share", r.token_bytes / growth / r.roof.read_bytes_per_s},
          {"jitter_p50_seconds", r.fit.p50},
          {"jitter_p99_seconds", r.fit.p99},
          {"jitter_max_seconds", r.fit.most},
          {"weight_bytes", r.weight_bytes},
          {"cache_bytes_per_token", r.token_bytes},
          {"cache_bytes", r.cache_bytes},
          {"peak_bytes", r.peak_bytes}};
}

// What shares of the limit count, where ranks share the work.
std::string of_ranks(const DecodeReport& r, const DecodeOptions& options) {
  if (options.tp == 1) return "";
  return fmt::format(
      "over {} ranks: bytes and shares are of what one rank reads in its own memory, without sums over "
      "ranks{}\n",
      options.tp, r.recorded ? "; steps are recorded" : "");
}

std::string text_of(const DecodeReport& r, const DecodeOptions& options) {
  const double rate = mean_bytes(r, options) * r.count() / r.seconds, roof = r.roof.read_bytes_per_s;
  const std::string growth =
      r.fit.growth > 0
          ? fmt::format("{:.3g} cached tokens/s, {:.1f} GB/s = {:.1f}% of it", 1 / r.fit.growth,
                        r.token_bytes / r.fit.growth / 1e9, 100 * r.token_bytes / r.fit.growth / roof)
          : "lost in noise: more --tokens show it";
  return fmt::format(
      "decoding of {}, {}, {} sequence(s), {} tokens after a prompt of {}: {:.1f} tokens/s, {:.2f} ms a step "
      "(median), {:.1f} GB/s = {:.1f}% of {:.1f} GB/s read\n"
      "latency(n) = B + (n - 1) / W: B {:.3f} ms ({:.1f}% of it would do); W {}\n"
      "jitter beyond that: p50 {:.3f} ms, p99 {:.3f} ms, most {:.3f} ms\n"
      "weights {:.1f} MiB, cache {:.0f} bytes a token, {:.1f} MiB in all; peak {:.1f} MiB in tensors\n{}",
      options.model.model, options.model.describe(), options.batch, r.latencies.size(), options.prompt,
      static_cast<double>(options.batch) * r.count() / r.seconds, median(r.latencies) * 1e3, rate / 1e9,
      100 * rate / roof, roof / 1e9, r.fit.base * 1e3, 100 * ideal_base(r, options) / r.fit.base, growth,
      r.fit.p50 * 1e3, r.fit.p99 * 1e3, r.fit.most * 1e3, r.weight_bytes / (1 << 20), r.token_bytes,
      mib(r.cache_bytes), mib(r.peak_bytes), of_ranks(r, options));
}

// Before such a prompt is made, or the model.
void check_prompt(const char* option, std::int64_t tokens, const std::string& model) {
  const std::int64_t most = models::ModelConfig::load(model).max_position;
  require(tokens >= 1 && tokens <= most, "{} is {} tokens: give 1 to {} (max_position_embeddings of {})",
          option, tokens, most, model);
}

constexpr std::int64_t kMostTokens = std::int64_t{1} << 30, kMostSequences = 1 << 20;

void decode(const DecodeOptions& options, Context& context) {
  require(options.tokens >= 2 && options.tokens <= kMostTokens, "--tokens is {}: give 2 to {}",
          options.tokens, kMostTokens);
  require(options.batch >= 1 && options.batch <= kMostSequences, "--batch is {}: give 1 to {}", options.batch,
          kMostSequences);
  check_prompt("--prompt", options.prompt, options.model.model);
  require(options.tp >= 1, "--tp is {}: give at least 1", options.tp);
  const DecodeReport report = measure(options, context);
  context.emit(json_of(report, options), text_of(report, options));
}

constexpr std::int64_t kPromptLengths[] = {128, 512, 2048};

struct PrefillOptions {
  DecoderOptions model;
  std::vector<std::string> lengths;  // empty: kPromptLengths, those that the model takes
  std::int64_t runs = 3;
};

// "16,64", blanks left out.
std::vector<std::string> words_of(const std::string& list) {
  std::vector<std::string> words(1);
  for (const char c : list) {
    if (c == ',') words.emplace_back();
    if (c != ',' && c != ' ') words.back() += c;
  }
  return words;
}

std::int64_t parse_length(const std::string& word) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  require(error == std::errc() && end == word.data() + word.size() && value >= 1,
          "--lengths: '{}' is no number of tokens: give some with commas between them, as in 128,512", word);
  return value;
}

// Products of every token, but for the output layer's, which the last one alone has; causal attention.
double prefill_flops(const models::ModelConfig& c, std::int64_t tokens) {
  const auto T = static_cast<double>(tokens);
  const double head = static_cast<double>(c.vocab_size * c.hidden_size);
  const double attention = static_cast<double>(c.layers * c.heads * c.head_dim) * 2 * T * (T + 1);
  return 2 * (static_cast<double>(c.parameters_without_embedding()) - head) * T + 2 * head + attention;
}

double prefill_seconds(models::Llama& model, const PrefillOptions& options, std::int64_t length) {
  inference::Engine engine(model, options.model.engine());
  const std::vector<inference::Request> request{{random_prompt(length, model.config().vocab_size, 0), 1}};
  std::vector<double> seconds;
  engine.generate(request);
  for (std::int64_t i = 0; i < options.runs; ++i)
    seconds.push_back(engine.generate(request)[0].prefill_seconds);
  return median(seconds);
}

void prefill(const PrefillOptions& options, Context& context) {
  require(options.runs >= 1, "--runs is {}: give at least 1", options.runs);
  std::vector<std::int64_t> lengths;
  for (const std::string& list : options.lengths) {
    for (const std::string& word : words_of(list)) lengths.push_back(parse_length(word));
  }
  for (const std::int64_t length : lengths) check_prompt("--lengths", length, options.model.model);
  const Device device = context.use_device();
  const auto model = decoder_model(options.model, device);
  for (const std::int64_t length : kPromptLengths) {
    if (options.lengths.empty() && length <= model->config().max_position) lengths.push_back(length);
  }
  std::vector<double> times;
  for (const std::int64_t length : lengths) times.push_back(prefill_seconds(*model, options, length));
  const Ceilings roof = measure_ceilings(device, parse_dtype(options.model.dtype));
  std::vector<JsonObject> rows;
  std::string text = fmt::format("prompts of {}, {}; limit {:.1f} GFLOP/s matmul\n", options.model.model,
                                 options.model.describe(), roof.flops_per_s / 1e9);
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const std::int64_t length = lengths[i];
    const double time = times[i], flops = prefill_flops(model->config(), length) / time;
    const double rate = static_cast<double>(length) / time;
    rows.push_back({{"tokens", length},
                    {"seconds", time},
                    {"tokens_per_s", rate},
                    {"flops_per_s", flops},
                    {"limit_share", flops / roof.flops_per_s}});
    text += fmt::format("{:>7} tokens: {:.1f} ms, {:.0f} tokens/s, {:.1f} GFLOP/s = {:.1f}%\n", length,
                        time * 1e3, rate, flops / 1e9, 100 * flops / roof.flops_per_s);
  }
  JsonObject all{{"matmul_flops_per_s", roof.flops_per_s}};
  all.add("prompts", rows);
  context.emit(all, text);
}

}  // namespace

void add_bench_decode(const Command& bench, Context& context) {
  auto decoding = std::make_shared<DecodeOptions>();
  const Command tokens = bench.add("decode", "Tokens one after the other: latency(n) = B + (n - 1) / W");
  decoding->model.add_to(tokens);
  tokens.option("--tokens", decoding->tokens, "Tokens after the first");
  tokens.option("--steps", decoding->tokens, "The same");
  tokens.option("--prompt", decoding->prompt, "Tokens of the prompt");
  tokens.option("--batch", decoding->batch, "Sequences at once");
  tokens.option("--tp", decoding->tp, "Ranks that share the model, under mpirun");
  tokens.run([decoding, &context] { decode(*decoding, context); });
  auto prompts = std::make_shared<PrefillOptions>();
  const Command lengths = bench.add("prefill", "Prompts of some lengths beside the matmul rate");
  prompts->model.add_to(lengths);
  lengths.option("--lengths", prompts->lengths, "Tokens of each prompt, with commas between them");
  lengths.option("--runs", prompts->runs, "Of each length, after one to warm up; the median counts");
  lengths.run([prompts, &context] { prefill(*prompts, context); });
  add_bench_context(bench, context);
}

}  // namespace ridge
