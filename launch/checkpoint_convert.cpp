#include "launch/checkpoint_convert.h"

#include <algorithm>
#include <set>

#include "core/base/error.h"
#include "core/base/stream.h"
#include "core/io/io_threads.h"
#include "core/models/weights.h"
#include "kernels/adamw.h"
#include "launch/checkpoint.h"
#include "launch/checkpoint_files.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"
#include "launch/training_setup.h"
#include "lora/adapter.h"

namespace ridge {
namespace {

using Shapes = std::vector<std::pair<std::string, Shape>>;

constexpr const char* kModel = "model/";

Tensor read_whole(const CheckpointReader& checkpoint, const std::string& name, const Shape& shape,
                  DType dtype) {
  const Tensor value = Tensor::empty(shape, dtype);
  checkpoint.read_some(whole_pieces({{name, value}}));
  return value;
}

// The values of a parameter; the f32 master of a bf16 one where that is asked for and there.
Tensor read_parameter(const CheckpointReader& checkpoint, const std::string& name, const Shape& shape,
                      DType wanted) {
  const StoredTensor* stored = checkpoint.manifest().find(kModel + name);
  const Tensor value =
      read_whole(checkpoint, kModel + name, shape, stored == nullptr ? wanted : stored->dtype);
  const std::string low_name = "optimizer/" + name + ".master_low";
  const bool master =
      wanted == DType::f32 && value.dtype() == DType::bf16 && checkpoint.manifest().find(low_name) != nullptr;
  if (!master) return value;
  Shape low_shape = shape;
  low_shape[-1] *= 2;  // two bytes an element
  const Tensor low = read_whole(checkpoint, low_name, low_shape, DType::i8);
  const Tensor joined = Tensor::empty(shape, DType::f32);
  kernels::join_master(current_stream(Device::cpu), value.view<bf16>(),
                       {static_cast<const std::int16_t*>(low.data()), shape}, joined.view<float>());
  return joined;
}

// A checkpoint must hold the parameters of its run's model, and no other.
void check_names(const CheckpointReader& checkpoint, const std::string& folder, const Shapes& shapes) {
  std::set<std::string> known;
  for (const auto& [name, shape] : shapes) known.insert(kModel + name);
  for (const StoredTensor& tensor : checkpoint.manifest().tensors) {
    const bool other = tensor.name.starts_with(kModel) && !known.contains(tensor.name);
    require(!other, "{}: tensor {} is none of the model that the run's config names", folder, tensor.name);
  }
}

models::ModelConfig stored_model_config(const CheckpointReader& checkpoint, const config::RunConfig& run) {
  models::ModelConfig config = model_config(run);
  // A tied config whose file held another output layer was trained untied.
  if (checkpoint.manifest().find("model/lm_head.weight") != nullptr) config.tied = false;
  return config;
}

Conversion export_adapter(const CheckpointReader& checkpoint, const std::string& folder,
                          const config::RunConfig& run, const std::string& out) {
  Conversion done{out, "adapter", DType::f32, 0, checkpoint.state().step, {}};
  const ParallelOptions options = parallel_options(run);
  lora::LoraConfig adapter =
      options.adapter.empty() ? options.lora.value() : lora::read_adapter_config(options.adapter, done.notes);
  if (options.dropout) adapter.dropout = *options.dropout;
  models::Llama model(model_config(run), DType::f32, Device::meta);
  lora::add_adapters(model.linears(), adapter, options.seed, Device::cpu);
  Shapes shapes;
  std::vector<NamedTensor> values;
  for (const nn::Parameter& p : model.parameters()) {
    if (!lora::is_adapter_parameter(p.name)) continue;
    shapes.emplace_back(p.name, p.value->shape());
    values.push_back({kModel + p.name, p.value->detached()});
  }
  check_names(checkpoint, folder, shapes);
  checkpoint.read_some(whole_pieces(values));
  lora::save_adapter(model.linears(), adapter, out);
  done.tensors = static_cast<std::int64_t>(values.size());
  return done;
}

Conversion export_model(const CheckpointReader& checkpoint, const std::string& folder,
                        const config::RunConfig& run, const std::string& out, DType dtype) {
  const models::ModelConfig config = stored_model_config(checkpoint, run);
  models::Llama model(config, dtype, Device::meta);
  Shapes shapes;
  for (const nn::Parameter& p : model.parameters()) shapes.emplace_back(p.name, p.value->shape());
  check_names(checkpoint, folder, shapes);
  const auto value_of = [&](const std::string& name) {
    const auto at = std::ranges::find(shapes, name, &Shapes::value_type::first);
    return read_parameter(checkpoint, name, at->second, dtype);
  };
  models::save_parameters(config, shapes, value_of, out, dtype, tokenizer_folder(run));
  return {out, "model", dtype, static_cast<std::int64_t>(shapes.size()), checkpoint.state().step, {}};
}

}  // namespace

Conversion export_checkpoint(const std::string& checkpoint, const std::string& out,
                             std::optional<DType> dtype) {
  const CheckpointReader reader(checkpoint);
  const config::RunConfig run = parse_run_config(reader.state().config, checkpoint);
  if (run.has_lora() || run.has_adapter()) {
    const DType asked = dtype.value_or(DType::f32);
    require(asked == DType::f32, "--dtype {}: adapters are written in f32", name_of(asked));
    return export_adapter(reader, checkpoint, run, out);
  }
  return export_model(reader, checkpoint, run, out, dtype.value_or(training_dtype(run)));
}

Conversion import_model(const std::string& model, config::RunConfig run) {
  run.clear_parallel();
  const std::vector<std::string> notes = resolve(run, 1);
  require(!run.has_lora() && !run.has_adapter(),
          "a run that trains adapters begins from model.path and adapter.path, not from a checkpoint of {}",
          model);
  const DType dtype = training_dtype(run);
  const models::ModelWeights weights(model);
  weights.prefetch();
  models::Llama whole(model_config(run), dtype, Device::meta);
  std::vector<Tensor> values;  // those of the mapped files where they can be
  std::vector<HostPiece> pieces;
  for (const nn::Parameter& p : whole.parameters()) {
    values.push_back(weights.read(p.name, p.value->shape()).to(dtype));
    const Piece piece = whole_pieces({{kModel + p.name, values.back()}}).front();
    pieces.push_back({piece.name, piece.dims, piece.dtype, piece.boxes,
                      static_cast<const std::byte*>(piece.value.data())});
  }
  TrainingState state;
  state.seed = run.train().seed();
  state.config = dump_yaml(run);
  state.layout = "none: converted";
  state.weights_only = true;
  write_checkpoint_alone(run.output(), state, pieces, io_thread_count());
  return {checkpoint_folder(run.output(), 0),
          "checkpoint",
          dtype,
          static_cast<std::int64_t>(pieces.size()),
          0,
          weights.notes()};
}

}  // namespace ridge
