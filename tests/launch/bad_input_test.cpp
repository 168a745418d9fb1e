// What bad input gets: exit code 1, one line that says what is wrong and where, nothing half-written.
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::ordered_json;
using Parts = std::vector<std::string>;
namespace fs = std::filesystem;

constexpr const char* kWeights = "model.safetensors";

// The parts of a safetensors file, to be taken apart and put together wrongly.
struct Parted {
  Json header;
  std::string data;
};

Parted take_apart(const std::string& path) {
  const std::string bytes = read_text(path);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  return {Json::parse(bytes.substr(8, length)), bytes.substr(8 + length)};
}

std::string put_together(const Parted& parts) {
  const std::string header = parts.header.dump();
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + parts.data;
}

void edit_header(const std::string& path, const std::function<void(Json&)>& edit) {
  Parted parts = take_apart(path);
  edit(parts.header);
  write_text(path, put_together(parts));
}

void edit_json(const std::string& path, const Json& patch) {
  Json json = Json::parse(read_text(path));
  json.merge_patch(patch);
  write_text(path, json.dump());
}

void edit_bytes(const std::string& path, const std::function<std::string(std::string)>& edit) {
  write_text(path, edit(read_text(path)));
}

class BadInput : public testing::Test {
 protected:
  // A writable copy of a folder of tests/data/models.
  std::string copy_of(const std::string& name) const {
    const std::string to = folder_ / fs::path(name).filename().string();
    fs::remove_all(to);
    fs::copy(data_file("models/" + name), to, fs::copy_options::recursive);
    for (const auto& entry : fs::directory_iterator(to))
      fs::permissions(entry, fs::perms::owner_write, fs::perm_options::add);
    return to;
  }

  Outcome logits(const std::string& model, const Arguments& more = {}) const {
    write_text(folder_ / "ids.json", "[[1, 2, 3]]");
    Arguments words{"logits", "--model", model, "--ids", folder_ / "ids.json", "--out", out_};
    words.insert(words.end(), more.begin(), more.end());
    return run_ridge(words);
  }

  // The error, and that no file of the output or of its temporary stays.
  void expect_refused(const Outcome& outcome, const Parts& parts) const {
    expect_user_error(outcome, parts);
    for (const std::string& name : names_in(folder_.path()))
      EXPECT_FALSE(name.starts_with("out")) << name << " was left behind";
  }

  TemporaryFolder folder_;
  const std::string out_ = folder_ / "out.safetensors";
};

TEST_F(BadInput, FilesThatAreMissingOrCut) {
  const struct {
    const char* file;
    std::function<void(const std::string&)> damage;
    Parts parts;
  } cases[] = {
      {"config.json", [](const auto& path) { fs::remove(path); }, {"config.json", "No such file"}},
      {"config.json",
       [](const auto& path) { write_text(path, "{\"hidden_size\": 4"); },
       {"config.json", "not valid JSON"}},
      {"config.json",
       [](const auto& path) { write_text(path, "[1]"); },
       {"config.json", "not a JSON object"}},
      {kWeights,
       [](const auto& path) { fs::remove(path); },
       {"llama3", kWeights, "model.safetensors.index.json"}},
      {kWeights,
       [](const auto& path) { fs::remove(path), fs::create_directory(path); },
       {kWeights, "folder"}},
      {kWeights, [](const auto& path) { write_text(path, ""); }, {kWeights, "0 bytes"}},
      {kWeights, [](const auto& path) { fs::resize_file(path, 6); }, {kWeights, "6 bytes"}},
      {kWeights, [](const auto& path) { fs::resize_file(path, 100); }, {kWeights, "92 bytes follow"}},
      {kWeights,
       [](const auto& path) { fs::resize_file(path, fs::file_size(path) - 10); },
       {kWeights, "109248", "109238", "cut short"}},
      {kWeights,
       [](const auto& path) { fs::resize_file(path, fs::file_size(path) + 10); },
       {kWeights, "109248", "109258"}},
  };
  for (const auto& [file, damage, parts] : cases) {
    const std::string model = copy_of("llama3");
    damage(model + "/" + file);
    expect_refused(logits(model), parts);
  }
  expect_refused(logits(folder_ / "absent"), {"absent/config.json", "No such file"});
}

