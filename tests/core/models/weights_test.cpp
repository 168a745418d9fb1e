#include "core/models/weights.h"

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "core/io/weight_folder.h"
#include "tests/core/io/io_test_util.h"
#include "tests/core/models/reference.h"

namespace ridge::models {
namespace {

namespace fs = std::filesystem;
using test::data_path;
using test::expect_contains;
using test::message_of;
using test::TemporaryFolder;

constexpr const char* kGate = "model.layers.1.mlp.gate_proj.weight";

// A copy of a reference model in which tensors can be changed.
class Copy {
 public:
  explicit Copy(const std::string& name) : source_(WeightFolder::open(data_path("models/" + name))) {
    fs::copy_file(data_path("models/" + name + "/config.json"), folder_ / "config.json");
    for (const std::string& key : source_.names()) entries_.push_back(source_.at(key));
  }
  TensorEntry& at(const std::string& name) {
    return *std::find_if(entries_.begin(), entries_.end(), [&](auto& e) { return e.name == name; });
  }
  void remove(const std::string& name) {
    std::erase_if(entries_, [&](const TensorEntry& e) { return e.name == name; });
  }
  void add(TensorEntry entry) { entries_.push_back(std::move(entry)); }
  LoadedModel load(DType dtype = DType::f32) const {
    write_weight_folder(folder_.path(), entries_);
    return load_model(folder_.path(), dtype, LoadMode::read, test::test_device());
  }
  std::string error() const {
    const std::string message = message_of([&] { load(); });
    expect_contains(message, folder_.path());
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }
  const std::string& path() const { return folder_.path(); }

