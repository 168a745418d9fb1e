// The contract of the commands: keys, values against transformers', exit codes, one JSON object on stdout.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>

#include "core/base/cuda.h"
#include "core/text/tokenizer.h"
#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::json;
namespace fs = std::filesystem;

// What a command with --json says: one line, one object.
Json json_of(Arguments words, const RunOptions& options = {}) {
  words.push_back("--json");
  const Outcome outcome = must_run(words, options);
  EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 1) << outcome.out;
  Json json = Json::parse(outcome.out, nullptr, false);
  EXPECT_TRUE(json.is_object()) << outcome.out;
  return json;
}

Arguments joined(Arguments words, const Arguments& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST(Info, DescribesTheModel) {
  const Json info = json_of({"info", "--model", data_file("models/llama3")});
  EXPECT_EQ(info.at("model_type"), "llama");
  EXPECT_EQ(info.at("layers"), 2);
  EXPECT_EQ(info.at("hidden_size"), 48);
  EXPECT_EQ(info.at("heads"), 3);
  EXPECT_EQ(info.at("kv_heads"), 1);
  EXPECT_EQ(info.at("head_dim"), 16);
  EXPECT_EQ(info.at("vocab_size"), 67);
  EXPECT_EQ(info.at("dtype"), "f32");
  std::int64_t parameters = 0;
  const SafetensorsFile weights = SafetensorsFile::open(data_file("models/llama3/model.safetensors"));
  for (const TensorEntry& entry : weights.entries())
    parameters += static_cast<std::int64_t>(entry.data.size() / 4);
  EXPECT_EQ(info.at("parameters"), parameters);
  EXPECT_EQ(info.at("parameters_without_embedding"), parameters - 67 * 48);
  EXPECT_EQ(info.at("bytes"), parameters * 4);
  EXPECT_EQ(info.at("kv_bytes_per_token"), 2 * 2 * 1 * 16 * 4);
  EXPECT_EQ(json_of({"--json", "info", "--model", data_file("models/bf16")}).at("dtype"), "bf16");
}

// Llama 3.1 8B: only its config is there.
TEST(Info, AnswersForABigModelWithoutItsMemory) {
  const TemporaryFolder folder;
  write_text(folder / "config.json", R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "tie_word_embeddings": false,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "torch_dtype": "bfloat16"})");
  const Outcome outcome = must_run({"info", "--model", folder.path(), "--json"});
  const Json info = Json::parse(outcome.out);
  EXPECT_EQ(info.at("parameters"), 8030261248);
  EXPECT_EQ(info.at("bytes"), 16060522496);
  EXPECT_EQ(info.at("kv_bytes_per_token"), 131072);
  if (kSanitized) return;
  EXPECT_LT(outcome.peak_bytes, (built_with_cuda() ? 500 : 200) << 20);  // CUDA's libraries alone are 200 MiB
  EXPECT_LT(outcome.seconds, 2);
}

class Commands : public SharedTest {
 protected:
  void SetUp() override {
    SharedTest::SetUp();
    if (IsSkipped()) return;
    reference_ = Json::parse(read_text(data_file("expected/stories260k.json")));
  }
  Json reference_;
};

TEST_F(Commands, TokenizeGivesTransformersIds) {
  const Json& wanted = reference_.at("text_ids");
  const auto ids = json_of({"tokenize", "--model", stories_, "--file", test_, "--no-special"})
                       .at("ids")
                       .get<std::vector<std::int64_t>>();
  ASSERT_EQ(ids.size(), wanted.at("count"));
  EXPECT_EQ(std::accumulate(ids.begin(), ids.end(), std::int64_t{0}), wanted.at("sum"));
  const auto first = wanted.at("first").get<std::vector<std::int64_t>>();
  const auto last = wanted.at("last").get<std::vector<std::int64_t>>();
  EXPECT_TRUE(std::equal(first.begin(), first.end(), ids.begin()));
  EXPECT_TRUE(std::equal(last.rbegin(), last.rend(), ids.rbegin()));
  const Json prompt = reference_.at("greedy").at(0);
  const Arguments tokenize{"tokenize", "--model", stories_};
  EXPECT_EQ(json_of(joined(tokenize, {"--text", prompt.at("prompt")})).at("ids"), prompt.at("prompt_ids"));
  std::string list;
  for (const auto& id : prompt.at("prompt_ids")) list += (list.empty() ? "" : ",") + id.dump();
  EXPECT_EQ(json_of(joined(tokenize, {"--decode", list, "--no-special"})).at("text"), prompt.at("prompt"));
}

