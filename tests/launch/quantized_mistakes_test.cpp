// Mistakes with quantized models, which once gave wrong answers: each has an error that says so.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

using namespace test;

// As TinyModel, but with rows of one group of 32 wherever ranks cut columns.
void save_narrow(const TinyModel& tiny) {
  std::string arch = kTinyArch;
  const std::string from = "\"intermediate_size\": 48";
  arch.replace(arch.find(from), from.size(), "\"intermediate_size\": 64");
  models::Llama llama(models::ModelConfig::parse(arch, "narrow"), DType::f32, Device::cpu);
  llama.initialize(1);
  models::save_model(llama, tiny.model, DType::f32, tiny.tokenizer);
}

TEST(QuantizedMistakes, RanksDoNotCutWithinTheOnlyGroupOfARow) {
  const TemporaryFolder folder;
  const TinyModel tiny(folder);
  save_narrow(tiny);
  must_run({"quantize", "--model", tiny.model, "--format", "int4-g32", "--out", folder / "q"});
  RunOptions two;
  two.ranks = 2;
  const Arguments generate{"generate", "--prompt", "Once", "--max-new-tokens", "4", "--tp", "2", "--model"};
  for (const Arguments& model : {Arguments{tiny.model, "--quantize", "int4-g32"}, Arguments{folder / "q"}}) {
    Arguments words = generate;
    words.insert(words.end(), model.begin(), model.end());
    const Outcome outcome = run_ridge(words, two);
    EXPECT_NE(outcome.exit_code, 0);
    EXPECT_EQ(outcome.out, "");
    for (const char* part : {"o_proj over tp 2", "int4-g32", "cut at 16 of 32", "within a group", "int8"})
      EXPECT_NE(outcome.err.find(part), std::string::npos) << part << " is not in " << outcome.err;
  }
}

class QuantizedFolders : public testing::Test {
 protected:
  QuantizedFolders() {
    tiny_.save();
    must_run({"quantize", "--model", tiny_.model, "--format", "int8", "--out", quantized_});
  }
  TemporaryFolder folder_;
  const TinyModel tiny_{folder_};
  const std::string quantized_ = folder_ / "q";
};

TEST_F(QuantizedFolders, AreNotQuantizedToAnotherFormat) {
  write_text(folder_ / "ids.json", "[[1, 2, 3]]");
  const std::vector<Arguments> commands = {
      {"eval", "perplexity", "--text", tiny_.text, "--window", "16", "--max-tokens", "40"},
      {"logits", "--ids", folder_ / "ids.json", "--out", folder_ / "l.safetensors"},
      {"generate", "--prompt", "Once", "--max-new-tokens", "4"}};
  for (Arguments words : commands) {
    words.insert(words.end(), {"--model", quantized_, "--quantize", "fp8"});
    expect_user_error(run_ridge(words), {"quantizing to fp8", "q_proj is stored as int8"});
    words.back() = "int8";  // as it is
    must_run(words);
  }
}

TEST_F(QuantizedFolders, AreNotTimedAsDenseOnes) {
  for (const char* command : {"decode", "prefill"}) {
    Arguments words{"bench", command, "--model", quantized_};
    expect_user_error(run_ridge(words),
                      {quantized_, "compressed-tensors, 8 bits of int", "random", "--quantize"});
  }
  must_run(
      {"bench", "decode", "--model", quantized_, "--tokens", "2", "--prompt", "2", "--quantize", "int8"});
  std::filesystem::remove(quantized_ + "/model.safetensors");
  expect_user_error(run_ridge({"profile", "--generate", "--model", quantized_}),
                    {quantized_, "compressed-tensors", "random"});
}

TEST_F(QuantizedFolders, AreDescribedByTheirConfigAlone) {
  std::filesystem::remove(quantized_ + "/model.safetensors");
  const Outcome outcome = must_run({"info", "--model", quantized_, "--json"});
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json.at("weight_format"), "compressed-tensors, 8 bits of int, symmetric, strategy channel");
  EXPECT_NE(outcome.err.find("there are none: bytes are those of dense weights in f32"), std::string::npos);
}

TEST(DenseMistakes, AnswersThatAreNoNumbersAreSaid) {
  const TemporaryFolder folder;
  const TinyModel tiny(folder);
  models::Llama llama(models::ModelConfig::parse(kTinyArch, "tiny"), DType::f32, Device::cpu);
  llama.initialize(1);
  for (const nn::Parameter& p : llama.parameters()) {
    if (p.name == "model.norm.weight") p.value->span<float>()[3] = HUGE_VALF;
  }
  models::save_model(llama, tiny.model, DType::f32, tiny.tokenizer);
  expect_user_error(run_ridge({"eval", "perplexity", "--model", tiny.model, "--text", tiny.text, "--window",
                               "16", "--max-tokens", "40", "--json"}),
                    {"the perplexity is", "nan", "element 3 of model.norm.weight is inf"});
  write_text(folder / "ids.json", "[[1, 2, 3]]");
  const Outcome logits = must_run(
      {"logits", "--model", tiny.model, "--ids", folder / "ids.json", "--out", folder / "l.safetensors"});
  EXPECT_NE(logits.err.find("row 0, position 0"), std::string::npos) << logits.err;
  EXPECT_NE(logits.err.find("element 3 of model.norm.weight is inf"), std::string::npos) << logits.err;
}

TEST(RunMistakes, AFormatAndItsOppositeAreAnError) {
  const TemporaryFolder folder;
  const TinyModel tiny(folder);
  tiny.save();
  const std::string config = write_config(folder, tiny.model, tiny.text);
  expect_user_error(
      run_ridge({"train", config, "lora.rank=2", "model.quantize=nf4-dq", "model.double_quant=false"}),
      {"model.quantize is nf4-dq", "model.double_quant is false"});
}

}  // namespace
}  // namespace ridge