 private:
  TemporaryFolder folder_;
  WeightFolder source_;
  std::vector<TensorEntry> entries_;
};

TEST(LoadModel, AMissingTensorIsNamedWithItsShape) {
  Copy copy("llama3");
  copy.remove(kGate);
  const std::string message = copy.error();
  expect_contains(message, kGate);
  expect_contains(message, "[29, 48]");
  expect_contains(message, "missing");
}

TEST(LoadModel, AWrongShapeIsNamedWithBothShapes) {
  Copy copy("llama3");
  copy.at(kGate).shape = {48, 29};  // as many elements
  const std::string message = copy.error();
  for (const char* part : {kGate, "[48, 29]", "[29, 48]"}) expect_contains(message, part);
}

TEST(LoadModel, AFlatTensorIsNotTakenForAMatrix) {
  Copy copy("llama3");
  copy.at(kGate).shape = {48 * 29};
  const std::string message = copy.error();
  for (const char* part : {kGate, "[1392]", "[29, 48]"}) expect_contains(message, part);
}

TEST(LoadModel, AWrongTypeIsNamed) {
  Copy copy("llama3");
  copy.at(kGate).dtype = "I32";
  const std::string message = copy.error();
  for (const char* part : {kGate, "I32", "BF16"}) expect_contains(message, part);
}

TEST(LoadModel, ATypeThatIsNotReadIsNamed) {
  Copy copy("bf16");
  copy.at(kGate).dtype = "U16";
  expect_contains(copy.error(), "U16");
}

TEST(LoadModel, AConfigThatAsksForMoreIsNamed) {
  Copy copy("llama3");
  std::string json = test::read_text(copy.path() + "/config.json");
  const std::string field = "\"intermediate_size\": 29";
  json.replace(json.find(field), field.size(), "\"intermediate_size\": 31");
  test::write_text(copy.path() + "/config.json", json);
  const std::string message = copy.error();
  for (const char* part : {"model.layers.0.mlp.gate_proj.weight", "[29, 48]", "[31, 48]"})
    expect_contains(message, part);
}

TEST(LoadModel, ATruncatedFileIsNamed) {
  Copy copy("llama3");
  copy.load();
  const std::string file = copy.path() + "/model.safetensors";
  fs::resize_file(file, fs::file_size(file) - 1);
  expect_contains(message_of([&] { load_model(copy.path(), DType::f32, LoadMode::read); }), file);
}

TEST(LoadModel, UnusedTensorsAreNoted) {
  Copy copy("llama3");
  EXPECT_TRUE(copy.load().notes.empty());
  const std::vector<float> values(3, 1.0f);
  copy.add(make_tensor_entry("model.layers.0.self_attn.rotary_emb.inv_freq", DType::f32, {3},
                             test::bytes_of(values)));  // old files have it: not worth a note
  EXPECT_TRUE(copy.load().notes.empty());
  copy.add(make_tensor_entry("vision.patch", DType::f32, {3}, test::bytes_of(values)));
  const auto notes = copy.load().notes;
  ASSERT_EQ(notes.size(), 1u);
  expect_contains(notes[0], "vision.patch");
}

// llama32 is tied.
TEST(LoadModel, AnEqualOutputLayerOfATiedModelIsOneTable) {
  Copy copy("llama32");
  TensorEntry head = copy.at("model.embed_tokens.weight");
  head.name = "lm_head.weight";
  copy.add(head);
  const LoadedModel loaded = copy.load();
  EXPECT_TRUE(loaded.notes.empty());
  EXPECT_TRUE(loaded.model->config().tied);
  for (const nn::Parameter& p : loaded.model->parameters()) EXPECT_NE(p.name, "lm_head.weight");
}

TEST(LoadModel, ADifferentOutputLayerOfATiedModelIsUsedAndNoted) {
  Copy copy("llama32");
  TensorEntry head = copy.at("model.embed_tokens.weight");
  std::vector<std::byte> bytes(head.data.begin(), head.data.end());
  std::vector<float> twice(bytes.size() / 4);
  std::memcpy(twice.data(), bytes.data(), bytes.size());
  for (float& x : twice) x *= 2;
  head.name = "lm_head.weight";
  head.data = test::bytes_of(twice);
  copy.add(head);
  const LoadedModel loaded = copy.load();
  ASSERT_EQ(loaded.notes.size(), 1u);
  expect_contains(loaded.notes[0], "lm_head.weight");
  EXPECT_FALSE(loaded.model->config().tied);
  const autograd::NoGradScope no_grad;
  const SafetensorsFile file = SafetensorsFile::open(data_path("expected/logits_llama32.safetensors"));
  const Tensor logits = loaded.model->logits(test::read_tensor(file, "ids"));
  const auto got = test::values_of(logits), tied = test::values_of(test::read_tensor(file, "logits"));
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], 2 * tied[i], 1e-3);
  const TemporaryFolder folder;
  save_model(*loaded.model, folder / "copy", DType::f32, "");
  const LoadedModel again = load_model(folder / "copy", DType::f32, LoadMode::read);
  EXPECT_FALSE(again.model->config().tied);
  EXPECT_TRUE(again.notes.empty());  // its config says what it holds
}

TEST(LoadModel, WeightsAreRoundedToTheTypeAskedFor) {
  const auto wide = test::load(data_path("models/llama3"), DType::f32);
  const auto half = test::load(data_path("models/llama3"), DType::bf16);
  const Tensor w = test::parameter(*wide, kGate).on(Device::cpu),
               h = test::parameter(*half, kGate).on(Device::cpu);
  ASSERT_EQ(h.dtype(), DType::bf16);
  const auto x = w.span<float>();
  const auto y = h.span<bf16>();
  for (std::size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i].bits, bf16(x[i]).bits);
}

class RoundTrip : public ::testing::TestWithParam<const char*> {};

TEST_P(RoundTrip, EveryTensorAndTheConfigComeBack) {
  const TemporaryFolder folder;
  const std::string source = data_path(std::string("models/") + GetParam()), copy = folder / "copy";
  const auto model = test::load(source, DType::f32);
  save_model(*model, copy, DType::f32, source);
  const auto again = test::load(copy, DType::f32);
  const nn::Parameters before = model->parameters(), after = again->parameters();
  ASSERT_EQ(before.size(), after.size());
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(before[i].name, after[i].name);
    EXPECT_TRUE(test::same_bits(*before[i].value, *after[i].value)) << before[i].name;
  }
  const ModelConfig &a = model->config(), &b = again->config();
  EXPECT_EQ(b.dtype, DType::f32);
  EXPECT_EQ(a.tied, b.tied);
  EXPECT_EQ(a.rope.theta, b.rope.theta);
  EXPECT_EQ(a.rope.scaling.kind, b.rope.scaling.kind);
  EXPECT_EQ(a.rope.scaling.factor, b.rope.scaling.factor);
  EXPECT_EQ(a.sliding_window, b.sliding_window);
  EXPECT_EQ(a.eos_ids, b.eos_ids);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"copy"});
}

