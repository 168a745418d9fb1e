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

}  // namespace
}  // namespace ridge
