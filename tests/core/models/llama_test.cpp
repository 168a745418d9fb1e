#include "core/models/llama.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "core/autograd.h"
#include "core/base/launch.h"
#include "core/ops/elementwise.h"
#include "tests/core/models/reference.h"

namespace ridge {
namespace {

using autograd::NoGradScope;
using test::data_path;
using test::range_error;

// "llama3_long" of logits_llama3_long.safetensors; adapters have tests of their own.
std::vector<std::string> logit_files() {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(data_path("expected"))) {
    const std::string stem = entry.path().stem().string();
    if (stem.starts_with("logits_") && !stem.starts_with("logits_adapter_")) names.insert(stem.substr(7));
  }
  return {names.begin(), names.end()};
}

struct Reference {
  std::string folder;
  Tensor ids;     // [B, T] i32
  Tensor logits;  // [B, T, V]

  explicit Reference(const std::string& name) {
    const bool is_long = name.ends_with("_long");
    const std::string model = is_long ? name.substr(0, name.size() - 5) : name;
    folder = model == "stories260k" ? test::stories_folder() : data_path("models/" + model);
    const SafetensorsFile file = SafetensorsFile::open(data_path("expected/logits_" + name + ".safetensors"));
    ids = test::read_tensor(file, "ids").to(DType::i32);
    logits = test::read_tensor(file, "logits");
  }
  std::int64_t batch() const { return ids.dim(0); }
  std::int64_t length() const { return ids.dim(1); }
  Tensor part(std::int64_t begin, std::int64_t end) const { return ids.sliced(1, begin, end); }
  Tensor logits_of(std::int64_t begin, std::int64_t end) const { return logits.sliced(1, begin, end); }
};

class LlamaReference : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    reference = std::make_unique<Reference>(GetParam());
    if (!test::have(reference->folder)) GTEST_SKIP() << reference->folder << " is not there";
    model = test::load(reference->folder);
  }
  std::unique_ptr<Reference> reference;
  std::unique_ptr<models::Llama> model;
};

TEST(LlamaReferences, AreThere) { EXPECT_GE(logit_files().size(), 25u); }

TEST_P(LlamaReference, LogitsAreThoseOfTransformers) {
  const NoGradScope no_grad;
  const double error = range_error(model->logits(reference->ids), reference->logits);
  RecordProperty("error", std::to_string(error * 1e9) + "e-9 of the range");
  EXPECT_LE(error, 1e-5);  // the promise is 1e-4
}

TEST_P(LlamaReference, Bf16FollowsWithinItsRounding) {
  const NoGradScope no_grad;
  const auto half = test::load(reference->folder, DType::bf16);
  const Tensor logits = half->logits(reference->ids);
  EXPECT_EQ(logits.dtype(), DType::bf16);
  const double error = range_error(logits, reference->logits);
  EXPECT_LE(error, 0.05);
  EXPECT_GT(error, 1e-5);  // it does compute in bf16
}

// Dynamic scaling turns new keys by other angles once the sequence is longer than the model was made for.
bool angles_move(const models::Llama& model, std::int64_t length) {
  const nn::RopeConfig& rope = model.config().rope;
  return rope.scaling.kind == kernels::RopeScaling::Kind::dynamic && length > rope.max_position;
}

TEST_P(LlamaReference, DecodingTokenByTokenIsTheFullForward) {
  if (angles_move(*model, reference->length())) GTEST_SKIP() << "keys in the cache keep their angles";
  const NoGradScope no_grad;
  nn::KvCache cache = model->make_cache(reference->batch(), reference->length());
  double worst = 0;
  for (std::int64_t t = 0; t < reference->length(); ++t) {
    EXPECT_EQ(cache.length(), t);
    const Tensor logits = model->logits(reference->part(t, t + 1), &cache);
    worst = std::max(worst, test::max_difference(logits, reference->logits_of(t, t + 1)));
  }
  EXPECT_LE(worst / test::range_of(reference->logits), 1e-5);
}