INSTANTIATE_TEST_SUITE_P(All, RoundTrip,
                         ::testing::Values("llama3", "llama32", "llama_bias", "llama_yarn", "qwen2_sliding",
                                           "mistral", "mistral_nemo", "f16", "bf16", "sharded",
                                           "new_spelling"),
                         [](const auto& test) { return std::string(test.param); });

TEST(SaveModel, Bf16WeightsComeBackAsTheSameBits) {
  const TemporaryFolder folder;
  const auto model = test::load(data_path("models/bf16"), DType::bf16);
  save_model(*model, folder / "copy", DType::bf16, "");
  const auto again = test::load(folder / "copy", DType::bf16);
  EXPECT_EQ(again->config().dtype, DType::bf16);
  const auto here = test::load(folder / "copy", DType::bf16, LoadMode::read, Device::cpu);
  EXPECT_TRUE(test::parameter(*here, kGate).storage()->borrowed());  // stored as bf16, so read in place
  for (const nn::Parameter& p : model->parameters())
    EXPECT_TRUE(test::same_bits(*p.value, test::parameter(*again, p.name))) << p.name;
}

TEST(SaveModel, TheTokenizersFilesComeAlong) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "source");
  test::write_text(folder / "source/tokenizer.json", "{}");
  test::write_text(folder / "source/chat_template.jinja", "x");
  test::write_text(folder / "source/notes.txt", "not one of them");
  const auto model = test::load(data_path("models/llama3"));
  save_model(*model, folder / "copy", DType::f32, folder / "source");
  EXPECT_EQ(test::read_text(folder / "copy/tokenizer.json"), "{}");
  EXPECT_EQ(test::read_text(folder / "copy/chat_template.jinja"), "x");
  EXPECT_FALSE(fs::exists(folder / "copy/notes.txt"));
}

TEST(SaveModel, AnOlderModelOfThatNameIsReplacedAsAWhole) {
  const TemporaryFolder folder;
  const auto sharded = test::load(data_path("models/sharded")),
             other = test::load(data_path("models/llama3"));
  fs::copy(data_path("models/sharded"), folder / "copy");
  save_model(*other, folder / "copy", DType::f32, "");
  EXPECT_FALSE(fs::exists(folder / "copy/model.safetensors.index.json"));
  const auto again = test::load(folder / "copy");
  EXPECT_TRUE(test::same_bits(test::parameter(*again, kGate), test::parameter(*other, kGate)));
}

TEST(SaveModel, AFullDiskLeavesTheOlderModel) {
  const TemporaryFolder folder;
  const std::string copy = folder / "copy";
  const auto old = test::load(data_path("models/llama3"), DType::f32, LoadMode::train,
                              Device::cpu);  // a forked child has no GPU
  save_model(*old, copy, DType::f32, "");
  const std::string message =
      test::message_on_full_disk(20000, [&] { save_model(*old, copy, DType::f32, ""); });
  expect_contains(message, "copy");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"copy"});
  const auto again = test::load(copy);
  for (const nn::Parameter& p : old->parameters())
    EXPECT_TRUE(test::same_bits(*p.value, test::parameter(*again, p.name))) << p.name;
}

TEST(SaveModel, AMissingParentFolderIsNamed) {
  const TemporaryFolder folder;
  const auto model = test::load(data_path("models/llama3"));
  const std::string path = folder / "no/such/copy";
  expect_contains(message_of([&] { save_model(*model, path, DType::f32, ""); }), "no/such");
}

}  // namespace
}  // namespace ridge::models
