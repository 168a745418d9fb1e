#include "launch/check_layout.h"

#include "core/base/error.h"
#include "launch/parallelize.h"
#include "launch/run_config.pb.h"
#include "parallel/context_parallel.h"
#include "parallel/schedule.h"
#include "parallel/tensor_parallel.h"

namespace ridge {
namespace {

void check_context_parallel(const config::RunConfig& run, const models::ModelConfig& model) {
  const int cp = static_cast<int>(run.parallel().cp()), tp = static_cast<int>(run.parallel().tp());
  if (cp == 1) return;
  parallel::check_context(run.data().sequence_length(), cp);
  parallel::check_context_heads(parallel::parse_context_kind(run.parallel().context()), model.heads / tp,
                                std::max<std::int64_t>(1, model.kv_heads / tp), cp);
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    require(model.window(layer) == 0,
            "parallel.cp {}: block {} has a sliding window of {} tokens, which is not cut over ranks: set cp "
            "to 1",
            cp, layer, model.window(layer));
  }
}

void check_pipeline(const config::RunConfig& run, const models::ModelConfig& model) {
  const config::Parallel& p = run.parallel();
  const int pp = static_cast<int>(p.pp());
  if (pp == 1) {
    if (p.layers_size() > 0) split_layers(model.layers, 1, {p.layers().begin(), p.layers().end()});
    return;
  }
  require(p.stages_per_rank() <= model.layers,
          "parallel.stages_per_rank {} is more than the model's {} blocks: choose fewer", p.stages_per_rank(),
          model.layers);
  const int chunks =
      parallel::chunks_of(parallel::parse_schedule(p.schedule()), static_cast<int>(p.stages_per_rank()));
  const std::int64_t stages = std::int64_t{pp} * chunks;
  require(
      stages <= model.layers,
      "parallel.pp {} with {} stage(s) a rank makes {} stages, but the model has {} blocks: set pp to {} or "
      "less",
      pp, chunks, stages, model.layers, std::max<std::int64_t>(1, model.layers / chunks));
  split_layers(model.layers, static_cast<int>(stages), {p.layers().begin(), p.layers().end()});
}

}  // namespace

void check_layout(const config::RunConfig& run, const models::ModelConfig& model) {
  const config::Parallel& p = run.parallel();
  parallel::check_tensor_parallel(model, static_cast<int>(p.tp()), p.sequence_parallel(),
                                  run.data().sequence_length() / p.cp());
  check_context_parallel(run, model);
  check_pipeline(run, model);
}

}  // namespace ridge