TEST_F(BadInput, SafetensorsHeaders) {
  const std::string norm = "model.norm.weight";
  const auto offsets = [&](std::int64_t begin, std::int64_t end) {
    return [=](Json& header) { header[norm]["data_offsets"] = {begin, end}; };
  };
  const struct {
    std::function<void(Json&)> edit;
    Parts parts;
  } cases[] = {
      {[&](Json& h) { h["lm_head.weight"]["data_offsets"] = h["model.embed_tokens.weight"]["data_offsets"]; },
       {"data"}},                                                     // overlap
      {[&](Json& h) { h.erase(norm); }, {"109056", "109248"}},        // hole
      {offsets(109248, 109440), {norm, "109248", "109056", "hole"}},  // outside
      {offsets(109056, std::int64_t{1} << 62), {norm, "109056"}},
      {offsets(109248, 109056), {norm, "109248"}},
      {offsets(-8, 184), {norm, "-8"}},
      {[&](Json& h) {
         h[norm]["shape"] = {std::int64_t{1} << 62, 4};
       },
       {norm, "4611686018427387904", "overflow"}},
      {[&](Json& h) { h[norm]["shape"] = {-48}; }, {norm, "-48"}},
      {[&](Json& h) { h[norm]["shape"] = {47}; }, {norm, "[47]", "192", "188"}},
      {[&](Json& h) { h[norm]["dtype"] = "Q9"; }, {norm, "Q9"}},
      {[&](Json& h) { h[norm]["dtype"] = "F8_E4M3"; }, {norm, "F8_E4M3", "192", "48"}},
      {[&](Json& h) { h[norm] = 3; }, {norm}},
      {[&](Json& h) { h[norm].erase("shape"); }, {norm, "shape"}},
  };
  for (const auto& [edit, parts] : cases) {
    const std::string model = copy_of("llama3");
    edit_header(model + "/" + kWeights, edit);
    Parts wanted = parts;
    wanted.push_back("llama3/model.safetensors");
    expect_refused(logits(model), wanted);
  }
  const std::string model = copy_of("llama3");
  for (const std::uint64_t length : {std::uint64_t{101} << 20, ~std::uint64_t{0}}) {
    edit_bytes(model + "/" + kWeights, [&](std::string bytes) {
      std::memcpy(bytes.data(), &length, 8);
      return bytes;
    });
    expect_refused(logits(model), {kWeights, std::to_string(length), "100000000"});
  }
}

TEST_F(BadInput, WeightIndexes) {
  const std::string head = "lm_head.weight";
  const struct {
    Json target;
    Parts parts;
  } cases[] = {
      {"../llama3/model.safetensors", {head, "'../llama3/model.safetensors'", "not a plain file name"}},
      {"/etc/passwd", {head, "'/etc/passwd'", "not a plain file name"}},
      {"", {head}},
      {"..", {head}},
      {"model-00009-of-00003.safetensors", {"model-00009-of-00003.safetensors", "missing"}},
      {"model-00002-of-00003.safetensors", {head, "model-00002-of-00003.safetensors"}},
      {7, {head}},
  };
  for (const auto& [target, parts] : cases) {
    const std::string model = copy_of("sharded");
    edit_json(model + "/model.safetensors.index.json", {{"weight_map", {{head, target}}}});
    Parts wanted = parts;
    wanted.push_back("model.safetensors.index.json");
    expect_refused(logits(model), wanted);
  }
  const std::string model = copy_of("sharded");
  write_text(model + "/model.safetensors.index.json", "{");
  expect_refused(logits(model), {"model.safetensors.index.json", "not valid JSON"});
}

