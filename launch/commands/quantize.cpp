#include <chrono>

#include "core/models/config.h"
#include "launch/context.h"
#include "launch/output_folder.h"
#include "quant/round_to_nearest.h"

namespace ridge {
namespace {

struct Options {
  std::string model, format, out;
  bool include_head = false;
};

void run(const Options& options, const Context& context) {
  const kernels::WeightFormat format = kernels::parse_weight_format(options.format);
  const Device device = context.use_device();
  if (!context.is_root()) return;
  require_new_folder("--out", options.out);
  if (options.include_head && models::ModelConfig::load(options.model).tied)
    context.note(fmt::format("--include-head: the output layer of {} is its embedding, which stays as it is",
                             options.model));
  const auto start = std::chrono::steady_clock::now();
  const auto report =
      quant::quantize_folder(options.model, format, options.include_head, options.out, device);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  context.emit(
      {{"out", options.out},
       {"format", name_of(format)},
       {"layers", report.layers},
       {"bytes_before", report.bytes_before},
       {"bytes_after", report.bytes_after},
       {"worst_layer", report.worst_layer},
       {"worst_error", report.worst_error},
       {"seconds", seconds}},
      fmt::format("{}: {} layers in {}, {} -> {} bytes, worst relative error {:.4f} ({}), {:.1f} s\n",
                  options.out, report.layers, name_of(format), report.bytes_before, report.bytes_after,
                  report.worst_error, report.worst_layer, seconds));
}

}  // namespace

void add_quantize(const Command& app, Context& context) {
  auto options = std::make_shared<Options>();
  const Command command = app.add("quantize", "A model's linear layers in a weight format, by rounding");
  command.required("--model", options->model, "Hugging Face folder");
  command.required("--format", options->format,
                   "nf4, nf4-dq, fp4, fp4-dq, int8, fp8, fp8-block, int4-g128, ...");
  command.required("--out", options->out, "Folder to write");
  command.flag("--include-head", options->include_head,
               "The output layer too, where it is not the embedding");
  command.run([options, &context] { run(*options, context); });
}

}  // namespace ridge
