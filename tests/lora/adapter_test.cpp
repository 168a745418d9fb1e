#include "lora/adapter.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "core/autograd.h"
#include "core/random_state.h"
#include "lora/lora_linear.h"
#include "tests/core/io/io_test_util.h"
#include "tests/core/models/reference.h"
#include "tests/core/ops/jacobian.h"

namespace ridge::lora {
namespace {

namespace fs = std::filesystem;
using autograd::NoGradScope;
using test::data_path;
using test::expect_contains;
using test::message_of;
using test::random_tensor;
using test::TemporaryFolder;

const std::string kBase = data_path("models/llama3");
const std::string kUpA = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight";

std::string folder_of(const std::string& name) {
  return data_path(name == "stories260k" ? "models/stories260k_adapter" : "models/adapters/" + name);
}

struct Adapted {
  std::unique_ptr<models::Llama> model;
  LoraConfig config;
  std::vector<std::string> notes;
};

Adapted load(const std::string& base, const std::string& adapter, Device device = test::test_device()) {
  Adapted a;
  a.model = test::load(base, DType::f32, models::LoadMode::train, device);
  a.config = load_adapter(a.model->linears(), adapter, a.notes, device);
  return a;
}

class PeftReference : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string name = GetParam();
    const std::string base = name == "stories260k" ? test::stories_folder() : kBase;
    if (!test::have(base)) GTEST_SKIP() << base << " is not there";
    adapted = load(base, folder_of(name));
    const SafetensorsFile file =
        SafetensorsFile::open(data_path("expected/logits_adapter_" + name + ".safetensors"));
    ids = test::read_tensor(file, "ids");
    logits = test::read_tensor(file, "logits");
    merged = test::read_tensor(file, "logits_merged");
  }
  Adapted adapted;
  Tensor ids, logits, merged;
};

TEST_P(PeftReference, LogitsWithTheAdapterApartAndMerged) {
  const NoGradScope no_grad;
  EXPECT_TRUE(adapted.notes.empty()) << adapted.notes.front();
  const double apart = test::range_error(adapted.model->logits(ids), logits);
  EXPECT_LE(apart, 1e-5);
  const nn::Parameters before = adapted.model->parameters();
  const auto adapters = std::count_if(before.begin(), before.end(), [](const nn::Parameter& p) {
    return p.name.ends_with(".lora_A.weight");
  });
  EXPECT_EQ(merge_adapters(adapted.model->linears()), adapters);
  EXPECT_GT(adapters, 0);
  EXPECT_EQ(merge_adapters(adapted.model->linears()), 0);
  for (const nn::Parameter& p : adapted.model->parameters())
    EXPECT_FALSE(is_adapter_parameter(p.name)) << p.name;
  const double after = test::range_error(adapted.model->logits(ids), merged);
  EXPECT_LE(after, 1e-5);
  RecordProperty("error", std::to_string(std::max(apart, after) * 1e9) + "e-9 of the range");
}

TEST_P(PeftReference, TheAdapterMatters) {
  const NoGradScope no_grad;
  const std::string base = std::string(GetParam()) == "stories260k" ? test::stories_folder() : kBase;
  EXPECT_GT(test::range_error(test::load(base)->logits(ids), logits), 1e-2);
}

TEST_P(PeftReference, WrittenAgainItHasTheSameTensorsAndMeaning) {
  const TemporaryFolder folder;
  const std::string copy = folder / "copy";
  save_adapter(adapted.model->linears(), adapted.config, copy);
  const SafetensorsFile was = SafetensorsFile::open(folder_of(GetParam()) + "/adapter_model.safetensors");
  const SafetensorsFile now = SafetensorsFile::open(copy + "/adapter_model.safetensors");
  ASSERT_EQ(was.entries().size(), now.entries().size());
  for (std::size_t i = 0; i < was.entries().size(); ++i) {
    const TensorEntry &a = was.entries()[i], &b = now.entries()[i];
    EXPECT_EQ(a.name, b.name);
    EXPECT_EQ(a.shape, b.shape);
    EXPECT_EQ(a.dtype, b.dtype);
    EXPECT_TRUE(std::equal(a.data.begin(), a.data.end(), b.data.begin(), b.data.end())) << a.name;
  }
  const auto before = nlohmann::json::parse(test::read_text(folder_of(GetParam()) + "/adapter_config.json"));
  const auto after = nlohmann::json::parse(test::read_text(copy + "/adapter_config.json"));
  for (const char* key : {"peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias",
                          "target_modules", "rank_pattern", "alpha_pattern", "layers_to_transform",
                          "base_model_name_or_path", "fan_in_fan_out", "modules_to_save", "use_dora"})
    EXPECT_EQ(after.at(key), before.at(key)) << key;
  const std::string base = std::string(GetParam()) == "stories260k" ? test::stories_folder() : kBase;
  const Adapted again = load(base, copy);
  const NoGradScope no_grad;
  EXPECT_TRUE(test::same_bits(again.model->logits(ids), adapted.model->logits(ids)));
  EXPECT_EQ(folder.names(), std::vector<std::string>{"copy"});
}

