#include "launch/bench_layout.h"

#include "core/base/error.h"
#include "launch/check_layout.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"
#include "launch/training_setup.h"

namespace ridge {
namespace {

constexpr std::int64_t kMost = 1000000000;

config::RunConfig resolved(const std::vector<std::string>& fields, int ranks) {
  std::vector<std::string> overrides;
  for (const std::string& field : fields) overrides.push_back("parallel." + field);
  config::RunConfig run = parse_run_config("{}", "--parallel", overrides);
  resolve_parallel(run, ranks);
  return run;
}

}  // namespace

void StepOptions::add_to(const Command& command) {
  command.option("--batch", batch, "Sequences of a micro-batch");
  command.option("--sequence-length", sequence_length, "Tokens of a sequence");
  command.option("--accumulate", accumulate, "Micro-batches of a step");
  command.option("--recompute", recompute, "none, selective or blocks");
  command.option("--moments", moments, "f32 or bf16");
  command.flag("--any-order", any_order,
               "Attention's gradients summed in any order: faster, other bits each time");
  command.option("--lora-rank", lora_rank,
                 "Train adapters of this rank on all linear layers; 0: all weights");
  command.option("--quantize", quantize,
                 "With --lora-rank: the format of the linear layers' weights, for example nf4-dq");
  command.option("--parallel", parallel, "Fields of the run config's parallel: shard=4 stage=3 ...");
}

parallel::Mesh StepOptions::mesh(int ranks) const { return mesh_of(resolved(parallel, ranks)); }

void StepOptions::check(const models::ModelConfig& model, int ranks) const {
  config::RunConfig run = resolved(parallel, ranks);
  run.mutable_data()->set_sequence_length(sequence_length);
  check_layout(run, model);
}

TrainingOptions StepOptions::training(int ranks) const {
  const auto counted = [](const char* option, std::int64_t value, std::int64_t least) {
    require(value >= least && value <= kMost, "{} is {}: give {} to {}", option, value, least, kMost);
  };
  counted("--batch", batch, 1);
  counted("--sequence-length", sequence_length, 1);
  counted("--accumulate", accumulate, 1);
  counted("--lora-rank", lora_rank, 0);
  TrainingOptions to{batch,      sequence_length,
                     accumulate, parse_dtype(moments),
                     lora_rank,  layout_options(resolved(parallel, ranks).parallel())};
  to.layout.dtype = parse_dtype(dtype);
  to.layout.recompute = parse_recompute(recompute);
  to.layout.deterministic = !any_order;
  if (!quantize.empty()) {
    require(lora_rank > 0, "--quantize {}: quantized weights are not trained: give --lora-rank too",
            quantize);
    to.layout.quantize = kernels::parse_weight_format(quantize);
  }
  return to;
}

}  // namespace ridge
