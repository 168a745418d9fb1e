// Text for many requests at once: prompts in chunks, then a token of every running sequence a step, with keys
// and values in a cache and the choice of tokens on the device. Its plain counterpart is generate.h.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "inference/decode_model.h"
#include "inference/device_sampler.h"
#include "inference/generate.h"

namespace ridge::inference {

class StepGraphs;

struct EngineOptions {
  std::optional<kernels::KvFormat> cache = std::nullopt;  // none: the model's own dtype
  std::int64_t slots = 1;                                 // sequences at once; others wait for a place
  std::int64_t capacity = 0;         // tokens of a sequence, prompt and new ones; 0: what the requests need
  bool growable = false;             // the cache begins small and doubles as it must, up to that
  std::int64_t prefill_chunk = 512;  // tokens of a prompt in one pass, at most
  std::int64_t vocabulary = 0;       // ids from here on have no token and are never chosen; 0: all have
  bool graph = true;                 // on a GPU a step is recorded once and replayed
  int ahead =
      -1;  // steps that are queued before the ids of an earlier one are awaited; -1: 1 on a GPU, else 0
};

struct Request {
  std::vector<std::int32_t> prompt;
  std::int64_t max_new_tokens = 128;
  SamplingOptions sampling = {};
  std::vector<std::int64_t> stop_ids = {};          // it ends after one of these
  std::function<bool(std::int32_t)> on_token = {};  // hears every new id; false ends the request
};

class Engine {
 public:
  /// The model must outlive it, its layers in their places. Where it is cut over ranks, all of them make the
  /// same calls, and their callbacks say the same.
  Engine(models::Llama& model, const EngineOptions& options);
  ~Engine();

  /// A result for each request, whatever ran beside it. UserErrors before any work: an empty prompt, one that
  /// is longer than the cache or than the model's positions, an id outside the embedding, options of sampling
  /// without a meaning, a cache that memory has no room for. A UserError for a logit that is NaN or +inf.
  std::vector<Generation> generate(std::span<const Request> requests);

  /// Whether a step of decoding is recorded once and run again. Over ranks: where a kernel makes their sums.
  bool records() const { return options_.graph; }
  /// Of the last call, or of the next one where it needs no more.
  std::int64_t cache_bytes() const { return cache_ == nullptr ? 0 : cache_->bytes(); }
  std::int64_t capacity() const { return cache_ == nullptr ? 0 : cache_->capacity(); }
  /// Of one token of one sequence.
  std::int64_t cache_bytes_per_token() const { return shape_.bytes(1) / shape_.slots; }

 private:
  class Run;

  void check_requests(std::span<const Request> requests) const;
  void widen(std::int64_t prompt);
  void prepare(std::span<const Request> requests);
  void reserve(std::int64_t tokens);
  void prefill(std::int64_t slot, const Request& request);
  void step(std::int64_t sequences, std::int64_t keys);
  void queue_step(const std::vector<std::int32_t>& positions, const std::vector<std::int64_t>& steps);

  models::Llama& model_;
  EngineOptions options_;
  DecodeModel decode_;
  CacheShape shape_;
  std::int64_t limit_ = 0;  // tokens of a sequence that the cache may grow to
  std::unique_ptr<Cache> cache_;
  std::unique_ptr<DeviceSampler> sampler_;
  Tensor ids_;                          // i32 [slots]: each sequence's newest token
  Tensor steps_, positions_;            // i64 and i32 [slots], of the step under way
  Tensor chunk_ids_, chunk_positions_;  // i32, of a prompt's pass
  Tensor first_step_;                   // i64 [1]: 0
  std::unique_ptr<StepGraphs> graphs_;
  std::int64_t graph_keys_ = 0;  // positions below which they serve
};

}  // namespace ridge::inference
