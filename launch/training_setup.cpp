#include "launch/training_setup.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>

#include "core/base/error.h"
#include "core/text/tokenizer.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"
#include "lora/adapter.h"

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
  to.offload = from.offload() == "cpu";
  return to;
}

namespace {

lora::LoraConfig lora_config(const config::RunConfig& run) {
  const config::Lora& from = run.lora();
  lora::LoraConfig to;
  to.rank = from.rank();
  to.alpha = from.alpha();
  to.dropout = from.dropout();
  to.use_rslora = from.use_rslora();
  to.targets.assign(from.targets().begin(), from.targets().end());
  if (to.targets.empty()) to.targets = {"q_proj", "v_proj"};
  to.target_pattern = from.target_pattern();
  to.exclude.assign(from.exclude().begin(), from.exclude().end());
  to.rank_pattern.insert(from.rank_pattern().begin(), from.rank_pattern().end());
  to.alpha_pattern.insert(from.alpha_pattern().begin(), from.alpha_pattern().end());
  to.base_model = run.model().path();
  return to;
}

template <class T>
std::string words_of(const T& value) {
  return fmt::format("{}", value);
}
std::string words_of(const std::set<std::string>& words) {
  return fmt::format("[{}]", fmt::join(words, ", "));
}
template <class T>
std::string words_of(const std::map<std::string, T>& pattern) {
  std::string text;
  for (const auto& [key, value] : pattern)
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", key, value);
  return "{" + text + "}";
}

}  // namespace

std::vector<std::string> check_adapter(const config::RunConfig& run) {
  std::vector<std::string> notes, heard;  // heard: what loading the adapter will say
  if (!run.has_adapter()) return notes;
  const std::string& folder = run.adapter().path();
  if (run.model().has_path()) lora::note_base(folder, run.model().path(), notes);
  if (!run.has_lora()) return notes;
  const lora::LoraConfig adapter = lora::read_adapter_config(folder, heard);
  const config::Lora& lora = run.lora();
  const auto agree = [&folder](bool given, const char* field, const auto& asked, const auto& stored) {
    require(!given || asked == stored,
            "lora.{} is {}, but the adapter that the run starts from ({}) has {}: "
            "leave it out, or adapter.path",
            field, words_of(asked), folder, words_of(stored));
  };
  agree(lora.has_rank(), "rank", lora.rank(), adapter.rank);
  agree(lora.has_alpha(), "alpha", lora.alpha(), adapter.alpha);
  agree(lora.has_use_rslora(), "use_rslora", lora.use_rslora(), adapter.use_rslora);
  const auto list = [](const auto& words) {
    std::set<std::string> names(words.begin(), words.end());
    if (names.erase("all-linear") > 0)  // PEFT stores what it stands for
      names.insert({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"});
    return names;
  };
  agree(lora.targets_size() > 0, "targets", list(lora.targets()), list(adapter.targets));
  agree(lora.has_target_pattern(), "target_pattern", lora.target_pattern(), adapter.target_pattern);
  agree(lora.exclude_size() > 0, "exclude", list(lora.exclude()), list(adapter.exclude));
  const std::map<std::string, std::int64_t> ranks(lora.rank_pattern().begin(), lora.rank_pattern().end());
  const std::map<std::string, double> alphas(lora.alpha_pattern().begin(), lora.alpha_pattern().end());
  agree(!ranks.empty(), "rank_pattern", ranks, adapter.rank_pattern);
  agree(!alphas.empty(), "alpha_pattern", alphas, adapter.alpha_pattern);
  return notes;
}

ParallelOptions layout_options(const config::Parallel& from) {
  ParallelOptions to;
  to.peer_copies = parse_peer_copies(from.peer_copies());
  to.fsdp.stage = static_cast<int>(from.stage());
  to.fsdp.keep_gathered = from.keep_gathered();
  to.fsdp.no_sync = from.no_sync();
  to.fsdp.reduce = parse_dtype(from.reduce());
  to.sequence_parallel = from.sequence_parallel() && from.tp() > 1;
  to.tp_chunks = static_cast<int>(from.tp_chunks());
  to.context = parallel::parse_context_kind(from.context());
  to.schedule = parallel::parse_schedule(from.schedule());
  to.stages_per_rank = static_cast<int>(std::min<std::int64_t>(from.stages_per_rank(), INT32_MAX));
  to.layers.assign(from.layers().begin(), from.layers().end());
  return to;
}

ParallelOptions parallel_options(const config::RunConfig& run) {
  ParallelOptions to = layout_options(run.parallel());
  to.dtype = training_dtype(run);
  to.seed = static_cast<std::uint64_t>(run.train().seed());
  if (run.has_adapter()) {
    to.adapter = run.adapter().path();
    if (run.lora().has_dropout()) to.dropout = run.lora().dropout();
  } else if (run.has_lora()) {
    to.lora = lora_config(run);
  }
  to.quantize = quantize_format(run.model());
  to.decay_all = run.optim().decay() == "all";
  to.recompute = parse_recompute(run.train().recompute());
  to.deterministic = run.train().deterministic();
  return to;
}

std::optional<kernels::WeightFormat> quantize_format(const config::Model& model) {
  if (!model.has_quantize()) return std::nullopt;
  kernels::WeightFormat format = kernels::parse_weight_format(model.quantize());
  require(!format.double_quant || !model.has_double_quant() || model.double_quant(),
          "model.quantize is {}, but model.double_quant is false: quantize to {} or leave out double_quant",
          model.quantize(), model.quantize().substr(0, 3));
  if (model.double_quant()) format.double_quant = true;
  return format;
}

parallel::Mesh mesh_of(const config::RunConfig& run) {
  const config::Parallel& p = run.parallel();
  return parallel::Mesh({static_cast<int>(p.pp()), static_cast<int>(p.replicate()),
                         static_cast<int>(p.shard()), static_cast<int>(p.cp()), static_cast<int>(p.tp())});
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

std::unique_ptr<models::ModelWeights> run_weights(const config::RunConfig& run) {
  return run.model().has_path() ? std::make_unique<models::ModelWeights>(run.model().path()) : nullptr;
}

std::string tokenizer_folder(const config::RunConfig& run) {
  if (run.model().has_tokenizer()) return run.model().tokenizer();
  require(run.model().has_path(),
          "model.tokenizer is not given: name a folder with tokenizer.json for a model made from model.arch");
  return run.model().path();
}

Tokenizer run_tokenizer(const config::RunConfig& run) { return Tokenizer::load(tokenizer_folder(run)); }

}  // namespace ridge
