#include "inference/generate.h"

#include <algorithm>
#include <chrono>

#include "core/autograd.h"

namespace ridge::inference {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::int32_t next_token(models::Llama& model, std::span<const std::int32_t> ids, nn::KvCache& cache,
                        const GenerateOptions& options, std::uint64_t step,
                        std::span<const std::uint32_t> seen) {
  const Tensor ids_BT = Tensor::from(ids, {1, static_cast<std::int64_t>(ids.size())});
  const Tensor logits = model.last_logits(ids_BT, &cache).to(DType::f32).on(Device::cpu);
  auto row = logits.reshaped({-1}).span<float>();
  if (options.vocabulary > 0 && options.vocabulary < static_cast<std::int64_t>(row.size())) {
    row = row.first(static_cast<std::size_t>(options.vocabulary));
  }
  return sample(row, options.sampling, step, seen);
}

void check_ids(std::span<const std::int32_t> ids, std::int64_t vocabulary) {
  for (const std::int32_t id : ids)
    require(id >= 0 && id < vocabulary, "id {} of the prompt is outside the model's embedding of {} rows", id,
            vocabulary);
}

}  // namespace

std::int64_t tokens_of(std::int64_t prompt, std::int64_t max_new_tokens) {
  require(max_new_tokens >= 0, "{} new tokens are asked for: give at least 0", max_new_tokens);
  require(prompt <= kMostTokens && max_new_tokens <= kMostTokens - prompt,
          "a KV cache of {} tokens for a prompt of {} tokens and {} new ones: at most {} are possible",
          static_cast<std::uint64_t>(prompt) + static_cast<std::uint64_t>(max_new_tokens), prompt,
          max_new_tokens, kMostTokens);
  return prompt + max_new_tokens;
}

Generation generate(models::Llama& model, std::span<const std::int32_t> prompt,
                    const GenerateOptions& options, const std::function<bool(std::int32_t)>& on_token) {
  require(!prompt.empty(), "the prompt has no tokens: give a text");
  check_ids(prompt, model.config().vocab_size);
  const autograd::NoGradScope no_grad;
  nn::KvCache cache =
      model.make_cache(1, tokens_of(static_cast<std::int64_t>(prompt.size()), options.max_new_tokens));
  std::vector<std::uint32_t> seen = seen_words(prompt, model.config().vocab_size);
  Generation result;
  auto start = std::chrono::steady_clock::now();
  std::vector<std::int32_t> feed(prompt.begin(), prompt.end());
  for (std::int64_t step = 0; step < options.max_new_tokens; ++step) {
    const std::int32_t id = next_token(model, feed, cache, options, static_cast<std::uint64_t>(step), seen);
    seen.at(static_cast<std::size_t>(id) / 32) |= 1u << (id % 32);
    result.ids.push_back(id);
    const bool goes_on = !on_token || on_token(id);
    if (step == 0) {
      result.prefill_seconds = seconds_since(start);
      start = std::chrono::steady_clock::now();
    } else {
      ++result.decoded;
    }
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) break;
    if (!goes_on) break;
    feed.assign(1, id);
  }
  result.decode_seconds = seconds_since(start);
  return result;
}

}  // namespace ridge::inference