TEST_P(LlamaReference, PrefillInPiecesThenStepsIsTheFullForward) {
  if (angles_move(*model, reference->length())) GTEST_SKIP() << "keys in the cache keep their angles";
  const NoGradScope no_grad;
  nn::KvCache cache = model->make_cache(reference->batch(), reference->length() + 3);  // room to spare
  const double range = test::range_of(reference->logits);
  const auto expect_piece = [&](std::int64_t begin, std::int64_t end) {
    const Tensor logits = model->logits(reference->part(begin, end), &cache);
    EXPECT_LE(test::max_difference(logits, reference->logits_of(begin, end)) / range, 1e-5) << begin;
  };
  expect_piece(0, 7);
  expect_piece(7, 9);
  expect_piece(9, reference->length() - 3);
  const std::int64_t last = reference->length() - 1;
  expect_piece(reference->length() - 3, last);
  const Tensor end = model->last_logits(reference->part(last, last + 1), &cache);
  EXPECT_LE(
      test::max_difference(
          end, reference->logits_of(last, last + 1).as_contiguous().reshaped({reference->batch(), -1})) /
          range,
      1e-5);
  EXPECT_EQ(cache.length(), reference->length());
}

// -log softmax(logits)[target] in f64, of row b and token t.
double nll(const Tensor& logits, std::int64_t b, std::int64_t t, std::int32_t target) {
  const auto row = test::values_of(logits.sliced(0, b, b + 1).sliced(1, t, t + 1));
  double sum = 0;
  for (const double x : row) sum += std::exp(x - row[0]);
  return std::log(sum) + row[0] - row[static_cast<std::size_t>(target)];
}

TEST_P(LlamaReference, LossesAreThoseOfItsLogits) {
  const std::int64_t B = reference->batch(), T = reference->length();
  const Tensor ids = reference->ids, targets = Tensor::full({B, T}, -100, DType::i32);
  std::vector<double> want(static_cast<std::size_t>(B * T), 0);
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t t = 0; t + 1 < T; ++t) {
      if (t % 5 == 3) continue;  // stays ignored, as does the last
      const auto i = static_cast<std::size_t>(b * T + t);
      targets.span<std::int32_t>()[i] = ids.span<std::int32_t>()[i + 1];
      want[i] = nll(reference->logits, b, t, targets.span<std::int32_t>()[i]);
    }
  }
  const auto got = test::values_of(model->token_losses(ids, targets));
  ASSERT_EQ(got.size(), want.size());
  double sum = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], 2e-4) << "target " << i;
    sum += want[i];
  }
  EXPECT_NEAR(model->loss(ids, targets, 0.25).item(), 0.25 * sum, 1e-5 * sum);
}

INSTANTIATE_TEST_SUITE_P(All, LlamaReference, ::testing::ValuesIn(logit_files()),
                         [](const auto& test) { return test.param; });

TEST(Llama, WeightsReadInPlaceOrCopiedGiveTheSameBits) {
  const NoGradScope no_grad;
  const Reference r("llama3");
  const auto mapped = test::load(r.folder, DType::f32, models::LoadMode::read);
  const auto copied = test::load(r.folder, DType::f32, models::LoadMode::train);
  EXPECT_TRUE(test::same_bits(mapped->logits(r.ids), copied->logits(r.ids)));
  EXPECT_FALSE(copied->parameters().front().value->storage()->borrowed());
}

TEST(Llama, RowsOfABatchDoNotMix) {
  const NoGradScope no_grad;
  const Reference r("mistral");
  const auto model = test::load(r.folder);
  const Tensor second = model->logits(r.ids.sliced(0, 1, 2));
  EXPECT_LE(test::max_difference(second, r.logits.sliced(0, 1, 2)) / test::range_of(r.logits), 5e-6);
}

TEST(Llama, LaterTokensDoNotChangeEarlierLogits) {
  const NoGradScope no_grad;
  const Reference r("qwen2_sliding");
  const auto model = test::load(r.folder);
  const Tensor changed = r.ids.contiguous_copy();
  auto ids = changed.span<std::int32_t>();
  ids[static_cast<std::size_t>(r.length() - 1)] = (ids[static_cast<std::size_t>(r.length() - 1)] + 1) % 71;
  const std::int64_t last = r.length() - 1;
  const Tensor before = model->logits(r.ids), after = model->logits(changed);
  EXPECT_TRUE(test::same_bits(before.sliced(1, 0, last), after.sliced(1, 0, last)));
  EXPECT_FALSE(test::same_bits(before, after));
}

TEST(Llama, AFullCacheIsAnError) {
  const NoGradScope no_grad;
  const Reference r("llama3");
  const auto model = test::load(r.folder);
  nn::KvCache cache = model->make_cache(2, 4);
  model->logits(r.part(0, 3), &cache);
  EXPECT_THROW(model->logits(r.part(3, 5), &cache), Error);
}