TEST_F(BadInput, ConfigsThatMeanNothing) {
  const struct {
    Json patch;
    Parts parts;
  } cases[] = {
      {{{"architectures", {"GPT2LMHeadModel"}}}, {"GPT2LMHeadModel", "LlamaForCausalLM"}},
      {{{"architectures", nullptr}, {"model_type", "mamba"}}, {"model_type", "mamba", "llama"}},
      {{{"architectures", nullptr}, {"model_type", nullptr}}, {"model_type", "architectures"}},
      {{{"model_type", "qwen2"}}, {"model_type", "qwen2", "llama"}},
      {{{"rope_scaling", {{"rope_type", "longrope"}}}}, {"rope_type", "longrope", "llama3"}},
      {{{"rope_scaling", {{"factor", nullptr}}}}, {"factor", "0"}},
      {{{"rope_scaling", "linear"}}, {"rope_scaling"}},
      {{{"hidden_act", "relu2"}}, {"hidden_act", "relu2", "silu"}},
      {{{"torch_dtype", "int8"}}, {"dtype", "int8", "bfloat16"}},
      {{{"hidden_size", "48"}}, {"hidden_size", "\"48\"", "integer"}},
      {{{"hidden_size", 48.5}}, {"hidden_size", "48.5", "integer"}},
      {{{"hidden_size", 0}}, {"hidden_size", "0"}},
      {{{"hidden_size", std::int64_t{1} << 40}}, {"hidden_size", "1099511627776"}},
      {{{"hidden_size", 18446744073709551615u}}, {"hidden_size", "18446744073709551615"}},
      {{{"num_hidden_layers", -3}}, {"num_hidden_layers", "-3"}},
      {{{"num_attention_heads", 5}}, {"num_attention_heads", "5", "hidden_size 48"}},
      {{{"num_key_value_heads", 2}}, {"num_key_value_heads", "2", "num_attention_heads 3"}},
      {{{"head_dim", 15}}, {"head_dim", "15", "even"}},
      {{{"rope_theta", -1}}, {"rope_theta", "-1"}},
      {{{"rope_theta", "1e4"}}, {"rope_theta", "\"1e4\""}},
      {{{"rms_norm_eps", -1e-5}}, {"rms_norm_eps", "-1e-05"}},
      {{{"tie_word_embeddings", 1}}, {"tie_word_embeddings", "1"}},
      {{{"eos_token_id", {"</s>"}}}, {"eos_token_id", "</s>"}},
      {{{"max_position_embeddings", 0}}, {"max_position_embeddings", "0"}},
  };
  for (const auto& [patch, parts] : cases) {
    const std::string model = copy_of("llama3");
    edit_json(model + "/config.json", patch);
    Parts wanted = parts;
    wanted.push_back("llama3/config.json");
    expect_refused(logits(model), wanted);
    expect_user_error(run_ridge({"info", "--model", model}), wanted);
  }
}

TEST_F(BadInput, WeightsThatAreNotTheConfigs) {
  const struct {
    Json patch;
    Parts parts;
  } cases[] = {
      {{{"hidden_size", 64}, {"num_attention_heads", 4}},
       {"[67, 48]", "[67, 64]", "model.embed_tokens.weight"}},
      {{{"vocab_size", 68}}, {"[67, 48]", "[68, 48]", "model.embed_tokens.weight"}},
      {{{"num_hidden_layers", 3}}, {"model.layers.2.input_layernorm.weight", "missing"}},
      {{{"num_hidden_layers", 100000}}, {"model.layers.2.input_layernorm.weight", "missing"}},
      {{{"attention_bias", true}}, {"model.layers.0.self_attn.q_proj.bias", "missing"}},
      {{{"intermediate_size", 31}}, {"[29, 48]", "[31, 48]", "mlp.gate_proj.weight"}},
      {{{"vocab_size", std::int64_t{1} << 31}, {"intermediate_size", std::int64_t{1} << 31}},
       {"[67, 48]", "[2147483648, 48]"}},
  };
  for (const auto& [patch, parts] : cases) {
    const std::string model = copy_of("llama3");
    edit_json(model + "/config.json", patch);
    Parts wanted = parts;
    wanted.push_back(model);
    expect_refused(logits(model), wanted);
  }
  const std::string model = copy_of("llama3");
  edit_header(model + "/" + kWeights, [](Json& header) { header["model.norm.weight"]["dtype"] = "I32"; });
  expect_refused(logits(model), {model, "model.norm.weight", "I32", "F32, BF16 or F16"});
  edit_header(model + "/" + kWeights, [](Json& header) {
    header["model.norm.weight"]["dtype"] = "F32";
    header["model.norm.weight"]["shape"] = {6, 8};
  });
  expect_refused(logits(model), {model, "model.norm.weight", "[6, 8]", "[48]"});
}

