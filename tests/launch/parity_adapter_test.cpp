// Adapters with dropout on all linear layers, and a trained model, on many layouts against one rank.
#include <gtest/gtest.h>

#include "kernels/fill.h"
#include "lora/lora_config.h"
#include "tests/launch/parity.h"

namespace ridge {
namespace {

using namespace test;
using models::Recompute;
using parallel::ContextKind;
using parallel::Schedule;

// Adapters of which no part is zero, on all linear layers or on those that match.
std::string make_adapter(const models::ModelConfig& config, const std::string& folder,
                         const std::string& pattern = "") {
  models::Llama model(config, DType::f32, Device::cpu);
  lora::LoraConfig lora;
  lora.rank = 3;
  lora.alpha = 5;
  lora.dropout = 0.25;
  if (pattern.empty()) lora.targets = {"all-linear"};
  lora.target_pattern = pattern;
  lora.rank_pattern = {{"1.self_attn.v_proj", 5}};
  lora::add_adapters(model.linears(), lora, 7, Device::cpu);
  std::uint64_t stream = 0;
  for (const nn::Parameter& p : model.parameters()) {
    if (p.name.ends_with("lora_B.weight"))
      kernels::uniform<float>(current_stream(Device::cpu), p.value->view<float>(), -0.5, 0.5, {9, stream++});
  }
  lora::save_adapter(model.linears(), lora, folder);
  return folder;
}

Job adapter_job(Job job) {
  static const TemporaryFolder folder;
  job.name += "_adapter";
  job.adapter = folder / job.name;
  if (!std::filesystem::exists(job.adapter)) make_adapter(job.config, job.adapter);
  job.dtype = DType::f32;
  job.steps = 10;
  return job;
}

struct Layout {
  std::string name;
  Cut cut;
};

Layout layout(const std::string& name, const Degrees& degrees, std::int64_t accumulate,
              const std::function<void(ParallelOptions&)>& set = {}) {
  Cut cut{degrees, accumulate, {}};
  if (set) set(cut.options);
  return {name, cut};
}

std::vector<Layout> layouts() {
  return {
      layout("tp2", {1, 1, 1, 1, 2}, 3),
      layout("tp4_sequence", {1, 1, 1, 1, 4}, 3, [](auto& o) { o.sequence_parallel = true; }),
      layout("tp2_sequence_chunks2", {1, 1, 1, 1, 2}, 3,
             [](auto& o) { o.sequence_parallel = true, o.tp_chunks = 2; }),
      layout("tp8", {1, 1, 1, 1, 8}, 1),
      layout("cp2", {1, 1, 1, 2, 1}, 3),
      layout("cp4_ulysses", {1, 1, 1, 4, 1}, 3, [](auto& o) { o.context = ContextKind::ulysses; }),
      layout("pp2", {2, 1, 1, 1, 1}, 3),
      layout("pp2_uneven_recompute", {2, 1, 1, 1, 1}, 3,
             [](auto& o) {
               o.layers = {1, 4}, o.recompute = Recompute::blocks;
             }),
      layout("pp2_interleaved", {2, 1, 1, 1, 1}, 4, [](auto& o) { o.schedule = Schedule::interleaved; }),
      layout("pp4_zb_h1", {4, 1, 1, 1, 1}, 6, [](auto& o) { o.schedule = Schedule::zb_h1; }),
      layout("shard4", {1, 1, 4, 1, 1}, 3),
      layout("shard2_stage1", {1, 1, 2, 1, 1}, 3, [](auto& o) { o.fsdp.stage = 1; }),
      layout("replicate2", {1, 2, 1, 1, 1}, 3, [](auto& o) { o.recompute = Recompute::selective; }),
      layout("pp2_shard2_tp2", {2, 1, 2, 1, 2}, 3),
      layout("shard2_cp2_tp2", {1, 1, 2, 2, 2}, 3, [](auto& o) { o.sequence_parallel = true; }),
      layout("pp2_cp2_tp2_recompute", {2, 1, 1, 2, 2}, 3, [](auto& o) { o.recompute = Recompute::blocks; }),
      layout("replicate2_shard2_tp2", {1, 2, 2, 1, 2}, 3, [](auto& o) { o.fsdp.stage = 2; }),
  };
}

void expect_one_ranks_numbers(const Job& job, const Cut& cut) {
  if (on_gpu()) GTEST_SKIP() << kRanksAreOnTheCpu;
  const Distance d = distance(run_job(job, cut), one_rank(job));
  EXPECT_LE(d.losses, 1e-5);
  EXPECT_LE(d.norms, 1e-3);
  EXPECT_LE(d.evaluated, 1e-5);
  EXPECT_LE(d.gradients, 1e-4) << d.worst;
}

class AdapterParity : public ::testing::TestWithParam<Layout> {
 protected:
  static Job job(Job of) {
    const std::int64_t accumulate = GetParam().cut.accumulate;
    of.batch = accumulate % 3 == 0 ? 24 : 48;
    return adapter_job(std::move(of));
  }
};

TEST_P(AdapterParity, OfLlamaIsOneRanks) { expect_one_ranks_numbers(job(llama_job()), GetParam().cut); }
TEST_P(AdapterParity, OfQwenIsOneRanks) {
  Cut cut = GetParam().cut;
  if (!cut.options.layers.empty()) cut.options.layers = {2, 7};
  expect_one_ranks_numbers(job(qwen_job()), cut);
}

void PrintTo(const Layout& l, std::ostream* out) { *out << l.name; }

const auto name_of_layout = [](const auto& test) { return test.param.name; };
INSTANTIATE_TEST_SUITE_P(All, AdapterParity, ::testing::ValuesIn(layouts()), name_of_layout);

// Adapters on one block: all stages but one have nothing to train.
TEST(AdapterParity, WhereOneStageHasAll) {
  const TemporaryFolder folder;
  for (const char* block : {"0", "4"}) {
    Job job = llama_job();
    job.adapter = make_adapter(job.config, folder / block, fmt::format(".*layers\\.{}\\..*", block));
    job.name += std::string("_adapter_on_") + block;
    job.dtype = DType::f32;
    for (const Schedule schedule : {Schedule::one_f_one_b, Schedule::zb_h1, Schedule::zero_bubble}) {
      expect_one_ranks_numbers(
          job, layout("pp2", {2, 1, 1, 1, 1}, 3, [&](auto& o) { o.schedule = schedule; }).cut);
    }
  }
}

// Masks do matter: the loss of the first step is not that of the same rows without dropout.
TEST(AdapterParity, DropsAtAll) {
  Job job = adapter_job(llama_job());
  job.steps = 0;
  const double kept = run_job(job, {}).evaluated / static_cast<double>(job.batch * job.tokens);
  job.steps = 1;
  EXPECT_GT(std::fabs(run_job(job, {}).losses[0] / kept - 1), 1e-4);
}

class StoriesParity : public ::testing::TestWithParam<Layout> {};

std::vector<Layout> stories_layouts() {
  return {
      layout("shard8", {1, 1, 8, 1, 1}, 1),
      layout("tp4_sequence", {1, 1, 1, 1, 4}, 3, [](auto& o) { o.sequence_parallel = true; }),
      layout("cp4", {1, 1, 1, 4, 1}, 3),
      layout("pp5", {5, 1, 1, 1, 1}, 6),
      layout("pp2_zero_bubble", {2, 1, 1, 1, 1}, 3, [](auto& o) { o.schedule = Schedule::zero_bubble; }),
      layout("pp2_shard2_tp2", {2, 1, 2, 1, 2}, 3),
      layout("replicate2_cp2_tp2", {1, 2, 1, 2, 2}, 3, [](auto& o) { o.tp_chunks = 2; }),
  };
}

TEST_P(StoriesParity, IsOneRanks) {
  if (!have(stories_folder())) GTEST_SKIP() << stories_folder() << " is not there";
  Job job{"stories", models::ModelConfig::load(stories_folder()), stories_folder(), {}};
  job.dtype = DType::f32;
  job.tokens = 32;
  job.steps = 3;
  expect_one_ranks_numbers(job, GetParam().cut);
}

INSTANTIATE_TEST_SUITE_P(All, StoriesParity, ::testing::ValuesIn(stories_layouts()), name_of_layout);

}  // namespace
}  // namespace ridge