INSTANTIATE_TEST_SUITE_P(All, PeftReference,
                         ::testing::Values("plain", "rslora", "patterns", "regex", "all_linear", "layers",
                                           "stories260k"),
                         [](const auto& test) { return std::string(test.param); });

TEST(AddAdapters, NewOnesChangeNothingYetAndRepeatFromTheirSeed) {
  const NoGradScope no_grad;
  LoraConfig config;
  config.targets = {"q_proj", "o_proj", "lm_head"};
  config.rank = 5;
  const Tensor ids = Tensor::from(std::vector<std::int32_t>{3, 1, 4, 1, 5}, {1, 5});
  const auto plain = test::load(kBase);
  const Tensor before = plain->logits(ids);
  const auto a = test::load(kBase), b = test::load(kBase), other = test::load(kBase);
  EXPECT_EQ(add_adapters(a->linears(), config, 9, test::test_device()), 5);  // two a layer, and lm_head
  add_adapters(b->linears(), config, 9, test::test_device());
  add_adapters(other->linears(), config, 10, test::test_device());
  EXPECT_EQ(test::max_difference(a->logits(ids), before), 0);
  std::int64_t trained = 0;
  for (const nn::Parameter& p : a->parameters()) {
    if (!is_adapter_parameter(p.name)) continue;
    ++trained;
    const Tensor& twin = test::parameter(*b, p.name);
    EXPECT_TRUE(test::same_bits(*p.value, twin)) << p.name;
    EXPECT_EQ(p.value->dtype(), DType::f32);
    const bool is_a = p.name.ends_with(".lora_A.weight");
    EXPECT_EQ(test::same_bits(*p.value, test::parameter(*other, p.name)), !is_a) << p.name;
    double most = 0;
    for (const double x : test::values_of(*p.value)) most = std::max(most, std::fabs(x));
    const double bound = is_a ? 1 / std::sqrt(static_cast<double>(p.value->dim(1))) : 0;
    EXPECT_LE(most, bound) << p.name;
    EXPECT_GE(most, 0.9 * bound) << p.name;
  }
  EXPECT_EQ(trained, 10);
  const auto weight = [&](int layer) {
    return test::parameter(*a, fmt::format("model.layers.{}.self_attn.q_proj.lora_A.weight", layer));
  };
  EXPECT_FALSE(test::same_bits(weight(0), weight(1)));
}

TEST(AddAdapters, TargetsThatMatchNothingAreNamed) {
  LoraConfig config;
  config.targets = {"query", "key"};
  const auto model = test::load(kBase);
  const std::string message =
      message_of([&] { add_adapters(model->linears(), config, 0, test::test_device()); });
  for (const char* part : {"query, key", "15", "model.layers.0.self_attn.q_proj"})
    expect_contains(message, part);
  config.targets = {};
  config.target_pattern = "query.*";
  expect_contains(message_of([&] { add_adapters(model->linears(), config, 0, test::test_device()); }),
                  "query.*");
}

TEST(AddAdapters, ASecondAdapterIsAnError) {
  Adapted a = load(kBase, folder_of("plain"));
  expect_contains(message_of([&] { add_adapters(a.model->linears(), a.config, 0, test::test_device()); }),
                  "merge");
}

TEST(AddAdapters, OnMetaTakeNoMemory) {
  models::Llama model(models::ModelConfig::load(kBase), DType::f32, Device::meta);
  const std::int64_t live = memory_stats(Device::cpu).live;
  LoraConfig config;
  config.targets = {"all-linear"};
  EXPECT_EQ(add_adapters(model.linears(), config, 0, Device::meta), 14);
  EXPECT_EQ(memory_stats(Device::cpu).live, live);
}

using Tensors = std::map<std::string, Tensor>;

struct Trained {
  double loss = 0;
  Tensors grads;  // of A and B
};