TEST_F(BadInput, Adapters) {
  const std::string a = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
  const struct {
    Json patch;
    Parts parts;
  } cases[] = {
      {{{"target_modules", {"zzz"}}},
       {"adapter_config.json", "target_modules", "zzz", "model.layers.0.self_attn.q_proj"}},
      {{{"r", 8}}, {"adapter_model.safetensors", a, "[4, 48]", "[8, 48]"}},
      {{{"rank_pattern", {{"q_proj", 9}}}}, {"adapter_model.safetensors", a, "[4, 48]", "[9, 48]"}},
      {{{"r", 0}}, {"adapter_config.json", "r is 0"}},
      {{{"r", "4"}}, {"adapter_config.json", "\"4\""}},
      {{{"target_modules", {"q_proj", "v_proj", "k_proj"}}},
       {"adapter_model.safetensors", "k_proj.lora_A.weight", "missing"}},
      {{{"target_modules", {"q_proj"}}}, {"adapter_model.safetensors", "v_proj.lora_A.weight"}},
      {{{"target_modules", "(q_proj"}}, {"adapter_config.json", "target_modules", "(q_proj"}},
      {{{"target_modules", 5}}, {"adapter_config.json", "target_modules", "5"}},
      {{{"use_dora", true}}, {"adapter_config.json", "use_dora", "true"}},
      {{{"peft_type", "IA3"}}, {"adapter_config.json", "IA3", "LORA"}},
      {{{"bias", "all"}}, {"adapter_config.json", "bias", "all"}},
      {{{"lora_alpha", "16"}}, {"adapter_config.json", "lora_alpha", "\"16\""}},
      {{{"lora_dropout", 1.5}}, {"adapter_config.json", "lora_dropout", "1.5"}},
      {{{"modules_to_save", {"lm_head"}}}, {"adapter_config.json", "modules_to_save", "lm_head"}},
  };
  const std::string model = data_file("models/llama3");
  for (const auto& [patch, parts] : cases) {
    const std::string adapter = copy_of("adapters/plain");
    edit_json(adapter + "/adapter_config.json", patch);
    expect_refused(logits(model, {"--adapter", adapter}), parts);
    expect_refused(run_ridge({"merge", "--model", model, "--adapter", adapter, "--out", folder_ / "out"}),
                   parts);
  }
  const std::string weights = "/adapter_model.safetensors";
  const std::string adapter = copy_of("adapters/plain");
  edit_header(adapter + weights, [&](Json& header) { header[a]["shape"] = {48, 4}; });
  expect_refused(logits(model, {"--adapter", adapter}), {weights, a, "[48, 4]", "[4, 48]"});
  fs::resize_file(adapter + weights, 2000);
  expect_refused(logits(model, {"--adapter", adapter}), {weights, "cut short"});
  fs::remove(adapter + weights);
  expect_refused(logits(model, {"--adapter", adapter}), {weights, "No such file"});
  expect_refused(logits(model, {"--adapter", folder_ / "absent"}),
                 {"absent/adapter_config.json", "No such file"});
  expect_refused(logits(data_file("models/qwen2"), {"--adapter", data_file("models/adapters/plain")}),
                 {weights, a, "[4, 48]", "[4, 40]"});
}

