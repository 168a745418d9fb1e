// The engine against the plain path: the same ids, whatever runs beside them and however memory is cut.
#include "inference/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "core/models/weights.h"
#include "core/nn/quantized_linear.h"
#include "kernels/fill.h"
#include "lora/adapter.h"
#include "tests/inference/decode_helpers.h"

namespace ridge::inference {
namespace {

using namespace test;

// Requests of unlike lengths, and what the plain path makes of each.
struct Case {
  std::vector<Request> requests;
  std::vector<std::vector<std::int32_t>> wanted;

  void add(models::Llama& model, std::int64_t length, std::int64_t new_tokens,
           const SamplingOptions& sampling = {}) {
    Request r;
    r.prompt = prompt_of(model, length, static_cast<std::int64_t>(requests.size()));
    r.max_new_tokens = new_tokens;
    r.sampling = sampling;
    requests.push_back(r);
    wanted.push_back(generate(model, r.prompt, {.max_new_tokens = new_tokens, .sampling = sampling}).ids);
  }
  void expect(models::Llama& model, const EngineOptions& options) const {
    Engine engine(model, options);
    const auto results = engine.generate(requests);
    ASSERT_EQ(results.size(), wanted.size());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_EQ(results[i].ids, wanted[i]) << "request " << i << ", slots " << options.slots << ", chunk "
                                           << options.prefill_chunk << ", ahead " << options.ahead;
      EXPECT_EQ(results[i].decoded, static_cast<std::int64_t>(wanted[i].size()) - 1);
    }
  }
};

Case five(models::Llama& model, const SamplingOptions& sampling = {}) {
  Case c;
  const std::int64_t lengths[] = {5, 17, 1, 9, 12}, tokens[] = {30, 7, 22, 1, 40};
  for (int i = 0; i < 5; ++i) c.add(model, lengths[i], tokens[i], sampling);
  return c;
}

class EngineModels : public testing::TestWithParam<const char*> {};

TEST_P(EngineModels, GreedyIsThePlainPaths) {
  const auto model = load_test_model(GetParam());
  const Case c = five(*model);
  c.expect(*model, {});
  c.expect(*model, {.slots = 2, .prefill_chunk = 4});
  c.expect(*model, {.slots = 3, .growable = true, .prefill_chunk = 1});
  c.expect(*model, {.slots = 5, .capacity = 100, .prefill_chunk = 7, .ahead = 1});
  c.expect(*model, {.slots = 8, .prefill_chunk = 3, .ahead = 3});
}

INSTANTIATE_TEST_SUITE_P(Models, EngineModels,
                         testing::Values("llama2", "llama3", "llama32", "llama_bias", "llama_dynamic",
                                         "llama_headdim", "llama_linear", "llama_yarn", "mqa", "mistral",
                                         "mistral_nemo", "qwen2", "qwen2_sliding", "qwen2_yarn", "sharded"),
                         [](const auto& info) { return std::string(info.param); });

// Activations and biases that no folder has.
TEST(Engine, EveryKindOfLayer) {
  for (const char* activation : {"silu", "gelu", "gelu_tanh"}) {
    models::ModelConfig config = tiny_decoder();
    config.activation = activation;
    config.mlp_bias = config.output_bias = config.qkv_bias = true;
    config.tied = config.activation == std::string("gelu");
    const auto model = random_model(config);
    five(*model).expect(*model, {.slots = 2, .prefill_chunk = 5});
  }
}

TEST(Engine, SamplesAsThePlainPath) {
  const auto model = load_test_model("llama3");
  for (const SamplingOptions& sampling : {SamplingOptions{.temperature = 1, .seed = 3},
                                          SamplingOptions{.temperature = 0.7, .top_k = 9, .seed = 4},
                                          SamplingOptions{.temperature = 1.5, .top_p = 0.8, .seed = 5},
                                          SamplingOptions{.temperature = 2, .seed = 6, .min_p = 0.1},
                                          SamplingOptions{.temperature = 0, .repetition_penalty = 1.3},
                                          SamplingOptions{.temperature = 1,
                                          .top_k = 40,
                                          .top_p = 0.95,
                                          .seed = 1,
                                          .min_p = 0.01,
                                          .repetition_penalty = 1.2}}) {
    const Case c = five(*model, sampling);
    c.expect(*model, {.slots = 2, .prefill_chunk = 8});
    c.expect(*model, {.slots = 4, .ahead = 1});
  }
}

TEST(Engine, EachRequestHasItsOwnSampling) {
  const auto model = load_test_model("llama2");
  Case c;
  c.add(*model, 6, 20);
  c.add(*model, 6, 20, {.temperature = 1, .seed = 8});
  c.add(*model, 3, 20, {.temperature = 0, .repetition_penalty = 1.5});
  c.add(*model, 8, 20, {.temperature = 1, .top_k = 5, .seed = 9});
  c.expect(*model, {.slots = 4});
  c.expect(*model, {.slots = 3, .ahead = 1});
}

TEST(Engine, IdsWithoutATokenAreNeverChosen) {
  const auto model = load_test_model("llama3");
  const SamplingOptions wild{.temperature = 5, .seed = 1};
  Request r{{1, 60, 20}, 60, wild};
  const auto wanted =
      generate(*model, r.prompt, {.max_new_tokens = 60, .sampling = wild, .vocabulary = 10}).ids;
  EXPECT_EQ(Engine(*model, {.vocabulary = 10}).generate(std::vector{r})[0].ids, wanted);
  r.sampling.repetition_penalty = 1.1;  // the prompt has an id beyond the vocabulary
  const auto results = Engine(*model, {.vocabulary = 10}).generate(std::vector{r});
  for (const std::int32_t id : results[0].ids) EXPECT_LT(id, 10);
}

// A cache that doubles on the way has what a static one has, also beside a text that began earlier.
TEST(Engine, GrowsWithoutAChange) {
  models::ModelConfig config = tiny_decoder();
  config.max_position = config.rope.max_position = 2048;
  const auto model = random_model(config);
  Case c;
  c.add(*model, 250, 320);
  c.add(*model, 3, 10);
  c.add(*model, 300, 20);
  c.expect(*model, {.slots = 2});
  Engine engine(*model, {.slots = 2, .growable = true});
  const auto results = engine.generate(c.requests);
  for (std::size_t i = 0; i < c.wanted.size(); ++i) EXPECT_EQ(results[i].ids, c.wanted[i]) << i;
  EXPECT_EQ(engine.capacity(), 570) << "512, then as much as is needed";
  Engine small(*model, {.growable = true});
  small.generate(std::vector{Request{{1, 2, 3}, 100}});
  EXPECT_EQ(small.capacity(), 103);
  EXPECT_EQ(small.cache_bytes(), 103 * small.cache_bytes_per_token());
}

TEST(Engine, AnswersAgain) {
  const auto model = load_test_model("mistral");
  const Case c = five(*model), d = five(*model, {.temperature = 1, .seed = 2, .repetition_penalty = 1.2});
  Engine engine(*model, {.slots = 2});
  for (const Case* each : {&c, &d, &c}) {
    const auto results = engine.generate(each->requests);
    for (std::size_t i = 0; i < each->wanted.size(); ++i) EXPECT_EQ(results[i].ids, each->wanted[i]) << i;
  }
  EXPECT_TRUE(engine.generate({}).empty());
  EXPECT_TRUE(engine.generate(std::vector{Request{{1, 2}, 0}})[0].ids.empty());
}

// A pass has no more room than the longest prompt so far needs.
TEST(Engine, APromptInOnePass) {
  const auto model = load_test_model("llama3");
  const std::int64_t endless = std::numeric_limits<std::int64_t>::max();
  five(*model).expect(*model, {.slots = 2, .prefill_chunk = endless});
  Engine engine(*model, {.prefill_chunk = endless});
  for (const std::int64_t length : {3, 100, 4, 120}) {
    const auto prompt = prompt_of(*model, length, 1);
    EXPECT_EQ(engine.generate(std::vector{Request{prompt, 8}})[0].ids,
              generate(*model, prompt, {.max_new_tokens = 8}).ids);
  }
}

TEST(Engine, EndsWhereItIsTold) {
  const auto model = load_test_model("llama3");
  const std::vector<std::int32_t> prompt{1, 7, 20};
  const auto whole = generate(*model, prompt, {.max_new_tokens = 40}).ids;
  const auto at = std::find_if(whole.begin() + 5, whole.end(), [&](std::int32_t id) {
    return std::find(whole.begin(), whole.begin() + 5, id) == whole.begin() + 5;
  });
  ASSERT_NE(at, whole.end());
  for (const int ahead : {0, 1, 2}) {
    Engine engine(*model, {.slots = 2, .ahead = ahead});
    std::vector<std::int32_t> heard;
    Request by_id{prompt, 40, {}, {99999, *at}}, by_call{prompt, 40}, never{prompt, 40};
    by_call.on_token = [&](std::int32_t id) {
      heard.push_back(id);
      return heard.size() < 3;
    };
    const auto results = engine.generate(std::vector{by_id, by_call, never, by_id});
    EXPECT_EQ(results[0].ids, std::vector<std::int32_t>(whole.begin(), at + 1)) << ahead;
    EXPECT_EQ(results[1].ids, std::vector<std::int32_t>(whole.begin(), whole.begin() + 3)) << ahead;
    EXPECT_EQ(heard, results[1].ids);
    EXPECT_EQ(results[2].ids, whole) << ahead;
    EXPECT_EQ(results[3].ids, results[0].ids) << ahead;
    EXPECT_GT(results[0].prefill_seconds, 0);
    EXPECT_GT(results[0].decode_seconds, 0);
  }
}

TEST(Engine, AdaptersTakePart) {
  const auto model = load_test_model("llama3");
  lora::LoraConfig config;
  config.rank = 3;
  config.alpha = 6;
  config.targets = {"q_proj", "down_proj", "up_proj"};
  const auto plain = generate(*model, prompt_of(*model, 5, 0), {.max_new_tokens = 30}).ids;
  lora::add_adapters(model->linears(), config, 5, model->device());
  randomize(*model, "lora_");
  const Case c = five(*model);
  EXPECT_NE(c.wanted[0], plain);
  c.expect(*model, {.slots = 3, .prefill_chunk = 6});
}

class EngineFormats : public testing::TestWithParam<const char*> {};

TEST_P(EngineFormats, QuantizedWeightsAreThePlainPaths) {
  models::ModelConfig config = tiny_decoder();
  config.hidden_size = 128;
  config.intermediate_size = 256;
  config.head_dim = config.rope.head_dim = 16;
  config.qkv_bias = true;
  const auto model = random_model(config);
  const auto before = generate(*model, prompt_of(*model, 5, 0), {.max_new_tokens = 30}).ids;
  quantize_linears(*model, kernels::parse_weight_format(GetParam()));
  const Case c = five(*model);
  c.expect(*model, {});
  c.expect(*model, {.slots = 5, .prefill_chunk = 7});
  EXPECT_EQ(five(*model).wanted, c.wanted) << "the layers are as they were";
}

INSTANTIATE_TEST_SUITE_P(Formats, EngineFormats,
                         testing::Values("int8", "fp8", "fp8-block", "nf4", "nf4-dq", "fp4", "int4",
                                         "int4-g32-zp"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// What a user is told, with both values, before anything is computed.
TEST(EngineMistakes, AreSaid) {
  const auto model = load_test_model("llama3");
  const auto said = [&](const Request& request, const EngineOptions& options = {}) -> std::string {
    bool heard = false;
    Request r = request;
    r.on_token = [&](std::int32_t) { return heard = true; };
    try {
      Engine(*model, options).generate(std::vector{Request{{1, 2}, 2, {}, {}, r.on_token}, r});
    } catch (const UserError& error) {
      EXPECT_FALSE(heard) << "work was lost";
      return error.what();
    }
    return "nothing";
  };
  const auto expect = [](const std::string& text, std::initializer_list<const char*> parts) {
    for (const char* part : parts)
      EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
  };
  expect(said({}), {"no tokens"});
  expect(said({{1, 67}, 3}), {"id 67", "67 rows"});
  expect(said({{-1}, 3}), {"id -1", "67 rows"});
  expect(said({std::vector<std::int32_t>(129, 1), 3}), {"129 tokens", "128"});
  expect(said({{1, 2, 3}, 30}, {.capacity = 32}), {"3 tokens", "30 new", "32"});
  expect(said({{1, 2}, 2, {.temperature = -1}}), {"--temperature is -1"});
  expect(said({{1, 2}, 2, {.temperature = std::numeric_limits<double>::quiet_NaN()}}),
         {"--temperature is nan"});
  expect(said({{1, 2}, 2, {.top_p = 0}}), {"--top-p is 0"});
  expect(said({{1, 2}, 2, {.min_p = 1.5}}), {"--min-p is 1.5"});
  expect(said({{1, 2}, 2, {.repetition_penalty = 0}}), {"--repetition-penalty is 0"});
  expect(said({{1, 2}, -1}), {"-1 new tokens"});
  expect(said({{1, 2}, 2}, {.prefill_chunk = 0}), {"prefill chunk is 0"});
  expect(said({{1, 2}, 2}, {.slots = 0}), {"sequences at once is 0"});
  expect(said({{1, 2}, (std::int64_t{1} << 30) - 2}), {"KV cache", "1073741824 tokens", "GiB free"});
  expect(said({{1, 2}, std::int64_t{1} << 62}), {"KV cache", "at most 1073741824"});
  const std::int64_t endless = std::numeric_limits<std::int64_t>::max();
  expect(said({{1, 2}, endless}), {"a prompt of 2 tokens", "9223372036854775807 new", "at most 1073741824"});
  expect(said({{1, 2}, endless}, {.capacity = 32}), {"9223372036854775807 new", "at most 1073741824"});
}

TEST(EngineMistakes, WeightsThatAreNoNumbers) {
  for (const int ahead : {0, 1}) {
    const auto model = load_test_model("llama2");
    for (const nn::Parameter& p : model->parameters()) {
      if (p.name == "model.norm.weight")
        *p.value = Tensor::full(p.value->shape(), std::numeric_limits<double>::quiet_NaN(), DType::f32,
                                model->device());
    }
    Engine engine(*model, {.ahead = ahead});
    EXPECT_THROW(engine.generate(std::vector{Request{{1, 2}, 5}}), UserError);
  }
}

// What is queued by then looks an id up that there is not: that is no second mistake.
TEST(EngineMistakes, ALaterLogitThatIsNoNumber) {
  const auto model = random_model(tiny_decoder());
  const std::vector<std::int32_t> prompt{1, 7, 20};
  const auto ids = generate(*model, prompt, {.max_new_tokens = 40}).ids;
  const auto seen = [&](std::size_t i) {
    return std::count(prompt.begin(), prompt.end(), ids[i]) > 0 ||
           std::find(ids.begin(), ids.end(), ids[i]) != ids.begin() + static_cast<std::ptrdiff_t>(i);
  };
  std::size_t i = 2;
  while (i < ids.size() && seen(i)) ++i;
  ASSERT_LT(i, ids.size() - 5);
  const Tensor row = model->embedding_slot()->table().detached().sliced(0, ids[i], ids[i] + 1);
  row.copy_from(
      Tensor::full(row.shape(), std::numeric_limits<double>::quiet_NaN(), DType::f32, model->device()));
  for (const int ahead : {0, 1}) {
    Engine engine(*model, {.ahead = ahead});
    std::string said;
    try {
      engine.generate(std::vector{Request{prompt, 40}});
    } catch (const UserError& error) {
      said = error.what();
    }
    if (ahead == 0 || on_gpu()) {  // the CPU has run what is queued
      EXPECT_NE(said.find(fmt::format("new token {}: ", i + 1)), std::string::npos) << said;
    }
    EXPECT_FALSE(said.empty());
    EXPECT_NO_THROW(wait_for_device()) << "of a fault that was told";
    const auto again = engine.generate(std::vector{Request{prompt, static_cast<std::int64_t>(i)}})[0].ids;
    EXPECT_EQ(again, std::vector<std::int32_t>(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(i)));
  }
}

TEST(EngineMistakes, AModelInF64IsRefused) {
  models::Llama model(tiny_decoder(), DType::f64, Device::cpu);
  EXPECT_THROW(Engine(model, {}), UserError);
}

}  // namespace
}  // namespace ridge::inference
