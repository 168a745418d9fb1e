#include "inference/engine.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <deque>
#include <numeric>

#include "core/base/cuda.h"
#include "core/base/launch.h"
#include "inference/step_graphs.h"
#include "inference/token_ring.h"

namespace ridge::inference {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kFirstCapacity = 256;  // tokens of a cache that grows

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

std::int64_t tokens_of(const Request& r) {
  return inference::tokens_of(static_cast<std::int64_t>(r.prompt.size()), r.max_new_tokens);
}

template <class T>
void upload(const std::vector<T>& values, const Tensor& to) {
  to.sliced(0, 0, static_cast<std::int64_t>(values.size()))
      .copy_from(Tensor::from(values, {static_cast<std::int64_t>(values.size())}));
}

std::int64_t positive(std::int64_t value, const char* what) {
  require(value >= 1, "{} is {}: give at least 1", what, value);
  return value;
}

}  // namespace

Engine::Engine(models::Llama& model, const EngineOptions& options)
    : model_(model),
      options_(options),
      decode_(model, positive(options.slots, "sequences at once"), options.slots),
      shape_(decode_.cache_shape()),
      graphs_(std::make_unique<StepGraphs>()) {
  positive(options.prefill_chunk, "prefill chunk");
  require(options.capacity >= 0, "a cache of {} tokens: give at least 1, or 0 for what is needed",
          options.capacity);
  const bool on_gpu = model.device() == Device::cuda;
  if (options_.ahead < 0) options_.ahead = on_gpu ? 1 : 0;
  options_.graph = options_.graph && on_gpu && decode_.plain();
  shape_.slots = options.slots;
  if (options.cache.has_value()) shape_.format = *options.cache;
  const auto make = [&](std::int64_t count, DType dtype) {
    return Tensor::zeros({count}, dtype, model.device());
  };
  ids_ = make(options.slots, DType::i32);
  steps_ = make(options.slots, DType::i64);
  positions_ = make(options.slots, DType::i32);
  first_step_ = make(1, DType::i64);
}

Engine::~Engine() = default;

void Engine::check_requests(std::span<const Request> requests) const {
  const models::ModelConfig& config = model_.config();
  for (const Request& r : requests) {
    const auto length = static_cast<std::int64_t>(r.prompt.size());
    require(length > 0, "the prompt has no tokens: give a text");
    require(length <= config.max_position,
            "the prompt has {} tokens, the model takes {} (max_position_embeddings): shorten it", length,
            config.max_position);
    const std::int64_t tokens = tokens_of(r);
    require(
        options_.capacity == 0 || tokens <= options_.capacity,
        "a prompt of {} tokens and {} new ones do not fit the cache of {}: shorten it, or enlarge the cache",
        length, r.max_new_tokens, options_.capacity);
    for (const std::int32_t id : r.prompt)
      require(id >= 0 && id < config.vocab_size,
              "id {} of the prompt is outside the model's embedding of {} rows", id, config.vocab_size);
    check_sampling(r.sampling);
  }
}

// For prompts that are no longer than this.
void Engine::widen(std::int64_t prompt) {
  const auto rounded = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(prompt)));
  const std::int64_t chunk = std::min(options_.prefill_chunk, rounded);
  if (chunk_ids_.defined() && chunk <= chunk_ids_.dim(0)) return;
  graphs_->clear();
  chunk_ids_ = chunk_positions_ = {};  // until there is room
  decode_.widen(std::max(chunk, options_.slots));
  chunk_positions_ = Tensor::zeros({chunk}, DType::i32, model_.device());
  chunk_ids_ = Tensor::zeros({chunk}, DType::i32, model_.device());
}

// Memory for these requests, before anything is computed.
void Engine::prepare(std::span<const Request> requests) {
  std::int64_t longest = 1, prompt = 1;
  bool penalties = false;
  for (const Request& r : requests) {
    longest = std::max(longest, tokens_of(r));
    prompt = std::max(prompt, static_cast<std::int64_t>(r.prompt.size()));
    penalties = penalties || r.sampling.repetition_penalty != 1;
  }
  widen(prompt);
  limit_ = options_.capacity > 0 ? options_.capacity : longest;
  require(limit_ <= kMostTokens, "a KV cache of {} tokens a sequence: at most {} are possible", limit_,
          kMostTokens);
  std::int64_t begin = limit_;
  if (options_.growable) {
    const auto rounded = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(prompt + 1)));
    begin = std::min(limit_, std::max(kFirstCapacity, rounded));
  }
  if (cache_ == nullptr || cache_->capacity() < begin) {
    graphs_->clear();
    cache_.reset();
    cache_ = std::make_unique<Cache>(shape_, begin, model_.device());
    decode_.reach(begin);
  }
  if (sampler_ != nullptr && sampler_->penalties() == penalties) return;
  graphs_->clear();
  const std::int64_t vocabulary = decode_.vocabulary();
  const std::int64_t chosen =
      options_.vocabulary > 0 ? std::min(vocabulary, options_.vocabulary) : vocabulary;
  sampler_ = std::make_unique<DeviceSampler>(options_.slots, chosen, penalties, model_.device());
}

