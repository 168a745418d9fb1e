#include "launch/commands/bench_context.h"

#include <chrono>
#include <functional>

#include "core/base/cuda.h"
#include "core/base/memory.h"
#include "inference/decode_model.h"
#include "launch/context.h"
#include "launch/decoder_model.h"
#include "launch/workloads.h"

namespace ridge {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 30;  // positions are i32

struct ContextOptions {
  DecoderOptions model;
  double memory_gib = 0;  // 0: all that is free
};

// Peak bytes of tensors for a text of `tokens`: its first chunk and its last token, which see all kinds of
// memory.
std::int64_t peak_bytes(models::Llama& model, const DecoderOptions& options, std::int64_t tokens) {
  const Device device = model.device();
  reset_memory_peaks(device);
  inference::DecodeModel decode(model, std::min(tokens, options.prefill_chunk), 1);
  inference::CacheShape shape = decode.cache_shape();
  if (options.kv_cache != "auto") shape.format = kernels::parse_kv_format(options.kv_cache);
  const inference::Cache cache(shape, tokens, device);
  decode.reach(tokens);
  const auto pass = [&](std::int64_t first, std::int64_t end) {
    const std::int64_t count = end - first;
    const Tensor ids = Tensor::zeros({count}, DType::i32, device);
    const Tensor positions = Tensor::empty({1, count}, DType::i32, device);
    if (device != Device::meta) {
      std::vector<std::int32_t> values;
      for (std::int64_t p = first; p < end; ++p) values.push_back(static_cast<std::int32_t>(p));
      positions.copy_from(Tensor::from(values, {1, count}));
    }
    decode.run(ids, positions, cache, 0, end == tokens);
  };
  pass(0, std::min(tokens, options.prefill_chunk));
  pass(tokens - 1, tokens);
  if (device == Device::cuda) cuda::synchronize(current_stream(device));
  return memory_stats(device).peak_reserved;
}

struct Found {
  std::int64_t tokens = 0, peak = 0, trials = 0;
};

// The most tokens whose peak is within `limit`, sought from `guess` on; 0 where not even one is.
Found longest(std::int64_t limit, std::int64_t guess,
              const std::function<std::int64_t(std::int64_t)>& peak_of) {
  Found found;
  const auto fits = [&](std::int64_t tokens) {
    ++found.trials;
    try {
      const std::int64_t peak = peak_of(tokens);
      if (peak > limit) return false;
      found.peak = peak;
      return true;
    } catch (const UserError&) {  // the device has no room
      return false;
    }
  };
  std::int64_t low = 0, high = kMost + 1;  // low fits, high does not
  for (std::int64_t step = 1, at = guess; at > low && at < high; step *= 2) {
    (fits(at) ? low : high) = at;
    at = low == at ? at + step : at - step;
  }
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  found.tokens = low;
  return found;
}

void run(const ContextOptions& options, Context& context) {
  require(options.memory_gib >= 0 && options.memory_gib <= 1 << 20, "--memory-gib is {}: give 0 (all) to {}",
          options.memory_gib, 1 << 20);
  require(options.model.prefill_chunk >= 1, "--prefill-chunk is {}: give at least 1",
          options.model.prefill_chunk);
  const Device device = context.use_device();
  const std::int64_t free = inference::available_bytes(device);
  const auto asked = static_cast<std::int64_t>(options.memory_gib * (std::int64_t{1} << 30));
  const std::int64_t limit = asked > 0 ? std::min(asked, free) : free;
  Stream& meta = current_stream(Device::meta);
  meta.meta_device = device;
  Found predicted;
  {
    const auto on_meta = decoder_model(options.model, Device::meta);
    predicted = longest(limit, 1, [&](std::int64_t n) { return peak_bytes(*on_meta, options.model, n); });
  }
  require(predicted.tokens > 0, "{:.2f} GiB do not hold one token of {}: its weights need more",
          static_cast<double>(limit) / (std::int64_t{1} << 30), options.model.model);
  const auto model = decoder_model(options.model, device);
  const Found found =
      longest(limit, predicted.tokens, [&](std::int64_t n) { return peak_bytes(*model, options.model, n); });
  const std::int64_t weights =
      memory_stats(device).live_by_purpose[static_cast<std::size_t>(Purpose::weights)];
  context.emit(
      {{"context", found.tokens},
       {"predicted_context", predicted.tokens},
       {"limit_bytes", limit},
       {"peak_bytes", found.peak},
       {"predicted_peak_bytes", predicted.peak},
       {"weight_bytes", weights},
       {"trials", found.trials}},
      fmt::format("{}, {}: {} tokens of context fit {:.2f} GiB ({} trials, weights {:.2f} GiB); {} predicted "
                  "on meta\n",
                  options.model.model, options.model.describe(), found.tokens,
                  static_cast<double>(limit) / (std::int64_t{1} << 30), found.trials,
                  static_cast<double>(weights) / (std::int64_t{1} << 30), predicted.tokens));
}

}  // namespace

void add_bench_context(const Command& bench, Context& context) {
  auto options = std::make_shared<ContextOptions>();
  const Command command = bench.add("context", "The longest context that memory holds");
  options->model.add_to(command);
  command.option("--memory-gib", options->memory_gib,
                 "Memory for weights, cache and passes; 0: all that is free");
  command.run([options, &context] { run(*options, context); });
}

}  // namespace ridge
