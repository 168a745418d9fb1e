#include "launch/checkpoint.h"

#include <filesystem>

#include "core/base/error.h"
#include "core/io/slab.h"
#include "launch/checkpoint_convert.h"
#include "launch/context.h"
#include "launch/output_folder.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"

namespace ridge {
namespace {

struct InspectOptions {
  std::string folder;
  bool verify = false;
};

struct ConvertOptions {
  std::string folder, out, dtype, config;
  bool to_checkpoint = false;
  std::vector<std::string> overrides;
};

// A checkpoint's folder, or a run's, of which the newest is meant.
std::string checkpoint_in(const std::string& folder) {
  if (std::filesystem::exists(std::filesystem::path(folder) / kManifestFile)) return folder;
  return latest_checkpoint(folder).value_or(folder);
}

std::string inspection_text(const CheckpointManifest& manifest, const JsonObject& facts) {
  std::string text = facts.table();
  for (const StoredFile& file : manifest.files) text += fmt::format("{:>14}  {}\n", file.bytes, file.name);
  for (const StoredTensor& tensor : manifest.tensors) {
    text += fmt::format("{:>5} {:<20} {} ({})\n", name_of(tensor.dtype), dims_text(tensor.dims), tensor.name,
                        tensor.boxes.size());
  }
  return text;
}

void inspect(const InspectOptions& options, Context& context) {
  if (!context.is_root()) return;
  const std::string folder = checkpoint_in(options.folder);
  const CheckpointReader reader(folder);
  if (options.verify) reader.verify();
  const CheckpointManifest& manifest = reader.manifest();
  const TrainingState& state = reader.state();
  std::vector<JsonObject> files, tensors;
  std::uint64_t bytes = 0;
  for (const StoredFile& file : manifest.files) {
    bytes += file.bytes;
    files.push_back({{"name", file.name}, {"bytes", file.bytes}});
  }
  for (const StoredTensor& tensor : manifest.tensors)
    tensors.push_back({{"name", tensor.name},
                       {"dtype", name_of(tensor.dtype)},
                       {"shape", tensor.dims},
                       {"boxes", tensor.boxes.size()}});
  JsonObject facts{{"folder", folder},   {"format", kCheckpointVersion}, {"program", manifest.program},
                   {"step", state.step}, {"tokens", state.tokens},       {"next_sample", state.next_sample},
                   {"seed", state.seed}, {"layout", state.layout},       {"weights_only", state.weights_only},
                   {"bytes", bytes},     {"verified", options.verify}};
  const std::string text = inspection_text(manifest, facts);
  facts.add("files", files).add("tensors", tensors);
  context.emit(facts, text);
}

Conversion convert_one(const ConvertOptions& options) {
  if (options.to_checkpoint) {
    require(!options.config.empty(), "--to-checkpoint needs --config: the run that begins from it");
    require(options.dtype.empty(), "--dtype: a checkpoint has the dtype of its run, train.precision");
    config::RunConfig run = load_run_config(options.config, options.overrides);
    if (!options.out.empty()) run.set_output(options.out);
    const auto there = latest_checkpoint(run.output());
    require(!there, "output {}: {} is there already, from which the run would go on: give another output",
            run.output(), there.value_or(""));
    return import_model(options.folder, std::move(run));
  }
  require(!options.out.empty(), "--out is required: the folder to write");
  require_new_folder("--out", options.out);
  require(options.config.empty() && options.overrides.empty(),
          "--config and overrides go with --to-checkpoint: a checkpoint knows its run");
  const auto dtype = options.dtype.empty() ? std::nullopt : std::optional(parse_dtype(options.dtype));
  require(!dtype || *dtype == DType::f32 || *dtype == DType::bf16 || *dtype == DType::f16,
          "--dtype {}: weights are written in f32, bf16 or f16", options.dtype);
  return export_checkpoint(checkpoint_in(options.folder), options.out, dtype);
}

void convert(const ConvertOptions& options, Context& context) {
  if (!context.is_root()) return;
  const Conversion done = convert_one(options);
  for (const std::string& note : done.notes) context.note(note);
  context.emit({{"out", done.folder},
                {"kind", done.kind},
                {"dtype", name_of(done.dtype)},
                {"tensors", done.tensors},
                {"step", done.step}},
               fmt::format("{}: a {} of {} tensors, {}, step {}\n", done.folder, done.kind, done.tensors,
                           name_of(done.dtype), done.step));
}

}  // namespace

void add_checkpoint(const Command& app, Context& context) {
  const Command group = app.add("checkpoint", "Look into checkpoints, and convert them", true);
  auto looked_at = std::make_shared<InspectOptions>();
  const Command look = group.add("inspect", "Step, layout, files and tensors of a checkpoint");
  look.required("folder", looked_at->folder, "A checkpoint, or a run's output: its newest one");
  look.flag("--verify", looked_at->verify, "Read all of it and compare checksums");
  look.run([looked_at, &context] { inspect(*looked_at, context); });

  auto options = std::make_shared<ConvertOptions>();
  const Command command =
      group.add("convert", "Write a checkpoint's model or adapter as a Hugging Face or PEFT folder, or back");
  command.required("folder", options->folder, "A checkpoint or a run's output; or a Hugging Face folder");
  command.option("--out", options->out, "Folder to write; with --to-checkpoint the run's output");
  command.option("--dtype", options->dtype, "f32, bf16 or f16; default: that of the training");
  command.flag("--to-checkpoint", options->to_checkpoint, "From a Hugging Face folder: a run begins with it");
  command.option("--config", options->config, "The config of that run (YAML)");
  command.option("overrides", options->overrides, "a.b=value ... of that config");
  command.run([options, &context] { convert(*options, context); });
}

}  // namespace ridge