TEST(Llama, IdsOutsideTheEmbeddingAreAnError) {
  const NoGradScope no_grad;
  const auto model = test::load(data_path("models/llama3"));
  for (const std::int32_t bad : {-1, 67, 1 << 30}) {
    const Tensor ids = Tensor::from(std::vector<std::int32_t>{1, bad}, {1, 2});
    const auto run = [&] {
      model->logits(ids);
      test::wait_for_device();
    };
    EXPECT_ANY_THROW(run()) << bad;
  }
}

TEST(Llama, InitialWeightsAreRandomOfTheConfigsSpreadAndRepeatable) {
  models::ModelConfig config = models::ModelConfig::load(data_path("models/qwen2"));
  config.initializer_range = 0.5;
  models::Llama a(config, DType::f32, test::test_device()), b(config, DType::f32, test::test_device()),
      other(config, DType::f32, test::test_device());
  a.initialize(7);
  b.initialize(7);
  other.initialize(8);
  for (const nn::Parameter& p : a.parameters()) {
    EXPECT_TRUE(test::same_bits(*p.value, test::parameter(b, p.name))) << p.name;
    const auto values = test::values_of(*p.value);
    double sum = 0, squares = 0;
    for (const double v : values) sum += v, squares += v * v;
    const double n = static_cast<double>(values.size());
    if (p.value->ndim() == 2) {
      EXPECT_FALSE(test::same_bits(*p.value, test::parameter(other, p.name))) << p.name;
      EXPECT_NEAR(sum / n, 0, 4 * 0.5 / std::sqrt(n)) << p.name;
      EXPECT_NEAR(std::sqrt(squares / n), 0.5, 4 * 0.5 / std::sqrt(2 * n)) << p.name;
    } else {
      EXPECT_EQ(sum, p.name.ends_with(".bias") ? 0 : n) << p.name;
    }
  }
  EXPECT_FALSE(test::same_bits(test::parameter(a, "model.layers.0.mlp.up_proj.weight"),
                               test::parameter(a, "model.layers.0.mlp.gate_proj.weight")));
}

using models::Recompute;
using Tensors = std::map<std::string, Tensor>;

// Leaves the gradients of one micro-batch a row, for all parameters; their sum of losses.
double pass_over(models::Llama& model, const Reference& r, std::int64_t begin, std::int64_t end) {
  double sum = 0;
  for (std::int64_t row = begin; row < end; ++row) {
    const Tensor ids = r.ids.sliced(0, row, row + 1);
    const Tensor loss = model.loss(ids.sliced(1, 0, r.length() - 1), ids.sliced(1, 1, r.length()), 0.1);
    sum += loss.item();
    autograd::backward(loss);
  }
  return sum;
}

struct Trained {
  double loss = 0;
  Tensors grads;
};

// Makes all parameters leaves. Where `placed`, their gradients lie side by side in one block of memory, in
// which something stands before the first of them.
void make_leaves(models::Llama& model, bool placed) {
  std::int64_t total = 0, begin = 0;
  for (const nn::Parameter& p : model.parameters()) {
    autograd::set_requires_grad(*p.value, true);
    total += p.value->numel();
  }
  if (!placed) return;
  const Tensor block = Tensor::full({total}, 1e30, DType::f32, model.device());
  for (const nn::Parameter& p : model.parameters()) {
    const std::int64_t end = begin + p.value->numel();
    autograd::leaf_of(*p.value).buffer = block.sliced(0, begin, end).reshaped(p.value->shape());
    begin = end;
  }
}

Trained train(const Reference& r, DType dtype, Recompute recompute, std::int64_t begin, std::int64_t end,
              bool placed = false) {
  const auto model = test::load(r.folder, dtype, models::LoadMode::train);
  model->set_recompute(recompute);
  make_leaves(*model, placed);
  Trained out;
  out.loss = pass_over(*model, r, begin, end);
  for (const nn::Parameter& p : model->parameters()) out.grads[p.name] = autograd::grad_of(*p.value);
  return out;
}

