
#include "core/base/error.h"
#include "core/models/weights.h"
#include "launch/context.h"
#include "launch/workloads.h"

namespace ridge {
namespace {

struct Options {
  std::string model;
};

// What the folder's weights are: a name of a format, "mixed", or a dtype; where there are none, what
// config.json says.
struct Stored {
  std::int64_t bytes = 0;
  std::int64_t quantized_layers = 0;
  std::string format;
};

Stored describe_weights(const std::string& folder, models::Llama& model, const models::ModelConfig& config,
                        const Context& context) {
  const std::int64_t dense = config.parameters() * static_cast<std::int64_t>(size_of(config.dtype));
  Stored stored{dense, 0, std::string(name_of(config.dtype))};
  if (!has_weights(folder)) {
    models::QuantizationConfig says;
    try {
      says = models::QuantizationConfig::parse(config.json, folder + "/config.json");
    } catch (const UserError& error) {  // shapes are known all the same
      context.note(error.what());
    }
    if (says.method == models::QuantizationConfig::Method::none) return stored;
    context.note(
        fmt::format("{}/config.json says that its weights are quantized ({}), but there are none: "
                    "bytes are those of dense weights in {}",
                    folder, says.summary(), name_of(config.dtype)));
    stored.format = says.summary();
    return stored;
  }
  const models::ModelWeights weights(folder);
  for (const nn::LinearSlot& slot : model.linears()) {
    const auto format = weights.format_of(slot.path);
    if (!format) continue;
    const std::string name = name_of(*format);
    stored.format = stored.quantized_layers == 0 || stored.format == name ? name : "mixed";
    ++stored.quantized_layers;
  }
  if (stored.quantized_layers > 0) stored.bytes = weights.stored_bytes();
  return stored;
}

// Built on meta: shapes only.
void run(const Options& options, const Context& context) {
  const auto config = models::ModelConfig::load(options.model);
  models::Llama model(config, config.dtype == DType::f16 ? DType::f32 : config.dtype, Device::meta);
  std::int64_t parameters = 0;
  for (const nn::Parameter& p : model.parameters()) parameters += p.value->numel();
  const Stored stored = describe_weights(options.model, model, config, context);
  const std::int64_t kv_bytes = config.kv_bytes_per_token(config.dtype);
  const JsonObject json{{"model_type", config.model_type},
                        {"parameters", parameters},
                        {"parameters_without_embedding", config.parameters_without_embedding()},
                        {"dtype", name_of(config.dtype)},
                        {"bytes", stored.bytes},
                        {"weight_format", stored.format},
                        {"quantized_layers", stored.quantized_layers},
                        {"kv_bytes_per_token", kv_bytes},
                        {"layers", config.layers},
                        {"hidden_size", config.hidden_size},
                        {"intermediate_size", config.intermediate_size},
                        {"heads", config.heads},
                        {"kv_heads", config.kv_heads},
                        {"head_dim", config.head_dim},
                        {"vocab_size", config.vocab_size},
                        {"max_position_embeddings", config.max_position},
                        {"rope_theta", config.rope.theta},
                        {"sliding_window", config.sliding_window},
                        {"tie_word_embeddings", config.tied}};
  context.emit(json, json.table());
}

}  // namespace

void add_info(const Command& app, Context& context) {
  auto options = std::make_shared<Options>();
  const Command command = app.add("info", "Architecture, parameters, bytes, KV bytes per token");
  command.required("--model", options->model, "Hugging Face folder");
  command.run([options, &context] { run(*options, context); });
}

}  // namespace ridge
