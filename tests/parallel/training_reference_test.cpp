// Training against PyTorch: losses, gradient norms, every gradient and the final weights, on 1, 2 and 4
// ranks.
#include <gtest/gtest.h>

#include "tests/parallel/training_run.h"

namespace ridge {
namespace {

using test::Layout;
using test::Trained;
using test::TrainingRun;

class TrainingReference : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    run = test::training_run(GetParam());
    if (!test::have(run.model) || run.stream.empty())
      GTEST_SKIP() << run.model << " or its text is not there";
  }
  void record(const char* what, double error) { RecordProperty(what, std::to_string(error * 1e9) + "e-9"); }
  void expect_norms(const std::map<std::string, Tensor>& got, const std::map<std::string, double>& want) {
    EXPECT_EQ(got.size(), want.size());
    for (const auto& [name, norm] : want) {
      ASSERT_TRUE(got.contains(name)) << name;
      EXPECT_NEAR(test::norm_of(got.at(name)), norm, 1e-4 * norm) << name;
    }
  }
  TrainingRun run;
};

class FirstGradients : public TrainingReference {};
class Ranks : public TrainingReference {};

class Untied : public TrainingReference {
 protected:
  // Gradients that a second micro-batch joins with other roundings than a sum of two: a table's rows are
  // added one by one, B's product by a factor that is no power of two.
  bool joins_otherwise(const std::string& name) const {
    return name.ends_with("embed_tokens.weight") ||
           (run.name == "llama3_rslora" && name.ends_with("lora_B.weight"));
  }
  // Frozen weights that are sharded lie side by side, and are one product: it rounds otherwise.
  bool rounds_alike(const Layout& layout) const { return run.adapter.empty() || layout.shard == 1; }
  // To the bit, but for those, which later steps inherit.
  void expect_same(const Trained& got, const Trained& want, double tolerance) const {
    bool exact = true;
    for (const auto& [name, grad] : want.first_grads) {
      const bool otherwise = joins_otherwise(name);
      exact = exact && !otherwise;
      EXPECT_LE(test::norm_error(got.first_grads.at(name), grad), otherwise ? 1e-6 : 0) << name;
    }
    EXPECT_EQ(got.losses[0], want.losses[0]);
    EXPECT_LE(test::relative_difference(got.losses, want.losses), tolerance);
    if (!exact) return;
    EXPECT_EQ(got.losses, want.losses);
    EXPECT_EQ(got.grad_norms, want.grad_norms);
    EXPECT_TRUE(test::all_same_bits(got.weights, want.weights));
  }
};

TEST_P(TrainingReference, OneRankGivesPyTorchsNumbers) {
  const Trained got = test::train(run, Layout{}, run.steps)[0];
  const double losses = test::relative_difference(got.losses, run.losses);
  const double norms = test::relative_difference(got.grad_norms, run.grad_norms);
  record("losses", losses);
  record("norms", norms);
  EXPECT_LE(losses, 5e-6);  // the promise is 1e-4
  EXPECT_LE(norms, 5e-5);
  expect_norms(got.first_grads, run.first_grads);
  expect_norms(got.weights, run.final_norms);
}

TEST_P(FirstGradients, ArePyTorchs) {
  const std::string path = test::data_path("expected/grads_" + run.name + ".safetensors");
  const SafetensorsFile file = SafetensorsFile::open(path);
  std::map<std::string, Tensor> want;
  for (const TensorEntry& entry : file.entries()) want[entry.name] = test::read_tensor(file, entry.name);
  EXPECT_EQ(want.size(), run.first_grads.size());
  for (const int ranks : {1, 2, 4}) {
    if (ranks > 1 && test::on_gpu()) break;
    for (const Trained& rank : test::train(run, Layout{ranks, 4 / ranks}, 1)) {
      const double error = test::worst_error(rank.first_grads, want, test::normalized_error);
      if (ranks == 1) record("gradients", error);
      EXPECT_LE(error, 2e-5) << ranks << " ranks";  // the promise is 1e-4
    }
  }
}

// Another micro-batch sums in another order within each product: gradients of attention cancel, so they
// differ more.
TEST_P(Ranks, TwoAndFourGiveOneRanksNumbers) {
  if (test::on_gpu()) GTEST_SKIP() << test::kRanksAreOnTheCpu;
  const Trained whole = test::train(run, Layout{1, 4}, run.steps)[0];
  const Trained one = test::train(run, Layout{1, 1}, run.steps)[0];
  for (const int ranks : {2, 4}) {
    const std::vector<Trained> all = test::train(run, Layout{ranks, 1}, run.steps);
    for (const Trained& rank : all) {
      EXPECT_LE(test::relative_difference(rank.losses, whole.losses), 1e-6) << ranks << " ranks";
      EXPECT_LE(test::relative_difference(rank.losses, one.losses), 1e-6) << ranks << " ranks";
      EXPECT_LE(test::relative_difference(rank.grad_norms, one.grad_norms), 1e-5) << ranks << " ranks";
      EXPECT_LE(test::worst_error(rank.first_grads, one.first_grads, test::norm_error),
                run.adapter.empty() ? 1e-6 : 1e-5)
          << ranks << " ranks";
      EXPECT_LE(test::worst_error(rank.first_grads, whole.first_grads, test::norm_error), 1e-5);
      EXPECT_EQ(rank.losses, all[0].losses);
      EXPECT_TRUE(test::all_same_bits(rank.weights, all[0].weights));  // replicas stay replicas
    }
  }
}