void expect_logits(const std::string& file, const TensorEntry& wanted, double tolerance) {
  const SafetensorsFile found = SafetensorsFile::open(file);
  const TensorEntry& logits = found.at("logits");
  ASSERT_EQ(logits.shape, wanted.shape);
  ASSERT_EQ(logits.dtype, "F32");
  const auto ours = floats_of(logits), theirs = floats_of(wanted);
  const auto [low, high] = std::minmax_element(theirs.begin(), theirs.end());
  float worst = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    ASSERT_FALSE(std::isnan(ours[i])) << i;
    worst = std::max(worst, std::abs(ours[i] - theirs[i]));
  }
  EXPECT_LT(static_cast<double>(worst), tolerance * static_cast<double>(*high - *low)) << file;
}

// Writes the `ids` of an expected file as `ridge logits` reads them.
void write_ids(const SafetensorsFile& expected, const std::string& path) {
  const TensorEntry& entry = expected.at("ids");
  std::vector<std::int32_t> ids(entry.data.size() / 4);
  std::memcpy(ids.data(), entry.data.data(), entry.data.size());
  const auto row = static_cast<std::ptrdiff_t>(entry.shape.at(1));
  Json rows = Json::array();
  for (auto at = ids.begin(); at != ids.end(); at += row)
    rows.push_back(std::vector<std::int32_t>(at, at + row));
  write_text(path, rows.dump());
}

SafetensorsFile expected_logits(const std::string& name) {
  return SafetensorsFile::open(data_file("expected/logits_" + name + ".safetensors"));
}

TEST_F(Commands, LogitsAreTransformers) {
  for (const char* name : {"stories260k", "adapter_stories260k"}) {
    const SafetensorsFile expected = expected_logits(name);
    write_ids(expected, folder_ / "ids.json");
    Arguments words{
        "logits", "--model", stories_, "--ids", folder_ / "ids.json", "--out", folder_ / "out.safetensors"};
    if (std::string(name) != "stories260k")
      words = joined(words, {"--adapter", data_file("models/stories260k_adapter")});
    const Json json = json_of(words);
    EXPECT_EQ(json.at("shape"), expected.at("logits").shape);
    EXPECT_EQ(json.at("out"), folder_ / "out.safetensors");
    expect_logits(folder_ / "out.safetensors", expected.at("logits"), 1e-4);
  }
}

// Base and adapter apart, and merged into a folder that stands alone.
TEST(Merge, GivesTheLogitsOfBaseAndAdapter) {
  const TemporaryFolder folder;
  const std::string base = data_file("models/llama3");
  for (const char* name : {"plain", "all_linear", "rslora", "patterns", "regex", "layers"}) {
    const SafetensorsFile expected = expected_logits(std::string("adapter_") + name);
    const std::string adapter = data_file(std::string("models/adapters/") + name), merged = folder / name;
    write_ids(expected, folder / "ids.json");
    const Arguments logits{"logits", "--ids", folder / "ids.json", "--out", folder / "out.safetensors"};
    json_of(joined(logits, {"--model", base, "--adapter", adapter}));
    expect_logits(folder / "out.safetensors", expected.at("logits"), 1e-4);
    const Json json = json_of({"merge", "--model", base, "--adapter", adapter, "--out", merged});
    EXPECT_EQ(json.at("out"), merged);
    EXPECT_GT(json.at("merged"), 0);
    json_of(joined(logits, {"--model", merged}));
    expect_logits(folder / "out.safetensors", expected.at("logits_merged"), 1e-4);
    expect_logits(folder / "out.safetensors", expected.at("logits"), 1e-4);
  }
  EXPECT_EQ(names_in(folder / "plain"), (std::vector<std::string>{"config.json", "model.safetensors"}));
}

TEST(Merge, KeepsTheStoredWidth) {
  const TemporaryFolder folder;
  TinyModel tiny(folder);
  const Arguments train{"train", tiny.config, "train.steps=0"};
  tiny.save();
  must_run(joined(train, {"model.arch=null", "model.path=" + tiny.model, "lora.rank=2"}));
  const Json json = json_of(
      {"merge", "--model", tiny.model, "--adapter", folder / "out/adapter", "--out", folder / "merged"});
  EXPECT_EQ(json.at("dtype"), "f32");
  const SafetensorsFile before = SafetensorsFile::open(tiny.model + "/model.safetensors");
  const SafetensorsFile after = SafetensorsFile::open(folder / "merged/model.safetensors");
  for (const TensorEntry& entry : before.entries())
    EXPECT_EQ(floats_of(after.at(entry.name)), floats_of(entry)) << entry.name;
  EXPECT_EQ(read_text(folder / "merged/tokenizer.json"), read_text(tiny.model + "/tokenizer.json"));
}

