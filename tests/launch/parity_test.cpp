// Every axis and many products of them against one rank, as threads on tiny models.
#include <gtest/gtest.h>

#include "tests/launch/parity.h"

namespace ridge {
namespace {

using namespace test;
using models::Recompute;
using parallel::ContextKind;
using parallel::Schedule;

constexpr const char* kAxisNames[] = {"pp", "replicate", "shard", "cp", "tp"};

struct Layout {
  std::string name;
  Cut cut;
};

void PrintTo(const Layout& l, std::ostream* out) { *out << l.name; }

// One axis of 2, 4 or 8 ranks.
std::vector<Layout> single_axes() {
  std::vector<Layout> all{{"accumulate3", {{1, 1, 1, 1, 1}, 3, {}}}};
  for (std::size_t axis = 0; axis < parallel::kAxes; ++axis) {
    for (const int ranks : {2, 4, 8}) {
      Cut cut;
      cut.degrees[axis] = ranks;
      cut.accumulate = 3;
      all.push_back({kAxisNames[axis] + std::to_string(ranks), cut});
    }
  }
  return all;
}

Layout layout(const std::string& name, const Degrees& degrees, std::int64_t accumulate,
              const std::function<void(ParallelOptions&)>& set = {}) {
  Cut cut{degrees, accumulate, {}};
  if (set) set(cut.options);
  return {name, cut};
}

// What one axis can do beside its usual form.
std::vector<Layout> forms() {
  return {
      layout("pp4_gpipe", {4, 1, 1, 1, 1}, 3, [](auto& o) { o.schedule = Schedule::gpipe; }),
      layout("pp2_interleaved", {2, 1, 1, 1, 1}, 4, [](auto& o) { o.schedule = Schedule::interleaved; }),
      layout("pp4_zb_h1", {4, 1, 1, 1, 1}, 6, [](auto& o) { o.schedule = Schedule::zb_h1; }),
      layout("pp2_zero_bubble", {2, 1, 1, 1, 1}, 3, [](auto& o) { o.schedule = Schedule::zero_bubble; }),
      layout("pp2_uneven", {2, 1, 1, 1, 1}, 3,
             [](auto& o) {
               o.layers = {1, 4};
             }),
      layout("pp2_one_micro_batch", {2, 1, 1, 1, 1}, 1),
      layout("pp2_recompute", {2, 1, 1, 1, 1}, 3, [](auto& o) { o.recompute = Recompute::blocks; }),
      layout("shard4_stage1", {1, 1, 4, 1, 1}, 3, [](auto& o) { o.fsdp.stage = 1; }),
      layout("shard4_stage2_no_sync", {1, 1, 4, 1, 1}, 3,
             [](auto& o) { o.fsdp.stage = 2, o.fsdp.no_sync = true; }),
      layout("shard4_kept", {1, 1, 4, 1, 1}, 3, [](auto& o) { o.fsdp.keep_gathered = true; }),
      layout("cp2_ulysses", {1, 1, 1, 2, 1}, 3, [](auto& o) { o.context = ContextKind::ulysses; }),
      layout("cp4_ulysses", {1, 1, 1, 4, 1}, 1, [](auto& o) { o.context = ContextKind::ulysses; }),
      layout("tp2_sequence", {1, 1, 1, 1, 2}, 3, [](auto& o) { o.sequence_parallel = true; }),
      layout("tp4_sequence_chunks2", {1, 1, 1, 1, 4}, 1,
             [](auto& o) { o.sequence_parallel = true, o.tp_chunks = 2; }),
      layout("tp2_chunks2", {1, 1, 1, 1, 2}, 3, [](auto& o) { o.tp_chunks = 2; }),
      layout("tp2_sequence_recompute", {1, 1, 1, 1, 2}, 3,
             [](auto& o) { o.sequence_parallel = true, o.recompute = Recompute::blocks; }),
      layout("tp4_selective", {1, 1, 1, 1, 4}, 3, [](auto& o) { o.recompute = Recompute::selective; }),
  };
}

std::vector<Layout> products() {
  return {
      layout("pp2_shard2_tp2", {2, 1, 2, 1, 2}, 3),
      layout("pp2_shard2_cp2", {2, 1, 2, 2, 1}, 3, [](auto& o) { o.fsdp.stage = 2; }),
      layout("cp2_tp2", {1, 1, 1, 2, 2}, 3),
      layout("cp2_tp2_sequence", {1, 1, 1, 2, 2}, 3, [](auto& o) { o.sequence_parallel = true; }),
      layout("cp2_tp2_ulysses", {1, 1, 1, 2, 2}, 3, [](auto& o) { o.context = ContextKind::ulysses; }),
      layout("replicate2_shard2_tp2", {1, 2, 2, 1, 2}, 3),
      layout("replicate2_shard2_cp2", {1, 2, 2, 2, 1}, 3, [](auto& o) { o.fsdp.stage = 1; }),
      layout("replicate2_shard4", {1, 2, 4, 1, 1}, 3, [](auto& o) { o.fsdp.no_sync = true; }),
      layout("shard2_cp2_tp2", {1, 1, 2, 2, 2}, 3, [](auto& o) { o.sequence_parallel = true; }),
      layout("shard2_tp4", {1, 1, 2, 1, 4}, 3, [](auto& o) { o.sequence_parallel = true, o.tp_chunks = 2; }),
      layout("pp2_cp2_tp2_recompute", {2, 1, 1, 2, 2}, 3, [](auto& o) { o.recompute = Recompute::blocks; }),
      layout("pp2_cp4", {2, 1, 1, 4, 1}, 3),
      layout("pp2_tp4_sequence", {2, 1, 1, 1, 4}, 3, [](auto& o) { o.sequence_parallel = true; }),
      layout("pp2_replicate2_shard2", {2, 2, 2, 1, 1}, 3, [](auto& o) { o.fsdp.stage = 2; }),
      layout("pp2_replicate2_tp2_zb_h1", {2, 2, 1, 1, 2}, 3, [](auto& o) { o.schedule = Schedule::zb_h1; }),
      layout("pp2_tp2_zero_bubble", {2, 1, 1, 1, 2}, 4, [](auto& o) { o.schedule = Schedule::zero_bubble; }),
      layout("pp2_shard2_interleaved", {2, 1, 2, 1, 1}, 4,
             [](auto& o) { o.schedule = Schedule::interleaved, o.fsdp.stage = 1; }),
      layout("pp2_tp2_uneven", {2, 1, 1, 1, 2}, 3,
             [](auto& o) {
               o.layers = {3, 2};
             }),
      layout("pp4_shard2", {4, 1, 2, 1, 1}, 3, [](auto& o) { o.recompute = Recompute::selective; }),
      layout("pp4_tp2_zb_h1", {4, 1, 1, 1, 2}, 3, [](auto& o) { o.schedule = Schedule::zb_h1; }),
  };
}

// Of nine blocks.
std::vector<Layout> deep_pipelines() {
  return {
      layout("pp4_interleaved", {4, 1, 1, 1, 1}, 4, [](auto& o) { o.schedule = Schedule::interleaved; }),
      layout("pp4_zero_bubble", {4, 1, 1, 1, 1}, 6, [](auto& o) { o.schedule = Schedule::zero_bubble; }),
      layout("pp2_interleaved4", {2, 1, 1, 1, 1}, 4,
             [](auto& o) { o.schedule = Schedule::interleaved, o.stages_per_rank = 4; }),
      layout("pp4_uneven", {4, 1, 1, 1, 1}, 3,
             [](auto& o) {
               o.layers = {1, 3, 3, 2};
             }),
      layout("pp4_tp2_interleaved", {4, 1, 1, 1, 2}, 4,
             [](auto& o) { o.schedule = Schedule::interleaved, o.sequence_parallel = true; }),
  };
}

// Steps of f32 multiply the roundings of the first.
void expect_one_ranks_numbers(const Job& job, const Cut& cut) {
  const Distance d = distance(run_job(job, cut), one_rank(job));
  const bool wide = job.dtype == DType::f64 && job.adapter.empty();
  EXPECT_LE(d.losses, wide ? 1e-10 : 1e-5);
  EXPECT_LE(d.norms, wide ? 1e-10 : 1e-3);
  EXPECT_LE(d.evaluated, wide ? 1e-10 : 1e-5);
  EXPECT_LE(d.gradients, wide ? 1e-10 : 1e-4) << d.worst;
}

void expect_parity(Job job, const Cut& cut) {
  if (on_gpu()) GTEST_SKIP() << kRanksAreOnTheCpu;
  Job f64 = job, f32 = job;
  // Sequences of whole pieces for the ranks that share them.
  f64.tokens = f32.tokens = cut.degrees[3] == 8 ? 32 : 16;
  f64.batch = f32.batch = 24 * (cut.accumulate % 3 == 0 ? 1 : 2);
  f32.dtype = DType::f32;
  f32.steps = 10;
  if (job.adapter.empty()) expect_one_ranks_numbers(f64, cut);
  expect_one_ranks_numbers(f32, cut);
}

class LlamaParity : public ::testing::TestWithParam<Layout> {};
class QwenParity : public ::testing::TestWithParam<Layout> {};

TEST_P(LlamaParity, IsOneRanks) {
  if (GetParam().cut.degrees[0] > 5) GTEST_SKIP() << "more stages than blocks";
  expect_parity(llama_job(), GetParam().cut);
}
TEST_P(QwenParity, IsOneRanks) { expect_parity(qwen_job(), GetParam().cut); }

const auto name_of_layout = [](const auto& test) { return test.param.name; };

INSTANTIATE_TEST_SUITE_P(Axis, LlamaParity, ::testing::ValuesIn(single_axes()), name_of_layout);
INSTANTIATE_TEST_SUITE_P(Form, LlamaParity, ::testing::ValuesIn(forms()), name_of_layout);
INSTANTIATE_TEST_SUITE_P(Product, LlamaParity, ::testing::ValuesIn(products()), name_of_layout);
INSTANTIATE_TEST_SUITE_P(Axis, QwenParity, ::testing::ValuesIn(single_axes()), name_of_layout);
INSTANTIATE_TEST_SUITE_P(Pipeline, QwenParity, ::testing::ValuesIn(deep_pipelines()), name_of_layout);

}  // namespace
}  // namespace ridge