// Families, a tied table, biases, several layers of one window, odd sizes.
class Training : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Models, Training,
                         ::testing::Values("llama3", "llama32", "llama_bias", "llama_headdim", "mqa", "qwen2",
                                           "qwen2_sliding", "mistral"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(Training, SelectiveRecomputeChangesNoBit) {
  const Reference r(GetParam());
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Trained kept = train(r, dtype, Recompute::none, 0, 2);
    const Trained again = train(r, dtype, Recompute::selective, 0, 2);
    EXPECT_EQ(again.loss, kept.loss);
    for (const auto& [name, grad] : kept.grads)
      EXPECT_TRUE(test::same_bits(again.grads.at(name), grad)) << name << " in " << name_of(dtype);
  }
}

// The sum at a block's end is fused with the norm after it where nothing is recomputed: another rounding.
TEST_P(Training, RecomputedBlocksAddUpMicroBatches) {
  const Reference r(GetParam());
  const Trained kept = train(r, DType::f32, Recompute::none, 0, 2);
  const Trained first = train(r, DType::f32, Recompute::blocks, 0, 1),
                second = train(r, DType::f32, Recompute::blocks, 1, 2);
  for (const bool placed : {false, true}) {
    const Trained both = train(r, DType::f32, Recompute::blocks, 0, 2, placed);
    EXPECT_NEAR(both.loss, kept.loss, 1e-6 * kept.loss);
    for (const auto& [name, grad] : kept.grads) {
      EXPECT_LE(test::normalized_error(both.grads.at(name), grad), 1e-4) << name;
      const Tensor sum = ops::add(first.grads.at(name), second.grads.at(name));
      EXPECT_LE(test::normalized_error(both.grads.at(name), sum), 1e-4) << name;
    }
  }
}

TEST_P(Training, PlacesForGradientsChangeNothing) {
  const Reference r(GetParam());
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Trained apart = train(r, dtype, Recompute::selective, 0, 2);
    const Trained placed = train(r, dtype, Recompute::selective, 0, 2, true);
    EXPECT_EQ(placed.loss, apart.loss);
    for (const auto& [name, grad] : apart.grads)
      EXPECT_LE(test::normalized_error(placed.grads.at(name), grad), 1e-4) << name << name_of(dtype);
  }
}

TEST(Llama, RecomputeKeepsLessUntilBackward) {
  const Reference r("llama_bias");
  const auto kept_by = [&](Recompute recompute) {
    const auto model = test::load(r.folder, DType::f32, models::LoadMode::train);
    model->set_recompute(recompute);
    for (const nn::Parameter& p : model->parameters()) autograd::set_requires_grad(*p.value, true);
    model->loss(r.ids, r.ids, 1);  // makes the rotary tables
    const std::int64_t before = memory_stats(test::test_device()).live;
    const Tensor loss = model->loss(r.ids, r.ids, 1);
    return memory_stats(test::test_device()).live - before;
  };
  const std::int64_t block_inputs = 2 * 4 * r.batch() * r.length() * 32;  // two blocks of f32 rows
  EXPECT_LT(kept_by(Recompute::blocks), kept_by(Recompute::none) / 3);
  EXPECT_GE(kept_by(Recompute::blocks), block_inputs);
  EXPECT_LT(kept_by(Recompute::selective), kept_by(Recompute::none) * 3 / 4);
  EXPECT_GT(kept_by(Recompute::selective), kept_by(Recompute::blocks));
}

// A 1B shape without memory: forward and backward on meta state the FLOPs that the config promises.
TEST(Llama, WorkOnMetaIsSixOperationsAParameterAndToken) {
  const models::ModelConfig config = models::ModelConfig::parse(
      R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
          "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
          "tie_word_embeddings": true})",
      "1B");
  const std::int64_t live = memory_stats(test::test_device()).live;
  models::Llama model(config, DType::bf16, Device::meta);
  for (const nn::Parameter& p : model.parameters()) autograd::set_requires_grad(*p.value, true);
  Stream& stream = current_stream(Device::meta);
  Profiler profiler;
  const ProfilerScope scope(stream, &profiler);
  const std::int64_t T = 2048;
  const Tensor ids = Tensor::empty({1, T}, DType::i32, Device::meta);
  autograd::backward(model.loss(ids, ids, 1));
  double flops = 0;
  for (const LaunchRecord& r : profiler.records()) flops += r.flops;
  EXPECT_NEAR(flops / (config.train_flops_per_token(T) * static_cast<double>(T)), 1, 0.1);
  EXPECT_LT(memory_stats(test::test_device()).live - live, 1 << 20);
}

}  // namespace
}  // namespace ridge
