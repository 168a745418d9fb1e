#include "launch/model_options.h"

#include "launch/context.h"
#include "lora/adapter.h"

namespace ridge {
namespace {

DType resolve_dtype(const ModelOptions& options) {
  if (options.dtype == "f32" || options.dtype == "bf16") return parse_dtype(options.dtype);
  require(options.dtype == "auto", "--dtype {} is unknown: use f32, bf16 or auto", options.dtype);
  return models::ModelConfig::load(options.model).dtype == DType::bf16 ? DType::bf16 : DType::f32;
}

models::QuantizeOnLoad quantize_on_load(const ModelOptions& options) {
  models::QuantizeOnLoad how;
  if (!options.quantize.empty()) how.format = kernels::parse_weight_format(options.quantize);
  require(how.format || !options.quantize_head, "--quantize-head needs --quantize with a weight format");
  how.head = options.quantize_head;
  return how;
}

}  // namespace

void add_model_options(const Command& command, ModelOptions& options, const std::string& default_dtype) {
  options.dtype = default_dtype;
  command.required("--model", options.model, "Hugging Face folder");
  command.option("--adapter", options.adapter, "PEFT folder");
  command.option("--dtype", options.dtype, "f32, bf16 or auto (as stored)");
  command.option("--quantize", options.quantize,
                 "Weight format for the linear layers: nf4, int8, int4-g128, ...");
  command.flag("--quantize-head", options.quantize_head,
               "The output layer too, where it is not the embedding");
}

std::unique_ptr<models::Llama> load(const ModelOptions& options, const Context& context) {
  const models::QuantizeOnLoad how = quantize_on_load(options);
  const Device device = context.use_device();
  models::LoadedModel loaded =
      models::load_model(options.model, resolve_dtype(options), models::LoadMode::read, device, how);
  if (!options.adapter.empty()) {
    lora::load_adapter(loaded.model->linears(), options.adapter, loaded.notes, device);
    lora::note_base(options.adapter, options.model, loaded.notes);
  }
  for (const std::string& note : loaded.notes) context.note(note);
  return std::move(loaded.model);
}

void check_ids(const std::vector<std::int32_t>& ids, const models::ModelConfig& config,
               const std::string& what) {
  for (const std::int32_t id : ids) {
    require(id >= 0 && id < config.vocab_size, "{}: id {} is outside the model's embedding of {} rows", what,
            id, config.vocab_size);
  }
}

}  // namespace ridge
