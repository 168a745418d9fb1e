
#include <map>

#include "core/base/error.h"
#include "core/models/weights.h"
#include "launch/context.h"
#include "launch/output_folder.h"
#include "lora/adapter.h"
#include "quant/round_to_nearest.h"

namespace ridge {
namespace {

struct Options {
  std::string model, adapter, out, quantize;
};

// Of the layers whose base is quantized, by path.
using Formats = std::map<std::string, kernels::WeightFormat>;

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

const nn::DenseLinear& dense(const nn::LinearSlot& slot) { return *(*slot.slot)->dense(); }

// Formats of the folder, or `text` for the blocks' layers of one that is dense: there weights become those
// that an adapter was trained on, quantized from `stored` as it is done on load.
Formats quantize_base(models::Llama& model, const models::ModelWeights& weights, const std::string& text,
                      DType stored) {
  Formats formats;
  if (!text.empty()) {
    require(!weights.is_quantized(), "--quantize {}: the model is quantized already: leave it out", text);
    const kernels::WeightFormat format = kernels::parse_weight_format(text);
    for (const nn::LinearSlot& slot : model.linears()) {
      if (slot.path == "lm_head") continue;
      const Tensor w = dense(slot).weight().detached();
      kernels::check_divides(format, w.dim(0), w.dim(1), slot.path);
      const Tensor coded = dequantize(quantize(w.to(stored), format), DType::f32);
      *slot.slot = std::make_unique<nn::DenseLinear>(coded, dense(slot).bias());
      formats[slot.path] = format;
    }
  }
  for (const nn::LinearSlot& slot : model.linears()) {
    if (const auto format = weights.format_of(slot.path)) formats[slot.path] = *format;
  }
  return formats;
}

// Of layers that hold dequantized base + adapter in f32.
Errors measure(models::Llama& model, const Formats& formats, DType stored) {
  Errors errors;
  for (const nn::LinearSlot& slot : model.linears()) {
    const auto format = formats.find(slot.path);
    if (format == formats.end()) continue;
    const Tensor w = dense(slot).weight().detached();
    const Tensor again = dequantize(quantize(w.to(stored), format->second), DType::f32);
    raise(quant::relative_error(w, w.to(stored)), slot.path, errors.stored, errors.stored_layer);
    raise(quant::relative_error(w, again), slot.path, errors.requantized, errors.requantized_layer);
  }
  return errors;
}

void run(const Options& options, Context& context) {
  if (!context.is_root()) return;
  require_new_folder("--out", options.out);
  const models::ModelWeights base(options.model);
  const DType stored = base.config().dtype;
  models::QuantizeOnLoad how;
  how.dequantize = true;
  auto loaded = models::load_model(options.model, DType::f32, models::LoadMode::read, Device::cpu, how);
  const Formats formats = quantize_base(*loaded.model, base, options.quantize, stored);
  lora::load_adapter(loaded.model->linears(), options.adapter, loaded.notes);
  lora::note_base(options.adapter, options.model, loaded.notes);
  for (const std::string& note : loaded.notes) context.note(note);
  const std::int64_t merged = lora::merge_adapters(loaded.model->linears());
  const Errors errors = measure(*loaded.model, formats, stored);
  models::save_model(*loaded.model, options.out, stored, options.model);
  const std::string text = fmt::format("{}: {} adapters merged, {}\n", options.out, merged, name_of(stored));
  if (formats.empty()) {
    context.emit({{"out", options.out}, {"merged", merged}, {"dtype", name_of(stored)}}, text);
    return;
  }
  context.emit({{"out", options.out},
                {"merged", merged},
                {"dtype", name_of(stored)},
                {"worst_error", errors.stored},
                {"worst_layer", errors.stored_layer},
                {"worst_requantized_error", errors.requantized},
                {"worst_requantized_layer", errors.requantized_layer}},
               fmt::format("{}worst layer against quantized base + adapter: {:.3g} as {} ({}), {:.3g} if "
                           "quantized again ({})\n",
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
  command.option("--quantize", options->quantize,
                 "Weight format that the adapter was trained on, of a dense folder quantized on load");
  command.run([options, &context] { run(*options, context); });
}

}  // namespace ridge