TEST_F(Commands, GreedyTextIsTransformers) {
  for (const Json& wanted : reference_.at("greedy")) {
    const Arguments words{"generate",         "--model", stories_,        "--prompt", wanted.at("prompt"),
                          "--max-new-tokens", "100",     "--temperature", "0",        "--ignore-eos"};
    const Json json = json_of(words);
    EXPECT_EQ(json.at("ids"), wanted.at("ids")) << wanted.at("prompt");
    EXPECT_EQ(json.at("text"), wanted.at("text"));
    EXPECT_GT(json.at("prefill_ms"), 0);
    EXPECT_GT(json.at("decode_tokens_per_s"), 0);
    EXPECT_EQ(json.size(), 4u);
    EXPECT_EQ(json_of(words, {.ranks = 2}).at("ids"), wanted.at("ids"));
    EXPECT_EQ(json_of(words, {.threads = 2}).at("ids"), wanted.at("ids"));
    // Prompt and reply as one text: with the blank between them that a reply alone does not have.
    const Tokenizer tokenizer = Tokenizer::load(stories_);
    auto ids = tokenizer.encode(wanted.at("prompt").get<std::string>(), true);
    for (const Json& id : wanted.at("ids")) ids.push_back(id);
    EXPECT_EQ(must_run(words).out, tokenizer.decode_utf8(ids) + "\n");
  }
}

TEST_F(Commands, SamplingFollowsItsOptions) {
  const auto ids = [&](const Arguments& more) {
    return json_of(joined({"generate", "--model", stories_, "--prompt", "The dog", "--max-new-tokens", "30"},
                          more))
        .at("ids");
  };
  const Json greedy = ids({});
  EXPECT_EQ(ids({"--temperature", "1", "--top-k", "1", "--seed", "9"}), greedy);
  EXPECT_EQ(ids({"--temperature", "1", "--top-p", "1e-6", "--seed", "9"}), greedy);
  EXPECT_EQ(ids({"--temperature", "1e-4", "--seed", "9"}), greedy);
  const Json sampled = ids({"--temperature", "1", "--seed", "9"});
  EXPECT_NE(sampled, greedy);
  EXPECT_EQ(ids({"--temperature", "1", "--seed", "9"}), sampled);
  EXPECT_NE(ids({"--temperature", "1", "--seed", "10"}), sampled);
  EXPECT_EQ(ids({"--temperature", "1", "--seed", "9", "--top-k", "512", "--top-p", "1"}), sampled);
}

TEST_F(Commands, GenerationStopsAfterEndOfSequence) {
  const std::string model = folder_ / "model";
  fs::copy(stories_, model, fs::copy_options::recursive);
  for (const auto& entry : fs::directory_iterator(model))
    fs::permissions(entry, fs::perms::owner_write, fs::perm_options::add);
  const Arguments start{"generate", "--model", model, "--prompt", "Once upon a time"};
  const Arguments words = joined(start, {"--max-new-tokens", "40"});
  const auto whole = reference_.at("greedy").at(0).at("ids").get<std::vector<std::int64_t>>();
  const auto until = [&](std::int64_t id) {
    return std::vector<std::int64_t>(whole.begin(), std::find(whole.begin(), whole.end(), id) + 1);
  };
  Json config = Json::parse(read_text(model + "/config.json"));
  config["eos_token_id"] = whole[6];
  write_text(model + "/config.json", config.dump());
  EXPECT_EQ(json_of(words).at("ids"), until(whole[6]));
  config["eos_token_id"] = {511, whole[12]};
  write_text(model + "/config.json", config.dump());
  EXPECT_EQ(json_of(words).at("ids"), until(whole[12]));
  write_text(model + "/generation_config.json", Json{{"eos_token_id", whole[9]}}.dump());
  EXPECT_EQ(json_of(words).at("ids"), until(whole[9]));
  EXPECT_EQ(json_of(joined(words, {"--ignore-eos"})).at("ids"),
            std::vector<std::int64_t>(whole.begin(), whole.begin() + 40));
  EXPECT_EQ(json_of(joined(start, {"--max-new-tokens", "1"})).at("ids"), std::vector<std::int64_t>{whole[0]});
}

