
#include "core/base/error.h"
#include "core/models/weights.h"
#include "launch/context.h"
#include "lora/adapter.h"

namespace ridge {
namespace {

struct Options {
  std::string model, adapter, out;
};

void run(const Options& options, Context& context) {
  if (!context.is_root()) return;
  const DType stored = models::ModelConfig::load(options.model).dtype;
  auto loaded = models::load_model(options.model, DType::f32, models::LoadMode::read);
  lora::load_adapter(loaded.model->linears(), options.adapter, loaded.notes);
  for (const std::string& note : loaded.notes) context.note(note);
  const std::int64_t merged = lora::merge_adapters(loaded.model->linears());
  models::save_model(*loaded.model, options.out, stored, options.model);
  context.emit({{"out", options.out}, {"merged", merged}, {"dtype", name_of(stored)}},
               fmt::format("{}: {} adapters merged, {}\n", options.out, merged, name_of(stored)));
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