TEST_F(BadInput, Ids) {
  const std::string model = data_file("models/llama3");
  const struct {
    const char* text;
    Parts parts;
  } cases[] = {
      {"", {"ids.json"}},
      {"[[1, 2", {"ids.json"}},
      {"[]", {"ids.json"}},
      {"[[]]", {"ids.json", "row 0"}},
      {"[1, 2]", {"ids.json", "row 0"}},
      {"{\"ids\": [[1]]}", {"ids.json"}},
      {"[[1, \"2\"]]", {"ids.json", "row 0", "\"2\""}},
      {"[[1, 2.5]]", {"ids.json", "2.5"}},
      {"[[1, -1]]", {"ids.json", "-1"}},
      {"[[1], [2, 3]]", {"ids.json", "row 1 has 2", "row 0 has 1"}},
      {"[[1], [67]]", {"ids.json", "id 67", "67 rows"}},
      {"[[1], [99999999999]]", {"ids.json", "99999999999"}},
      {"[[18446744073709551615]]", {"ids.json", "18446744073709551615"}},
  };
  for (const auto& [text, parts] : cases) {
    write_text(folder_ / "ids.json", text);
    expect_refused(run_ridge({"logits", "--model", model, "--ids", folder_ / "ids.json", "--out", out_}),
                   parts);
  }
  expect_refused(run_ridge({"logits", "--model", model, "--ids", folder_ / "absent.json", "--out", out_}),
                 {"absent.json"});
  write_text(folder_ / "ids.json", "[[1]]");
  expect_refused(
      run_ridge({"logits", "--model", model, "--ids", folder_ / "ids.json", "--out", folder_ / "no/folder"}),
      {"no/folder", "No such file"});
}

// A value that a parser's library would walk by recursion, level by level, until the stack is gone.
TEST_F(BadInput, JsonThatNestsWithoutEnd) {
  const std::string deep = std::string(1 << 20, '[') + std::string(1 << 20, ']');
  const std::string model = copy_of("llama3"), adapter = copy_of("adapters/plain");
  for (const std::string& file : {model + "/config.json", model + "/generation_config.json",
                                  model + "/tokenizer.json", adapter + "/adapter_config.json"}) {
    const std::string whole = read_text(file);
    write_text(file, "{\"hidden_size\": " + deep + "}");
    const Outcome outcome = file.ends_with("tokenizer.json")
                                ? run_ridge({"tokenize", "--model", model, "--text", "a"})
                                : logits(model, {"--adapter", adapter});
    expect_refused(outcome, {file, "nests deeper than 100"});
    fs::remove(file);
    if (!whole.empty()) write_text(file, whole);
  }
  write_text(folder_ / "deep.json", deep);
  expect_refused(run_ridge({"logits", "--model", model, "--ids", folder_ / "deep.json", "--out", out_}),
                 {"deep.json", "nests deeper"});
}

// Whatever a file holds, the message stays one line of a bounded length.
TEST_F(BadInput, ValuesThatWouldSpoilTheMessage) {
  const std::string model = copy_of("llama3");
  edit_json(model + "/config.json", {{"architectures", nullptr}, {"model_type", "two\nlines\x1b[2J"}});
  expect_refused(logits(model), {"model_type two\\x0alines\\x1b[2J"});
  edit_json(model + "/config.json", {{"model_type", std::string(1 << 20, 'x')}});
  const Outcome outcome = logits(model);
  expect_refused(outcome, {"model_type xxx", "left out", "use llama, qwen2 or mistral"});
  EXPECT_LT(outcome.err.size(), 4000u);
}