void Engine::reserve(std::int64_t tokens) {
  if (tokens <= cache_->capacity()) return;
  check(tokens <= std::max(limit_, cache_->capacity()), "requests were checked against the cache");
  graphs_->clear();
  const std::int64_t capacity = std::min(limit_, std::max(tokens, 2 * cache_->capacity()));
  cache_->grow(capacity);
  decode_.reach(capacity);
}

// Queues a prompt and the choice of what follows it.
void Engine::prefill(std::int64_t slot, const Request& request) {
  const auto length = static_cast<std::int64_t>(request.prompt.size());
  reserve(length);
  sampler_->begin(slot, request.sampling, request.prompt);
  for (std::int64_t begin = 0; begin < length; begin += options_.prefill_chunk) {
    const std::int64_t end = std::min(length, begin + options_.prefill_chunk), n = end - begin;
    std::vector<std::int32_t> positions(static_cast<std::size_t>(n));
    std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(begin));
    upload(std::vector<std::int32_t>(request.prompt.begin() + begin, request.prompt.begin() + end),
           chunk_ids_);
    upload(positions, chunk_positions_);
    const Tensor logits =
        decode_.run(chunk_ids_.sliced(0, 0, n), chunk_positions_.sliced(0, 0, n).reshaped({1, n}), *cache_,
                    slot, end == length);
    if (end == length)
      sampler_->choose(logits, slot, first_step_.view<std::int64_t>(), ids_.sliced(0, slot, slot + 1));
  }
}

// A token of slots 0 .. sequences - 1, from ids_ to ids_: all of it on the device.
void Engine::step(std::int64_t sequences, std::int64_t keys) {
  const Tensor ids = ids_.sliced(0, 0, sequences);
  const Tensor logits =
      decode_.run(ids, positions_.sliced(0, 0, sequences).reshaped({sequences, 1}), *cache_, 0, true, keys);
  sampler_->choose(logits, 0, steps_.sliced(0, 0, sequences).view<std::int64_t>(), ids);
}

void Engine::queue_step(const std::vector<std::int32_t>& positions, const std::vector<std::int64_t>& steps) {
  const std::int64_t keys = 1 + *std::max_element(positions.begin(), positions.end());
  reserve(keys);
  upload(positions, positions_);
  upload(steps, steps_);
  const auto sequences = static_cast<std::int64_t>(positions.size());
  if (!options_.graph) return step(sequences, keys);
  // A recording's grids are as for its keys: for few of them it begins anew at each power of two.
  const auto rounded = std::bit_ceil(static_cast<std::uint64_t>(std::max(keys, kFirstCapacity)));
  const std::int64_t wanted = std::min(static_cast<std::int64_t>(rounded), cache_->capacity());
  if (keys > graph_keys_ || 4 * wanted < graph_keys_) {
    graphs_->clear();
    graph_keys_ = wanted;
  }
  graphs_->run(current_stream(model_.device()), sequences, [&] { step(sequences, graph_keys_); });
}

// One call of generate(): which request is in which slot, and whose ids are on their way.
class Engine::Run {
 public:
  Run(Engine& engine, std::span<const Request> requests)
      : engine_(engine),
        requests_(requests),
        texts_(requests.size()),
        slots_(std::min<std::size_t>(requests.size(), static_cast<std::size_t>(engine.options_.slots)),
               kFree),
        ring_(engine.model_.device(), engine.options_.slots, engine.options_.ahead + 1) {}

  std::vector<Generation> all() {
    for (;;) {
      admit();
      const bool queued = step();
      while (pending_.size() > static_cast<std::size_t>(queued ? engine_.options_.ahead : 0)) deliver();
      if (!queued && pending_.empty() && next_ == requests_.size()) break;
    }
    std::vector<Generation> results;
    for (Text& text : texts_) results.push_back(std::move(text.result));
    return results;
  }