// Two micro-batches of one row through adapters on all linears of a frozen base. `placed`: gradients lie side
// by side in one block of memory.
Trained train(DType dtype, models::Recompute recompute, double dropout, bool placed) {
  const auto model = test::load(kBase, dtype, models::LoadMode::train);
  model->set_recompute(recompute);
  std::vector<std::string> notes;
  LoraConfig config = read_adapter_config(folder_of("all_linear"), notes);
  config.dropout = dropout;
  add_adapters(model->linears(), config, 3, model->device());
  const Tensor block = Tensor::full({1 << 16}, 1e30, DType::f32, model->device());
  std::int64_t begin = 0;
  for (const nn::Parameter& p : model->parameters()) {
    if (!is_adapter_parameter(p.name)) continue;
    if (p.name.ends_with(".lora_B.weight"))  // zeros would leave A without a gradient
      p.value->copy_from(random_tensor(p.value->shape(), static_cast<std::uint64_t>(begin), -0.1, 0.1));
    autograd::set_requires_grad(*p.value, true);
    const std::int64_t end = begin + p.value->numel();
    if (placed) autograd::leaf_of(*p.value).buffer = block.sliced(0, begin, end).reshaped(p.value->shape());
    begin = end;
  }
  Trained out;
  for (const std::int64_t row : {0, 1}) {
    random_state() = {3, 0, row, 0};
    const Tensor ids = Tensor::from(std::vector<std::int32_t>{3, 1, 4, 1, 5, 9, 2, 6}, {1, 8});
    const Tensor loss = model->loss(ids.sliced(1, row, row + 6), ids.sliced(1, row + 1, row + 7), 0.2);
    out.loss += loss.item();
    autograd::backward(loss);
  }
  for (const nn::Parameter& p : model->parameters()) {
    EXPECT_EQ(p.value->requires_grad(), is_adapter_parameter(p.name)) << p.name;
    if (is_adapter_parameter(p.name)) out.grads[p.name] = autograd::grad_of(*p.value);
  }
  return out;
}

class TrainedAdapters : public ::testing::TestWithParam<std::tuple<DType, double>> {
 protected:
  Trained run(models::Recompute recompute, bool placed = false) const {
    return train(std::get<0>(GetParam()), recompute, std::get<1>(GetParam()), placed);
  }
};
INSTANTIATE_TEST_SUITE_P(All, TrainedAdapters,
                         ::testing::Combine(::testing::Values(DType::f32, DType::bf16),
                                            ::testing::Values(0, 0.3)),
                         [](const auto& test) {
                           return std::string(name_of(std::get<0>(test.param))) +
                                  (std::get<1>(test.param) > 0 ? "_dropout" : "");
                         });

TEST_P(TrainedAdapters, SelectiveRecomputeChangesNoBit) {
  const Trained kept = run(models::Recompute::none), again = run(models::Recompute::selective);
  EXPECT_EQ(again.loss, kept.loss);
  EXPECT_EQ(kept.grads.size(), 28u);
  for (const auto& [name, grad] : kept.grads) {
    EXPECT_GT(test::range_of(grad), 0) << name;
    EXPECT_TRUE(test::same_bits(again.grads.at(name), grad)) << name;
  }
}

// Another rounding where a block's sum is not fused with the norm after it.
TEST_P(TrainedAdapters, RecomputedBlocksAndPlacesForGradientsAddUpTheSame) {
  const double tolerance = std::get<0>(GetParam()) == DType::f32 ? 1e-4 : 0.1;
  const Trained kept = run(models::Recompute::none);
  for (const bool placed : {false, true}) {
    const Trained again = run(models::Recompute::blocks, placed);
    EXPECT_NEAR(again.loss, kept.loss, tolerance * kept.loss);
    for (const auto& [name, grad] : kept.grads)
      EXPECT_LE(test::normalized_error(again.grads.at(name), grad), tolerance) << name;
  }
}

// A copy of an adapter in which config and tensors can be changed.
class Copy {
 public:
  explicit Copy(const std::string& name)
      : config(nlohmann::json::parse(test::read_text(folder_of(name) + "/adapter_config.json"))),
        source_(SafetensorsFile::open(folder_of(name) + "/adapter_model.safetensors")),
        entries(source_.entries()) {}
  nlohmann::json config;

 private:
  SafetensorsFile source_;

 public:
  std::vector<TensorEntry> entries;
  TensorEntry& at(const std::string& name) {
    return *std::find_if(entries.begin(), entries.end(), [&](auto& e) { return e.name == name; });
  }
  std::string error() const {
    test::write_text(folder_ / "adapter_config.json", config.dump());
    write_safetensors(folder_ / "adapter_model.safetensors", entries);
    const std::string message = message_of([&] { load(kBase, folder_.path()); });
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }
  const TemporaryFolder& folder() const { return folder_; }