TEST_P(Ranks, MicroBatchesGiveTheWholeBatchsNumbers) {
  const Trained whole = test::train(run, Layout{1, 4}, run.steps)[0];
  const Trained parts = test::train(run, Layout{1, 1}, run.steps)[0];
  EXPECT_LE(test::relative_difference(parts.losses, whole.losses), 1e-6);
  EXPECT_LE(test::relative_difference(parts.grad_norms, whole.grad_norms), 1e-5);
  EXPECT_LE(test::worst_error(parts.first_grads, whole.first_grads, test::norm_error), 3e-5);
}

TEST_P(Untied, ARunRepeatsToTheBit) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Layout layout{1, 2};
    layout.dtype = dtype;
    const Trained one = test::train(run, layout, 3)[0], same = test::train(run, layout, 3)[0];
    EXPECT_EQ(same.losses, one.losses);
    EXPECT_EQ(same.grad_norms, one.grad_norms);
    EXPECT_TRUE(test::all_same_bits(same.first_grads, one.first_grads));
    EXPECT_TRUE(test::all_same_bits(same.weights, one.weights));
  }
}

// One rank that adds four micro-batches, and four ranks that sum one each, add the same numbers in one order;
// a tied table, which gets two parts a micro-batch, does not.
TEST_P(Untied, FourRanksAreFourMicroBatchesToTheBit) {
  if (test::on_gpu()) GTEST_SKIP() << test::kRanksAreOnTheCpu;
  const Trained one = test::train(run, Layout{1, 1}, run.steps)[0];
  for (const Layout& layout : {Layout{4, 1}, Layout{1, 1, 4}}) {
    if (!rounds_alike(layout)) continue;
    for (const Trained& rank : test::train(run, layout, run.steps)) expect_same(rank, one, 1e-6);
  }
}

// The layouts that one machine under test can have: threads as ranks are the CPU's own.
std::vector<Layout> layouts_here() {
  return test::on_gpu() ? std::vector<Layout>{{1, 2}} : std::vector<Layout>{{1, 2}, {2, 2}};
}

TEST_P(Ranks, RecomputeChangesNoBit) {
  for (Layout layout : layouts_here()) {
    const Trained kept = test::train(run, layout, 3)[0];
    for (const models::Recompute recompute : {models::Recompute::selective, models::Recompute::blocks}) {
      layout.recompute = recompute;
      const Trained again = test::train(run, layout, 3)[0];
      EXPECT_EQ(again.losses, kept.losses);
      EXPECT_EQ(again.grad_norms, kept.grad_norms);
      EXPECT_TRUE(test::all_same_bits(again.first_grads, kept.first_grads));
      EXPECT_TRUE(test::all_same_bits(again.weights, kept.weights));
    }
  }
}

// Weights and activations in bf16, gradients, moments and masters in f32.
TEST_P(Untied, Bf16FollowsF32AndItsRanksFollowItsMicroBatches) {
  Layout layout{1, 1};
  layout.dtype = DType::bf16;
  const Trained one = test::train(run, layout, run.steps)[0];
  const double error = test::relative_difference(one.losses, run.losses);
  record("losses", error);
  EXPECT_LE(error, 0.01);
  EXPECT_GT(error, 1e-5);  // it does compute in bf16
  if (test::on_gpu()) return;
  (run.adapter.empty() ? layout.shard : layout.replicate) = 4;
  for (const Trained& rank : test::train(run, layout, run.steps)) expect_same(rank, one, 1e-3);
}

const auto name_of_run = [](const auto& test) { return std::string(test.param); };
const auto tiny_runs = ::testing::Values("llama3", "qwen2", "llama3_all_linear", "llama3_rslora");

INSTANTIATE_TEST_SUITE_P(Tiny, TrainingReference, tiny_runs, name_of_run);
INSTANTIATE_TEST_SUITE_P(Tiny, FirstGradients, tiny_runs, name_of_run);
INSTANTIATE_TEST_SUITE_P(Tiny, Ranks, tiny_runs, name_of_run);
INSTANTIATE_TEST_SUITE_P(Tiny, Untied, tiny_runs, name_of_run);
INSTANTIATE_TEST_SUITE_P(Stories, TrainingReference,
                         ::testing::Values("full", "full_accumulated", "full_no_decay", "full_linear_warmup",
                                           "full_sgd", "full_sgd_decay", "lora", "lora_accumulated"),
                         name_of_run);
INSTANTIATE_TEST_SUITE_P(Stories, Ranks, ::testing::Values("full", "full_sgd_decay", "lora"), name_of_run);
INSTANTIATE_TEST_SUITE_P(Stories, Untied, ::testing::Values("lora"), name_of_run);

TEST(TrainingData, TheStreamIsTheOneThatPyTorchSaw) {
  if (!test::have(test::wikitext_folder())) GTEST_SKIP() << "no WikiText-2 beside the project";
  const nlohmann::json want = test::training_json().at("valid_ids");
  const std::vector<std::int32_t> ids = test::wikitext_valid_ids();
  EXPECT_EQ(ids.size(), want.at("count").get<std::size_t>());
  EXPECT_EQ(std::accumulate(ids.begin(), ids.end(), std::int64_t{0}), want.at("sum").get<std::int64_t>());
}

}  // namespace
}  // namespace ridge