TEST_F(BadInput, CommandLines) {
  const std::string model = data_file("models/llama3");
  const struct {
    Arguments words;
    Parts parts;
  } cases[] = {
      {{}, {"subcommand", "--help"}},
      {{"frobnicate"}, {"frobnicate", "--help"}},
      {{"eval"}, {"subcommand"}},
      {{"info"}, {"--model", "required"}},
      {{"info", "--model"}, {"--model"}},
      {{"info", "--model", model, "--frob"}, {"--frob"}},
      {{"info", "--model", model, "more"}, {"more"}},
      {{"info", "--model", model, "--device", "tpu"}, {"--device", "tpu", "auto, cpu or cuda"}},
      {{"logits", "--model", model, "--out", out_}, {"--ids", "required"}},
      {{"logits", "--model", model, "--ids", "x", "--out", out_, "--dtype", "f64"}, {"x"}},
      {{"generate", "--model", model}, {"--prompt", "required"}},
      {{"generate", "--model", model, "--prompt", "a", "--max-new-tokens", "0"}, {"--max-new-tokens", "0"}},
      {{"generate", "--model", model, "--prompt", "a", "--max-new-tokens", "2.5"},
       {"--max-new-tokens", "2.5"}},
      {{"generate", "--model", model, "--prompt", "a", "--temperature", "-1"}, {"--temperature", "-1"}},
      {{"generate", "--model", model, "--prompt", "a", "--temperature", "nan"}, {"--temperature", "nan"}},
      {{"generate", "--model", model, "--prompt", "a", "--top-k", "-1"}, {"--top-k", "-1"}},
      {{"generate", "--model", model, "--prompt", "a", "--top-p", "0"}, {"--top-p", "0"}},
      {{"generate", "--model", model, "--prompt", "a", "--top-p", "1.5"}, {"--top-p", "1.5"}},
      {{"tokenize", "--model", model}, {"--text", "--file", "--decode"}},
      {{"tokenize", "--model", model, "--text", "a", "--file", "b"}, {"--text", "--file", "--decode"}},
      {{"eval", "perplexity", "--model", model}, {"--text", "required"}},
      {{"merge", "--model", model, "--out", out_}, {"--adapter", "required"}},
      {{"train"}, {"config", "required"}},
      {{"profile", "--model", model, "--train", "--generate"}, {"--train", "--generate"}},
      {{"profile", "--model", model, "--dtype", "f16"}, {"--dtype", "f16"}},
      {{"profile", "--model", model, "--kv-cache", "fp8"}, {"--kv-cache", "--generate"}},
      {{"profile", "--model", model, "--generate", "--prompt", "0"}, {"--prompt", "0"}},
      {{"profile", "--model", model, "--generate", "--batch", "-1"}, {"--batch", "-1"}},
      {{"profile", "--model", model, "--generate", "--kv-cache", "f8"}, {"f8"}},
      {{"sample-text", "--kind", "poems", "--out", out_}, {"--kind", "poems", "tales"}},
      {{"sample-text", "--bytes", "0", "--out", out_}, {"--bytes", "0"}},
  };
  for (const auto& [words, parts] : cases) expect_refused(run_ridge(words), parts);
  const Outcome gpu = run_ridge({"info", "--model", model, "--device", "cuda"});
  if (gpu.exit_code != 0) expect_refused(gpu, {"--device", "cuda"});
}

// The tests of texts and training share a model whose tokenizer fits it.
class BadText : public BadInput {
 protected:
  Outcome perplexity(const std::string& text, const Arguments& more = {}) const {
    Arguments words{"eval", "perplexity", "--model", tiny_.model, "--text", text};
    words.insert(words.end(), more.begin(), more.end());
    return run_ridge(words);
  }
  void SetUp() override { tiny_.save(); }
  const TinyModel tiny_{folder_};
};

TEST_F(BadText, TextsThatAreEmptyShortOrAbsent) {
  const std::string empty = folder_ / "empty.txt", one = folder_ / "one.txt", packed = folder_ / "packed.h5";
  write_text(empty, "");
  write_text(one, "a");
  must_run({"pack", "--model", tiny_.model, "--text", tiny_.text, "--out", packed});
  for (const char* protocol : {"windows", "strided", "gptq", "llama.cpp"}) {
    expect_refused(perplexity(empty, {"--protocol", protocol}), {"empty.txt", "empty"});
  }
  expect_refused(perplexity(one), {"1 token", "window of 512"});
  expect_refused(perplexity(folder_ / "absent.txt"), {"absent.txt", "No such file"});
  expect_refused(perplexity(folder_.path()), {folder_.path(), "folder"});
  expect_refused(perplexity(packed), {"packed.h5", "HDF5"});
  expect_refused(perplexity(tiny_.text, {"--window", "1"}), {"--window", "1"});
  expect_refused(perplexity(tiny_.text, {"--window", "8", "--stride", "9", "--protocol", "strided"}),
                 {"--stride 9", "8"});
  expect_refused(perplexity(tiny_.text, {"--stride", "-1"}), {"--stride", "-1"});
  expect_refused(perplexity(tiny_.text, {"--max-tokens", "1"}), {"--max-tokens", "1"});
  expect_refused(perplexity(tiny_.text, {"--max-tokens", "-5"}), {"--max-tokens", "-5"});
  expect_refused(perplexity(tiny_.text, {"--protocol", "mine"}), {"--protocol", "mine", "windows"});
  expect_refused(perplexity(tiny_.text, {"--dtype", "f64"}), {"--dtype", "f64"});
  const auto pack = [&](const std::string& text, const std::string& out) {
    return run_ridge({"pack", "--model", tiny_.model, "--text", tiny_.text, text, "--out", out});
  };
  expect_refused(pack(empty, folder_ / "out.h5"), {"empty.txt", "empty"});
  expect_refused(pack(folder_ / "absent.txt", folder_ / "out.h5"), {"absent.txt", "No such file"});
  expect_refused(pack(tiny_.text, folder_ / "no/out.h5"), {"no/out.h5", "No such file"});
  expect_refused(pack(tiny_.text, folder_.path()), {folder_.path()});
}

