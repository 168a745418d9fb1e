// Adapters on quantized weights: their gradients against those on the dequantized weights, and every layout
// against one rank.
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/launch/parity.h"

namespace ridge {
namespace {

using namespace test;
using kernels::parse_weight_format;
using models::Recompute;
using parallel::Schedule;

// Wide enough that two ranks' pieces of every weight are whole blocks of 64.
Job wide_job() {
  constexpr const char* kConfig =
      R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
          "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8,
          "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 37, "max_position_embeddings": 64,
          "rms_norm_eps": 1.0e-5, "initializer_range": 0.1, "tie_word_embeddings": false})";
  Job job{"wide", models::ModelConfig::parse(kConfig, "wide"), {}, {}};
  job.dtype = DType::f32;
  job.batch = 12;
  return job;
}

lora::LoraConfig on_all_linears() {
  lora::LoraConfig lora;
  lora.rank = 4;
  lora.alpha = 8;
  lora.targets = {"all-linear"};
  return lora;
}

Cut cut_of(const std::string& format, const Degrees& degrees = {1, 1, 1, 1, 1}, std::int64_t accumulate = 3) {
  Cut cut{degrees, accumulate, {}};
  cut.options.lora = on_all_linears();
  if (!format.empty()) cut.options.quantize = parse_weight_format(format);
  return cut;
}

// The model of a seed as a folder of f32, and that with every linear layer of its blocks as the format leaves
// it.
void save_both(const Job& job, const std::string& format, const std::string& source,
               const std::string& dequantized) {
  models::Llama model(job.config, DType::f32, Device::cpu);
  model.initialize(3);
  models::save_model(model, source, DType::f32, "");
  for (const nn::LinearSlot& linear : model.linears()) {
    if (linear.path == "lm_head") continue;
    Tensor& weight = dynamic_cast<nn::DenseLinear&>(**linear.slot).weight();
    weight = dequantize(quantize(weight, parse_weight_format(format)), DType::f32);
  }
  models::save_model(model, dequantized, DType::f32, "");
}

class QuantizedBase : public ::testing::TestWithParam<const char*> {};

