#include <limits>

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/threads.h"
#include "launch/ceilings.h"
#include "launch/check_layout.h"
#include "launch/context.h"
#include "launch/output_folder.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"
#include "launch/train_loop.h"
#include "launch/training_setup.h"

namespace ridge {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
};

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();  // null in JSON

JsonObject json_of(const TrainResult& result, double loss, bool trained) {
  return {{"steps", result.steps},
          {"loss", loss},
          {"tokens_per_s", trained ? result.tokens_per_s : kNone},
          {"limit_share", trained ? result.limit_share : kNone},
          {"peak_bytes", result.peak_bytes},
          {"predicted_bytes", result.predicted_bytes},
          {"saved_to", result.saved_to}};
}

void run(const Options& options, Context& context) {
  config::RunConfig run = load_run_config(options.config, options.overrides);
  for (const std::string& note : resolve(run, context.ranks().size())) context.note(note);
  const models::ModelConfig model = model_config(run);
  check_layout(run, model);
  if (run.data().sequence_length() > model.max_position)
    context.note(
        fmt::format("data.sequence_length {} is beyond the {} tokens that the model is made for "
                    "(max_position_embeddings), which stay in its config.json",
                    run.data().sequence_length(), model.max_position));
  for (const std::string& note : check_adapter(run)) context.note(note);
  if (context.is_root()) {
    const std::string kept = check_output(run, options.config);
    if (!kept.empty()) context.note(kept);
  }
  context.ranks().barrier();
  const Device device = context.use_device(run.device());
  const std::unique_ptr<parallel::Groups> groups = context.groups(mesh_of(run), device);
  groups->world().barrier();
  const Ceilings roof = measure_ceilings(device, parse_dtype(run.train().precision()));
  reset_memory_peaks(device);
  const std::string place = device == Device::cuda
                                ? cuda_devices().at(static_cast<std::size_t>(cuda::selected_device()))
                                : fmt::format("{} thread(s)", thread_count());
  context.note(fmt::format("{} rank(s) of {}; a rank's limits: {:.0f} GFLOP/s, {:.1f} GB/s read",
                           context.ranks().size(), place, roof.flops_per_s / 1e9,
                           roof.read_bytes_per_s / 1e9));
  const TrainResult result = train(run, *groups, device, roof);
  if (result.first_step == result.steps) {
    context.emit(json_of(result, kNone, false),
                 fmt::format("the run is finished: all {} steps were done before; saved to {}\n",
                             result.steps, result.saved_to));
    return;
  }
  if (result.limit_share > 1)
    context.note(
        "more than 100% of the limit: something else used the machine while its limits were measured, "
        "or the step's data stays in caches, which the limit of memory does not know");
  context.emit(
      json_of(result, result.final_loss, true),
      fmt::format(
          "{} steps, loss {:.4f}, {:.0f} tokens/s, {:.1f}% of the machine's limit, peak memory {:.1f} MiB "
          "(predicted {:.1f}), saved to {}\n",
          result.steps, result.final_loss, result.tokens_per_s, 100 * result.limit_share,
          static_cast<double>(result.peak_bytes) / (1 << 20),
          static_cast<double>(result.predicted_bytes) / (1 << 20), result.saved_to));
}

}  // namespace

void add_train(const Command& app, Context& context) {
  auto options = std::make_shared<Options>();
  const Command command = app.add("train", "Pretrain, or fine-tune where the config has `lora`");
  command.required("config", options->config, "Run config (YAML)");
  command.option("overrides", options->overrides, "a.b=value ...");
  command.run([options, &context] { run(*options, context); });
}

}  // namespace ridge
