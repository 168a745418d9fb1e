
#include "core/base/error.h"
#include "core/models/llama.h"
#include "launch/context.h"

namespace ridge {
namespace {

struct Options {
  std::string model;
};

// Built on meta: shapes only.
void run(const Options& options, const Context& context) {
  const auto config = models::ModelConfig::load(options.model);
  models::Llama model(config, config.dtype == DType::f16 ? DType::f32 : config.dtype, Device::meta);
  std::int64_t parameters = 0;
  for (const nn::Parameter& p : model.parameters()) parameters += p.value->numel();
  const std::int64_t bytes = parameters * static_cast<std::int64_t>(size_of(config.dtype));
  const std::int64_t kv_bytes = config.kv_bytes_per_token(config.dtype);
  const JsonObject json{{"model_type", config.model_type},
                        {"parameters", parameters},
                        {"parameters_without_embedding", config.parameters_without_embedding()},
                        {"dtype", name_of(config.dtype)},
                        {"bytes", bytes},
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
