// Models over ranks with the values of one rank's.
#include "launch/rank_model.h"

#include <gtest/gtest.h>

#include "inference/engine.h"
#include "launch/context.h"
#include "tests/parallel/mpirun.h"

namespace ridge {
namespace {

using namespace test;

TEST(RankModel, RandomWeightsAreOneRanks) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  for (const int ranks : {2, 4}) expect_ranks_pass(ranks, "RankModelRanks.RandomWeights*");
}

TEST(RankModel, AdaptersAreOneRanks) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  expect_ranks_pass(3, "RankModelRanks.Adapters*");
}

std::vector<std::vector<std::int32_t>> ids_of(models::Llama& model) {
  std::vector<inference::Request> requests;
  for (const std::uint64_t which : {1, 2, 3})
    requests.push_back({random_prompt(7, model.config().vocab_size, which), 12});
  std::vector<std::vector<std::int32_t>> ids;
  for (const auto& done : inference::Engine(model, {.slots = 3}).generate(requests)) ids.push_back(done.ids);
  return ids;
}

TEST(RankModelRanks, RandomWeightsAreOneRanks) {
  if (!launched_by_mpi()) GTEST_SKIP() << "started by RankModel.RandomWeightsAreOneRanks";
  Context context(mpi_process.session());
  context.device = "cpu";
  const int ranks = context.ranks().size();
  for (const std::string model : {"bf16", "llama_bias"}) {
    for (const std::string format : {"", "int8"}) {
      DecoderOptions options;
      options.model = std::string(RIDGE_SOURCE_DIR) + "/tests/data/models/" + model;
      options.dtype = "f32";
      options.quantize = format;
      const auto wanted = ids_of(*decoder_model(options, Device::cpu));
      const RankModel mine = random_over_ranks(options, ranks, Device::cpu, context);
      EXPECT_EQ(ids_of(*mine.model), wanted) << model << " " << format << " over " << ranks;
      EXPECT_LT(decoded_weight_bytes(*mine.model),
                0.8 * decoded_weight_bytes(*decoder_model(options, Device::cpu)));
    }
  }
}

TEST(RankModelRanks, AdaptersAreOneRanks) {
  if (!launched_by_mpi()) GTEST_SKIP() << "started by RankModel.AdaptersAreOneRanks";
  Context context(mpi_process.session());
  context.device = "cpu";
  const std::string data = std::string(RIDGE_SOURCE_DIR) + "/tests/data/models/";
  ModelOptions options;
  options.model = data + "llama3";
  options.dtype = "f32";
  const auto bare = ids_of(*load(options, context));
  for (const std::string adapter : {"plain", "all_linear", "patterns", "layers"}) {
    for (const std::string format : {"", "int8"}) {
      options.adapter = data + "adapters/" + adapter;
      options.quantize = format;
      const auto wanted = ids_of(*load(options, context));
      const RankModel mine = load_over_ranks(options, context.ranks().size(), context);
      EXPECT_EQ(ids_of(*mine.model), wanted) << adapter << " " << format;
      EXPECT_NE(wanted, bare) << adapter << " " << format;
    }
  }
}

}  // namespace
}  // namespace ridge