TEST_F(Commands, PerplexityIsTransformersByEveryProtocol) {
  int compared = 0;
  for (const Json& wanted : reference_.at("perplexity")) {
    const std::string protocol = wanted.at("protocol");
    if (wanted.at("bos") != (protocol != "windows"))
      continue;  // special tokens stand before all but `windows`
    Arguments words{"eval",         "perplexity",
                    "--model",      stories_,
                    "--text",       test_,
                    "--protocol",   protocol,
                    "--window",     wanted.at("window").dump(),
                    "--max-tokens", wanted.at("max_tokens").dump()};
    if (wanted.contains("stride")) words = joined(words, {"--stride", wanted.at("stride").dump()});
    const Json json = json_of(words, {.threads = 2});
    EXPECT_EQ(json.at("tokens"), wanted.at("tokens")) << wanted;
    EXPECT_NEAR(json.at("perplexity"), wanted.at("perplexity"), 1e-5 * wanted.at("perplexity").get<double>())
        << wanted;
    EXPECT_NEAR(json.at("nll"), wanted.at("nll"), 1e-5) << wanted;
    EXPECT_EQ(json.at("protocol"), protocol);
    ++compared;
    if (wanted.at("max_tokens") != 8192) continue;
    const Json shared = json_of(words, {.ranks = 2});
    EXPECT_EQ(shared.at("tokens"), wanted.at("tokens"));
    EXPECT_NEAR(shared.at("nll"), json.at("nll"), 1e-7);
  }
  EXPECT_GE(compared, 9);
}

TEST_F(Commands, PerplexityOfAnAdapterIsPefts) {
  const Json wanted = Json::parse(read_text(data_file("expected/training.json"))).at("adapter_perplexity");
  const Json json = json_of({"eval", "perplexity", "--model", stories_, "--adapter",
                             data_file("models/stories260k_adapter"), "--text", test_, "--window", "512",
                             "--max-tokens", "8192"});
  EXPECT_NEAR(json.at("nll"), wanted.at("nll"), 1e-5);
  EXPECT_EQ(json.at("tokens"), wanted.at("tokens"));
}

TEST_F(Commands, Bf16IsCloseToF32) {
  const Arguments words{"eval", "perplexity", "--model", stories_, "--text", test_, "--max-tokens", "8192"};
  const double f32 = json_of(words).at("nll"), bf16 = json_of(joined(words, {"--dtype", "bf16"})).at("nll");
  EXPECT_NEAR(bf16, f32, 0.02);
  EXPECT_NE(bf16, f32);
}

// The packed text trains as the text does, whole or in two files.
TEST(Pack, TrainsAsTheTextDoes) {
  const TemporaryFolder folder;
  const TinyModel tiny(folder);
  const auto tokens = [&](const std::string& text, const std::string& out) {
    const Json json = json_of({"pack", "--model", tiny.tokenizer, "--text", text, "--out", out});
    EXPECT_EQ(json.at("bytes"), fs::file_size(text));
    EXPECT_EQ(json.at("out"), out);
    return json.at("tokens").get<std::int64_t>();
  };
  const auto result = [&](const std::string& name, const std::string& files) {
    must_run(
        {"train", tiny.config, "data.train=[" + files + "]", "output=" + (folder / name), "train.steps=5"});
    return read_text(folder / (name + "/model/model.safetensors"));
  };
  const std::string text = read_text(tiny.text), a = folder / "a.txt", b = folder / "b.txt";
  const std::size_t cut = text.find("\n\n", text.size() / 3) + 2;
  write_text(a, text.substr(0, cut));
  write_text(b, text.substr(cut));
  const std::int64_t all = tokens(tiny.text, folder / "all.h5");
  EXPECT_EQ(
      all,
      json_of({"tokenize", "--model", tiny.tokenizer, "--file", tiny.text, "--no-special"}).at("ids").size());
  tokens(a, folder / "a.h5");
  const std::string whole = result("text", tiny.text);
  EXPECT_TRUE(result("packed", folder / "all.h5") == whole);
  EXPECT_TRUE(result("two", (folder / "a.h5") + "," + b) == result("texts", a + "," + b));
  const Json both = json_of({"pack", "--model", tiny.tokenizer, "--text", a, b, "--out", folder / "both.h5"});
  EXPECT_EQ(both.at("bytes"), text.size());
  EXPECT_TRUE(result("joined", folder / "both.h5") == result("parts", a + "," + b));
}

TEST(Help, EveryCommandHasIt) {
  for (const char* command :
       {"info", "tokenize", "pack", "logits", "generate", "eval", "train", "merge", "profile", "bench"}) {
    const Outcome outcome = run_ridge({command, "--help"});
    EXPECT_EQ(outcome.exit_code, 0) << command;
    EXPECT_NE(outcome.out.find("Usage"), std::string::npos) << outcome.out;
    EXPECT_EQ(outcome.err, "");
  }
  EXPECT_NE(run_ridge({"--help"}).out.find("generate"), std::string::npos);
}

TEST(Devices, AutoAndCpuAreTheSameHere) {
  const std::string model = data_file("models/llama3");
  const Json a = json_of({"info", "--model", model, "--device", "auto"});
  EXPECT_EQ(json_of({"info", "--model", model, "--device", "cpu"}), a);
  EXPECT_EQ(json_of({"--device", "cpu", "info", "--model", model}), a);
}

}  // namespace
}  // namespace ridge