 private:
  static constexpr std::size_t kFree = static_cast<std::size_t>(-1);

  struct Text {
    Generation result;
    std::int64_t queued = 0;  // new tokens whose choice has been queued
    Clock::time_point begin, first;
    bool done = false;
  };
  // Ids that were queued together: the request of each slot that has one, else kFree.
  struct Batch {
    std::vector<std::size_t> requests;
    std::int64_t ticket;
  };

  void queued(std::vector<std::size_t> requests) {
    for (const std::size_t r : requests) {
      if (r != kFree) ++texts_[r].queued;
    }
    pending_.push_back({std::move(requests), ring_.read(engine_.ids_)});
  }

  // Prompts into free slots. Their first ids are awaited at once where nothing else is under way.
  void admit() {
    for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
      while (slots_[slot] == kFree && next_ < requests_.size()) {
        const std::size_t r = next_++;
        if (requests_[r].max_new_tokens == 0) continue;
        texts_[r].begin = Clock::now();
        slots_[slot] = r;
        engine_.prefill(static_cast<std::int64_t>(slot), requests_[r]);
        std::vector<std::size_t> alone(slots_.size(), kFree);
        alone[slot] = r;
        queued(std::move(alone));
        while (!pending_.empty()) deliver();
      }
    }
  }

  // Queues a token of every sequence that wants one; whether there is such.
  bool step() {
    std::vector<std::int32_t> positions;
    std::vector<std::int64_t> steps;
    std::vector<std::size_t> who(slots_.size(), kFree);
    for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
      const std::size_t r = slots_[slot];
      if (r == kFree || texts_[r].queued >= requests_[r].max_new_tokens) continue;
      who[slot] = r;
      positions.resize(slot + 1, -1);
      steps.resize(slot + 1, 0);  // an idle row gets an id too, which the next step may look up
      positions[slot] = static_cast<std::int32_t>(tokens_before(r));
      steps[slot] = texts_[r].queued;
    }
    if (positions.empty()) return false;
    engine_.queue_step(positions, steps);
    queued(std::move(who));
    return true;
  }

  std::int64_t tokens_before(std::size_t r) const {
    return static_cast<std::int64_t>(requests_[r].prompt.size()) + texts_[r].queued - 1;
  }

  // Waits for the oldest ids, and tells those who asked.
  void deliver() {
    const Batch batch = std::move(pending_.front());
    pending_.pop_front();
    const std::span<const std::int32_t> ids = ring_.await(batch.ticket);
    for (std::size_t slot = 0; slot < batch.requests.size(); ++slot) {
      const std::size_t r = batch.requests[slot];
      if (r == kFree || texts_[r].done) continue;  // queued before it was known that the text had ended
      hear(r, ids[slot]);
      if (texts_[r].done) slots_[slot] = kFree;
    }
  }

  void hear(std::size_t r, std::int32_t id) {
    Text& text = texts_[r];
    const Request& request = requests_[r];
    const auto produced = static_cast<std::int64_t>(text.result.ids.size());
    if (id < 0 && engine_.model_.device() == Device::cuda)
      cuda::forget_faults(current_stream(Device::cuda));  // the step that is queued looks this id up
    require(
        id >= 0,
        "new token {}: the model gives a logit that is NaN or infinite: its weights are damaged or do not "
        "fit this dtype",
        produced);
    const auto now = Clock::now();
    text.result.ids.push_back(id);
    if (produced == 0) {
      text.first = now;
      text.result.prefill_seconds = seconds_between(text.begin, now);
    } else {
      ++text.result.decoded;
      text.result.decode_seconds = seconds_between(text.first, now);
    }
    const bool stops =
        std::find(request.stop_ids.begin(), request.stop_ids.end(), id) != request.stop_ids.end();
    const bool goes_on = !request.on_token || request.on_token(id);
    text.done = stops || !goes_on || produced + 1 == request.max_new_tokens;
  }

  Engine& engine_;
  std::span<const Request> requests_;
  std::vector<Text> texts_;
  std::vector<std::size_t> slots_;  // request in each
  std::size_t next_ = 0;            // request that has no slot yet
  std::deque<Batch> pending_;
  TokenRing ring_;
};

std::vector<Generation> Engine::generate(std::span<const Request> requests) {
  check_requests(requests);
  prepare(requests);
  return Run(*this, requests).all();
}

}  // namespace ridge::inference