TEST_P(QuantizedBase, GradientsAreThoseOfTheDequantizedBase) {
  if (on_gpu()) GTEST_SKIP() << kRanksAreOnTheCpu;
  const TemporaryFolder folder;
  Job job = wide_job(), dense = wide_job();
  job.folder = folder / "source";
  dense.folder = folder / "dense";
  save_both(job, GetParam(), job.folder, dense.folder);
  const Distance d = distance(run_job(job, cut_of(GetParam())), run_job(dense, cut_of("")));
  EXPECT_LE(d.losses, 1e-6);
  EXPECT_LE(d.evaluated, 1e-6);
  EXPECT_LE(d.gradients, 1e-6) << d.worst;
  job.dtype = dense.dtype = DType::bf16;
  const Distance narrow = distance(run_job(job, cut_of(GetParam())), run_job(dense, cut_of("")));
  EXPECT_LE(narrow.losses, 1e-3);
  EXPECT_LE(narrow.gradients, 1e-3) << narrow.worst;
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedBase,
                         ::testing::Values("int8", "fp8", "fp8-block", "nf4", "nf4-dq", "fp4", "int4-g32",
                                           "int4-g128-zp"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

struct Layout {
  std::string name;
  Cut cut;
};

std::vector<Layout> layouts() {
  std::vector<Layout> all{
      {"shard4_nf4_dq", cut_of("nf4-dq", {1, 1, 4, 1, 1})},
      {"shard2_stage1_int4", cut_of("int4-g64-zp", {1, 1, 2, 1, 1})},
      {"shard2_recompute_nf4_dq", cut_of("nf4-dq", {1, 1, 2, 1, 1})},
      {"replicate2_fp8_block", cut_of("fp8-block", {1, 2, 1, 1, 1})},
      {"tp2_nf4_dq", cut_of("nf4-dq", {1, 1, 1, 1, 2})},
      {"tp2_sequence_fp8_block", cut_of("fp8-block", {1, 1, 1, 1, 2})},
      {"tp4_int8", cut_of("int8", {1, 1, 1, 1, 4})},
      {"cp2_nf4", cut_of("nf4", {1, 1, 1, 2, 1})},
      {"pp2_zero_bubble_nf4_dq", cut_of("nf4-dq", {2, 1, 1, 1, 1})},
      {"pp2_shard2_tp2_nf4_dq", cut_of("nf4-dq", {2, 1, 2, 1, 2})},
      {"shard2_tp2_int4", cut_of("int4-g32", {1, 1, 2, 1, 2})},
  };
  all[1].cut.options.fsdp.stage = 1;
  all[2].cut.options.recompute = Recompute::blocks;
  all[5].cut.options.sequence_parallel = true;
  all[8].cut.options.schedule = Schedule::zero_bubble;
  return all;
}

class QuantizedParity : public ::testing::TestWithParam<Layout> {};

TEST_P(QuantizedParity, IsOneRanks) {
  if (on_gpu()) GTEST_SKIP() << kRanksAreOnTheCpu;
  Job job = wide_job();
  job.steps = 4;
  Cut whole = GetParam().cut;
  whole.degrees = {1, 1, 1, 1, 1};
  whole.options.sequence_parallel = false;
  const Distance d = distance(run_job(job, GetParam().cut), run_job(job, whole));
  EXPECT_LE(d.losses, 1e-5);
  EXPECT_LE(d.norms, 1e-4);
  EXPECT_LE(d.evaluated, 1e-5);
  EXPECT_LE(d.gradients, 1e-4) << d.worst;
}

void PrintTo(const Layout& l, std::ostream* out) { *out << l.name; }
INSTANTIATE_TEST_SUITE_P(Layouts, QuantizedParity, ::testing::ValuesIn(layouts()),
                         [](const auto& info) { return info.param.name; });

TEST(QuantizedTraining, WeightsThatAreNotFiniteAreNamed) {
  if (on_gpu()) GTEST_SKIP() << kRanksAreOnTheCpu;
  const TemporaryFolder folder;
  Job job = wide_job();
  job.folder = folder / "bad";
  models::Llama model(job.config, DType::f32, Device::cpu);
  model.initialize(3);
  const nn::LinearSlot bad = model.linears().at(4);
  dynamic_cast<nn::DenseLinear&>(**bad.slot).weight().span<float>()[777] = std::nanf("");
  models::save_model(model, job.folder, DType::f32, "");
  try {
    run_job(job, cut_of("nf4"));
    FAIL() << "a NaN became codes";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find(bad.path), std::string::npos) << error.what();
  }
}

// A rank holds none of its unit's codes whole between their uses.
TEST(QuantizedTraining, ShardsHoldTheirPartOfTheBytes) {
  if (on_gpu()) GTEST_SKIP() << kRanksAreOnTheCpu;
  const Job job = wide_job();
  const auto live = [&](int shards) {
    std::int64_t bytes = 0;
    parallel::run_ranks(shards, [&](parallel::Communicator& world) {
      parallel::Groups groups(parallel::Mesh({1, 1, shards, 1, 1}), world);
      ParallelOptions options = cut_of("nf4").options;
      options.dtype = DType::f32;
      const ParallelModel model(job.config, nullptr, options, groups, Device::cpu);
      world.barrier();
      if (world.rank() == 0) {
        for (const nn::Parameter& p : const_cast<ParallelModel&>(model).model().parameters())
          bytes += p.value->dtype() == DType::u8 && !p.value->storage()->dropped() ? p.value->bytes() : 0;
      }
      world.barrier();
    });
    return bytes;
  };
  EXPECT_GT(live(1), 0);
  EXPECT_EQ(live(2), 0);
}

// What a run is refused for is no more than what a rank has: the plan does not hold the codes whole beside
// the rank's part of them.
TEST(QuantizedTraining, PlansCountARanksPartOfTheBytes) {
  const Job job = wide_job();
  const auto live = [&](int shards) {
    const std::int64_t before = memory_stats(Device::meta).live;
    parallel::Groups groups = parallel::Groups::simulated(parallel::Mesh({1, 1, shards, 1, 1}), 0,
                                                          parallel::SimulatedNetwork{1e30, 0});
    ParallelOptions options = cut_of("nf4").options;
    options.dtype = DType::f32;
    options.fsdp.stage = 3;
    const ParallelModel model(job.config, nullptr, options, groups, Device::meta);
    return memory_stats(Device::meta).live - before;
  };
  EXPECT_LT(static_cast<double>(live(4)), 0.35 * static_cast<double>(live(1)));
}

TEST(QuantizedTraining, WhatCannotBeIsSaid) {
  if (on_gpu()) GTEST_SKIP() << kRanksAreOnTheCpu;
  Job job = wide_job();
  Cut cut = cut_of("nf4");
  cut.options.lora.reset();
  EXPECT_THROW(run_job(job, cut), UserError);  // quantized weights are not trained
  job.config.hidden_size = 96;
  EXPECT_THROW(run_job(job, cut_of("int4-g64")), UserError);  // 96 columns
  job.config.intermediate_size = 192;
  job.config.hidden_size = 128;
  EXPECT_THROW(run_job(job, cut_of("nf4", {1, 1, 1, 1, 2})), UserError);  // pieces of 96 columns
}

}  // namespace
}  // namespace ridge