 private:
  TemporaryFolder folder_;
};

TEST(LoadAdapter, ARankThatDisagreesWithItsTensorsIsNamed) {
  Copy copy("all_linear");
  copy.config["r"] = 6;
  const std::string message = copy.error();
  for (const char* part : {"adapter_model.safetensors", "q_proj.lora_A.weight", "[4, 48]", "[6, 48]"})
    expect_contains(message, part);
}

TEST(LoadAdapter, AnAdapterOfAnotherBaseIsNamed) {
  Copy copy("all_linear");
  copy.at(kUpA).shape = {48, 4};  // as many elements
  const std::string message = copy.error();
  for (const char* part : {kUpA.c_str(), "[48, 4]", "[4, 48]"}) expect_contains(message, part);
}

TEST(LoadAdapter, AMissingTensorIsNamed) {
  Copy copy("all_linear");
  std::erase_if(copy.entries, [](const TensorEntry& e) { return e.name == kUpA; });
  const std::string message = copy.error();
  for (const char* part : {"adapter_model.safetensors", kUpA.c_str(), "missing"})
    expect_contains(message, part);
}

TEST(LoadAdapter, ATensorThatNobodyTargetsIsNamed) {
  Copy copy("all_linear");
  copy.config["target_modules"] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"};
  expect_contains(copy.error(), "up_proj.lora_");
  Copy deeper("plain");  // of a base with more layers
  TensorEntry extra = deeper.entries.front();
  extra.name = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight";
  deeper.entries.push_back(extra);
  expect_contains(deeper.error(), extra.name);
}

TEST(LoadAdapter, TargetsThatMatchNothingAreNamed) {
  Copy copy("plain");
  copy.config["target_modules"] = {"c_attn"};
  expect_contains(copy.error(), "c_attn");
}

TEST(LoadAdapter, ATypeThatIsNotReadIsNamed) {
  Copy copy("plain");
  copy.entries.front().dtype = "I32";
  expect_contains(copy.error(), "I32");
}

TEST(LoadAdapter, MissingFilesAreNamed) {
  const TemporaryFolder folder;
  expect_contains(message_of([&] { load(kBase, folder.path()); }), folder / "adapter_config.json");
  test::write_text(folder / "adapter_config.json", "{}");
  expect_contains(message_of([&] { load(kBase, folder.path()); }), folder / "adapter_model.safetensors");
}

TEST(LoadAdapter, HalfPrecisionTensorsAreWidened) {
  Copy copy("plain");
  const Adapted want = load(kBase, folder_of("plain"));
  std::vector<std::vector<bf16>> halves;
  for (TensorEntry& entry : copy.entries) {
    std::vector<float> values(entry.data.size() / 4);
    std::memcpy(values.data(), entry.data.data(), entry.data.size());
    halves.emplace_back(values.begin(), values.end());
  }
  for (std::size_t i = 0; i < halves.size(); ++i) {
    copy.entries[i].dtype = "BF16";
    copy.entries[i].data = test::bytes_of(halves[i]);
  }
  test::write_text(copy.folder() / "adapter_config.json", copy.config.dump());
  write_safetensors(copy.folder() / "adapter_model.safetensors", copy.entries);
  const Adapted got = load(kBase, copy.folder().path());
  for (const nn::Parameter& p : want.model->parameters()) {
    if (!is_adapter_parameter(p.name)) continue;
    const Tensor& value = test::parameter(*got.model, p.name);
    EXPECT_EQ(value.dtype(), DType::f32);
    EXPECT_TRUE(test::same_bits(value, p.value->to(DType::bf16).to(DType::f32))) << p.name;
  }
}

TEST(SaveAdapter, AFullDiskLeavesTheOlderAdapter) {
  const TemporaryFolder folder;
  const Adapted a = load(kBase, folder_of("all_linear"), Device::cpu);  // a forked child has no GPU
  const std::string path = folder / "adapter";
  save_adapter(a.model->linears(), a.config, path);
  const std::string before = test::read_text(path + "/adapter_model.safetensors");
  const std::string message =
      test::message_on_full_disk(4000, [&] { save_adapter(a.model->linears(), a.config, path); });
  expect_contains(message, "adapter");
  EXPECT_EQ(test::read_text(path + "/adapter_model.safetensors"), before);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"adapter"});
}

}  // namespace
}  // namespace ridge::lora
