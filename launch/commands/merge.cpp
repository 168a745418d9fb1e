
#include "core/base/error.h"
#include "core/models/weights.h"
#include "launch/context.h"
#include "lora/adapter.h"
#include "quant/round_to_nearest.h"

namespace ridge {
namespace {

struct Options {
  std::string model, adapter, out;
};

// What becomes of the merged weights of a quantized base: relative errors of the worst layers.
struct Errors {
  double stored = 0;       // rounded to the dtype that is written, against base + adapter in f32
  double requantized = 0;  // in the base's format once more, against the same
  std::string stored_layer, requantized_layer;
};

void raise(double error, const std::string& layer, double& worst, std::string& worst_layer) {
  if (error < worst) return;
  worst = error;
  worst_layer = layer;
}

// Of layers that hold dequantized base + adapter in f32.
Errors measure(models::Llama& model, const models::ModelWeights& weights, DType stored) {
  Errors errors;
  for (const nn::LinearSlot& slot : model.linears()) {
    const auto format = weights.format_of(slot.path);
    if (!format) continue;
    const Tensor w = (*slot.slot)->dense()->weight().detached();
    const Tensor again = dequantize(quantize(w, *format), DType::f32);
    raise(quant::relative_error(w, w.to(stored)), slot.path, errors.stored, errors.stored_layer);
    raise(quant::relative_error(w, again), slot.path, errors.requantized, errors.requantized_layer);
  }
  return errors;
}

void run(const Options& options, Context& context) {
  if (!context.is_root()) return;
  const models::ModelWeights base(options.model);
  const DType stored = base.config().dtype;
  models::QuantizeOnLoad how;
  how.dequantize = true;
  auto loaded = models::load_model(options.model, DType::f32, models::LoadMode::read, Device::cpu, how);
  lora::load_adapter(loaded.model->linears(), options.adapter, loaded.notes);
  for (const std::string& note : loaded.notes) context.note(note);
  const std::int64_t merged = lora::merge_adapters(loaded.model->linears());
  const std::string text = fmt::format("{}: {} adapters merged, {}\n", options.out, merged, name_of(stored));
  if (!base.is_quantized()) {
    models::save_model(*loaded.model, options.out, stored, options.model);
    context.emit({{"out", options.out}, {"merged", merged}, {"dtype", name_of(stored)}}, text);
    return;
  }
  const Errors errors = measure(*loaded.model, base, stored);
  models::save_model(*loaded.model, options.out, stored, options.model);
  context.emit(
      {{"out", options.out},
       {"merged", merged},
       {"dtype", name_of(stored)},
       {"worst_error", errors.stored},
       {"worst_layer", errors.stored_layer},
       {"worst_requantized_error", errors.requantized},
       {"worst_requantized_layer", errors.requantized_layer}},
      fmt::format("{}worst layer against quantized base + adapter: {:.3g} as {} ({}), {:.3g} if quantized "
                  "again ({})\n",
                  text, errors.stored, name_of(stored), errors.stored_layer, errors.requantized,
                  errors.requantized_layer));
}

}  // namespace

void add_merge(const Command& app, Context& context) {
  auto options = std::make_shared<Options>();
  const Command command = app.add("merge", "Add an adapter to its base model's weights");
  command.required("--model", options->model, "Hugging Face folder of the base");
  command.required("--adapter", options->adapter, "PEFT folder");
  command.required("--out", options->out, "Folder to write");
  command.run([options, &context] { run(*options, context); });
}

}  // namespace ridge