TEST_F(BadText, Tokenizers) {
  const std::string file = tiny_.model + "/tokenizer.json", whole = read_text(file);
  const auto tokenize = [&](const Arguments& more) {
    Arguments words{"tokenize", "--model", tiny_.model};
    words.insert(words.end(), more.begin(), more.end());
    return run_ridge(words);
  };
  expect_refused(tokenize({"--decode", "300"}), {"300", "tokenizer.json"});
  expect_refused(tokenize({"--decode", "1,-1"}), {"-1"});
  for (const char* bad : {"a", "1,a", "1,", ",1", "1,,2", "1 2", "99999999999", "1.5"})
    expect_refused(tokenize({"--decode", bad}), {"--decode"});
  expect_refused(tokenize({"--file", folder_ / "absent.txt"}), {"absent.txt"});
  write_text(file, whole.substr(0, whole.size() / 2));
  expect_refused(tokenize({"--text", "a"}), {"tokenizer.json", "JSON"});
  write_text(file, "{\"model\": {\"type\": \"WordPiece\", \"vocab\": {}}}");
  expect_refused(tokenize({"--text", "a"}), {"tokenizer.json", "WordPiece", "BPE"});
  fs::remove(file);
  expect_refused(tokenize({"--text", "a"}), {"tokenizer.json"});
  expect_refused(run_ridge({"generate", "--model", tiny_.model, "--prompt", "a"}), {"tokenizer.json"});
}

TEST_F(BadText, IdsBeyondTheEmbedding) {
  const std::string model = copy_of("llama3");  // 67 rows
  fs::copy(tiny_.tokenizer + "/tokenizer.json", model + "/tokenizer.json");
  expect_refused(run_ridge({"generate", "--model", model, "--prompt", "Once upon a time"}),
                 {"--prompt", "id", "67 rows"});
  expect_refused(run_ridge({"eval", "perplexity", "--model", model, "--text", tiny_.text}),
                 {"tales.txt", "id", "67 rows"});
  expect_refused(run_ridge({"train", tiny_.config, "model.arch=null", "model.path=" + model}),
                 {"tales.txt", "id", "67 rows"});
  const std::string packed = folder_ / "packed.h5";
  must_run({"pack", "--model", model, "--text", tiny_.text, "--out", packed});
  expect_refused(run_ridge({"train", tiny_.config, "model.arch=null", "model.path=" + model,
                            "data.train=[" + packed + "]"}),
                 {"packed.h5", "300", "67 rows"});
  const std::string other = folder_ / "other";
  must_run({"train-tokenizer", "--text", tiny_.text, "--vocab-size", "299", "--out", other});
  must_run({"pack", "--model", other, "--text", tiny_.text, "--out", packed});
  expect_refused(run_ridge({"train", tiny_.config, "data.train=[" + packed + "]"}),
                 {"packed.h5", "another tokenizer"});
}

