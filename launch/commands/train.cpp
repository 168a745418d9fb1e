
#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/threads.h"
#include "launch/ceilings.h"
#include "launch/check_layout.h"
#include "launch/context.h"
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

void run(const Options& options, Context& context) {
  config::RunConfig run = load_run_config(options.config, options.overrides);
  for (const std::string& note : resolve(run, context.ranks().size())) context.note(note);
  check_layout(run, model_config(run));
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
  context.emit(
      {{"steps", result.steps},
       {"loss", result.final_loss},
       {"tokens_per_s", result.tokens_per_s},
       {"limit_share", result.limit_share},
       {"peak_bytes", result.peak_bytes},
       {"predicted_bytes", result.predicted_bytes},
       {"saved_to", result.saved_to}},
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
