#include "launch/training_setup.h"

#include "core/text/tokenizer.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"

namespace ridge {

DType training_dtype(const config::RunConfig& run) { return parse_dtype(run.train().precision()); }

optim::OptimizerOptions optimizer_options(const config::RunConfig& run) {
  const config::Optim& from = run.optim();
  optim::OptimizerOptions to;
  to.name = from.name();
  to.beta1 = from.betas(0);
  to.beta2 = from.betas(1);
  to.eps = from.eps();
  to.weight_decay = from.weight_decay();
  to.momentum = from.momentum();
  to.nesterov = from.nesterov();
  to.moments = parse_dtype(from.moments());
  return to;
}

Tensor reduced_norm(const parallel::GradientReducer& reducer,
                    const std::vector<optim::TrainedParameter>& trained) {
  const std::vector<Tensor> flat = reducer.flat();
  return flat.empty() ? optim::gradient_norm_tensor(trained) : optim::norm_of(flat);
}

std::int64_t bucket_bytes(const config::RunConfig& run) {
  return static_cast<std::int64_t>(run.parallel().bucket_mb() * 1024 * 1024);
}

ScheduleOptions schedule_options(const config::RunConfig& run) {
  const config::Schedule& from = run.optim().schedule();
  ScheduleOptions to;
  to.kind = parse_schedule(from.name());
  to.lr = run.optim().lr();
  to.warmup_steps = from.warmup_steps();
  to.decay_steps = from.has_decay_steps() ? from.decay_steps() : run.train().steps() / 10;
  to.min_lr_ratio = from.min_lr_ratio();
  return to;
}

models::ModelConfig model_config(const config::RunConfig& run) {
  if (run.model().has_path()) return models::ModelConfig::load(run.model().path());
  return models::ModelConfig::parse(arch_json(run), "model.arch");
}

models::LoadedModel make_model(const config::RunConfig& run, Device device) {
  // A frozen base may stay in the mapped file; whatever is trained needs memory of its own.
  const bool frozen = run.has_lora() || run.has_adapter();
  if (run.model().has_path()) {
    return models::load_model(run.model().path(), training_dtype(run),
                              frozen ? models::LoadMode::read : models::LoadMode::train, device);
  }
  models::LoadedModel made;
  made.model = std::make_unique<models::Llama>(model_config(run), training_dtype(run), device);
  made.model->initialize(static_cast<std::uint64_t>(run.train().seed()));
  return made;
}

std::string tokenizer_folder(const config::RunConfig& run) {
  if (run.model().has_tokenizer()) return run.model().tokenizer();
  require(run.model().has_path(),
          "model.tokenizer is not given: name a folder with tokenizer.json for a model made from model.arch");
  return run.model().path();
}

Tokenizer run_tokenizer(const config::RunConfig& run) { return Tokenizer::load(tokenizer_folder(run)); }

}  // namespace ridge