// Bytes that are not UTF-8 are a text like any other: byte-level BPE gives them back.
TEST_F(BadText, BytesSurvive) {
  const std::string file = folder_ / "bytes.txt", bytes = "caf\xC3\xA9 \xFF\xFE\x80 end\xC3";
  write_text(file, bytes);
  const Json ids =
      Json::parse(must_run({"tokenize", "--model", tiny_.model, "--file", file, "--no-special"}).out)
          .at("ids");
  std::string list;
  for (const auto& id : ids) list += (list.empty() ? "" : ",") + std::to_string(id.get<int>());
  const Json text = Json::parse(must_run({"tokenize", "--model", tiny_.model, "--decode", list}).out);
  EXPECT_EQ(text.at("text"), "caf\u00e9 \uFFFD\uFFFD\uFFFD end\uFFFD");
  const std::string packed = folder_ / "packed.h5";
  EXPECT_EQ(
      Json::parse(must_run({"pack", "--model", tiny_.model, "--text", file, "--out", packed, "--json"}).out)
          .at("tokens"),
      ids.size());
  EXPECT_EQ(
      Json::parse(must_run({"eval", "perplexity", "--model", tiny_.model, "--text", file, "--json"}).out)
          .at("tokens"),
      ids.size() - 1);
  const Outcome generated = must_run(
      {"generate", "--model", tiny_.model, "--prompt", "\xFF\xC3", "--max-new-tokens", "5", "--json"});
  EXPECT_TRUE(Json::parse(generated.out).at("text").is_string());
  EXPECT_EQ(Json::parse(must_run({"tokenize", "--model", tiny_.model, "--decode", ""}).out).at("text"), "");
}

TEST_F(BadText, EmptyPrompts) {
  expect_refused(run_ridge({"generate", "--model", tiny_.model, "--prompt", ""}), {"prompt", "no tokens"});
}

TEST_F(BadText, RunConfigs) {
  write_text(folder_ / "empty.txt", "");
  write_text(folder_ / "one.txt", "a");
  write_text(folder_ / "bad.yaml", "model: {path: [}\n");
  write_text(folder_ / "file", "");
  const struct {
    std::string word;
    Parts parts;
  } cases[] = {
      {"train.stepz=4", {"train.stepz", "train.steps"}},
      {"train.steps=four", {"train.steps", "four"}},
      {"train.steps=-1", {"train.steps", "-1"}},
      {"train.global_batch=0", {"train.global_batch", "0"}},
      {"train.micro_batch=0", {"train.micro_batch", "0"}},
      {"train.precision=f16", {"train.precision", "f16"}},
      {"optim.lr=-1", {"optim.lr", "-1"}},
      {"optim.name=lion", {"optim.name", "lion", "adamw"}},
      {"optim.betas=[0.9]", {"optim.betas", "1"}},
      {"parallel.tp=2", {"tp 2", "number of ranks, 1"}},
      {"parallel.replicate=3", {"3", "ranks"}},
      {"device=tpu", {"device", "tpu"}},
      {"data.train=[]", {"data.train"}},
      {"train.eval_every=2", {"train.eval_every", "data.valid"}},
      {"foo", {"foo", "a.b=value"}},
      {"data.train=[" + (folder_ / "absent.txt") + "]", {"absent.txt", "No such file"}},
      {"data.train=[" + (folder_ / "empty.txt") + "]", {"empty.txt", "empty"}},
      {"data.train=[" + (folder_ / "one.txt") + "]", {"1 tokens", "data.sequence_length 32", "33"}},
      {"adapter.path=" + (folder_ / "absent"), {"absent/adapter_config.json"}},
      {"lora.targets=[zzz]", {"zzz", "model.layers.0.self_attn.q_proj"}},
      {"model.tokenizer=" + (folder_ / "absent"), {"absent/tokenizer.json"}},
      {"output=" + (folder_ / "file/below"), {"file/below", "cannot be made"}},
  };
  for (const auto& [word, parts] : cases) expect_refused(run_ridge({"train", tiny_.config, word}), parts);
  expect_refused(run_ridge({"train", folder_ / "absent.yaml"}), {"absent.yaml"});
  expect_refused(run_ridge({"train", folder_ / "bad.yaml"}), {"bad.yaml", "YAML"});
}

}  // namespace
}  // namespace ridge
