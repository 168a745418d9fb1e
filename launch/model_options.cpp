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

}  // namespace

void add_model_options(const Command& command, ModelOptions& options, const std::string& default_dtype) {
  options.dtype = default_dtype;
  command.required("--model", options.model, "Hugging Face folder");
  command.option("--adapter", options.adapter, "PEFT folder");
  command.option("--dtype", options.dtype, "f32, bf16 or auto (as stored)");
}

std::unique_ptr<models::Llama> load(const ModelOptions& options, const Context& context) {
  const Device device = context.use_device();
  models::LoadedModel loaded =
      models::load_model(options.model, resolve_dtype(options), models::LoadMode::read, device);
  if (!options.adapter.empty())
    lora::load_adapter(loaded.model->linears(), options.adapter, loaded.notes, device);
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
