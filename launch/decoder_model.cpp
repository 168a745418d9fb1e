#include "launch/decoder_model.h"

#include "core/base/random.h"
#include "core/models/quantization_config.h"
#include "core/nn/quantized_linear.h"
#include "launch/workloads.h"

namespace ridge {

void DecoderOptions::add_to(const Command& command) {
  command.required("--model", model, "Folder with config.json; weights are random");
  command.option("--dtype", dtype, "f32 or bf16");
  command.option("--quantize", quantize, "Weight format of the linear layers: nf4, int8, int4-g128, ...");
  command.flag("--quantize-head", quantize_head, "The output layer too, where it is not the embedding");
  command.option("--kv-cache", kv_cache, "auto (the dtype), f32, bf16, fp8 or int8");
  command.option("--prefill-chunk", prefill_chunk, "Tokens of a prompt in one pass");
  command.flag("--no-graph", no_graph, "On a GPU: queue every kernel of a step anew");
}

std::string DecoderOptions::describe() const {
  std::string text = dtype;
  if (!quantize.empty()) text += ", weights " + quantize + (quantize_head ? " with the output layer" : "");
  return text + (kv_cache == "auto" ? "" : ", cache " + kv_cache);
}

inference::EngineOptions DecoderOptions::engine() const {
  inference::EngineOptions how;
  if (kv_cache != "auto") how.cache = kernels::parse_kv_format(kv_cache);
  how.prefill_chunk = prefill_chunk;
  how.graph = !no_graph;
  return how;
}

DType DecoderOptions::checked_dtype() const {
  const DType parsed = parse_dtype(dtype);
  require(parsed == DType::f32 || parsed == DType::bf16, "--dtype {}: give f32 or bf16", dtype);
  engine();  // a bad cache format is said before work
  return parsed;
}

void check_random_format(const DecoderOptions& options) {
  if (!options.quantize.empty() || (!options.random && has_weights(options.model))) return;
  const std::string file = options.model + "/config.json";
  const auto config = models::QuantizationConfig::parse(models::ModelConfig::load(options.model).json, file);
  require(config.method == models::QuantizationConfig::Method::none,
          "{} says that its weights are quantized ({}), but weights here are random: give their format with "
          "--quantize, or the folder of the dense model",
          file, config.summary());
}

std::unique_ptr<models::Llama> decoder_model(const DecoderOptions& options, Device device) {
  const DType dtype = options.checked_dtype();
  std::optional<kernels::WeightFormat> format;
  if (!options.quantize.empty()) format = kernels::parse_weight_format(options.quantize);
  require(format || !options.quantize_head, "--quantize-head needs --quantize with a weight format");
  check_random_format(options);
  auto model = workload_model(options.model, dtype, options.random, device);
  require(!options.quantize_head || !model->config().tied,
          "--quantize-head: the output layer of {} is its embedding", options.model);
  for (const nn::LinearSlot& slot : model->linears()) {
    if (!format || (slot.path == "lm_head" && !options.quantize_head)) continue;
    const nn::DenseLinear* dense = (*slot.slot)->dense();
    require(dense != nullptr, "--quantize {}: {} of {} is quantized already", options.quantize, slot.path,
            options.model);
    kernels::check_divides(*format, dense->out_features(), dense->in_features(), slot.path);
    const PurposeScope purpose(Purpose::weights);
    const Tensor bias = dense->bias();
    *slot.slot = std::make_unique<nn::QuantizedLinear>(quantize(dense->weight(), *format), bias);
  }
  return model;
}

double decoded_weight_bytes(models::Llama& model) {
  double bytes = 0;
  for (const nn::Parameter& p : model.parameters()) {
    const bool looked_up = p.name == "model.embed_tokens.weight" && !model.config().tied;
    if (!looked_up) bytes += static_cast<double>(p.value->bytes());
  }
  return bytes;
}

std::vector<std::int32_t> random_prompt(std::int64_t length, std::int64_t vocabulary, std::uint64_t which) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < length; ++i) {
    const std::uint32_t word = philox({7, which}, static_cast<std::uint64_t>(i))[0];
    ids.push_back(static_cast<std::int32_t>(word % static_cast<std::uint64_t>(vocabulary)));
  }
  return ids;
}

}  // namespace ridge
