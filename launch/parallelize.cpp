#include "launch/parallelize.h"

#include "core/autograd.h"
#include "launch/run_config.pb.h"
#include "lora/adapter.h"

namespace ridge {
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

// An adapter that the run starts from, new ones, or none.
void add_adapters(models::Llama& model, const config::RunConfig& run, Prepared& prepared) {
  const auto seed = static_cast<std::uint64_t>(run.train().seed());
  if (run.has_adapter()) {
    if (run.has_lora()) {
      prepared.notes.push_back(fmt::format(
          "adapter.path {}: rank, alpha, dropout and targets are that adapter's; those of lora are not used",
          run.adapter().path()));
    }
    if (model.device() == Device::meta) {
      prepared.adapter = lora::read_adapter_config(run.adapter().path(), prepared.notes);
      lora::add_adapters(model.linears(), *prepared.adapter, seed, Device::meta);
    } else {
      prepared.adapter =
          lora::load_adapter(model.linears(), run.adapter().path(), prepared.notes, model.device());
    }
  } else if (run.has_lora()) {
    prepared.adapter = lora_config(run);
    lora::add_adapters(model.linears(), *prepared.adapter, seed, model.device());
  }
}

}  // namespace

models::Recompute parse_recompute(std::string_view name) {
  if (name == "none") return models::Recompute::none;
  if (name == "selective") return models::Recompute::selective;
  if (name == "blocks") return models::Recompute::blocks;
  fail_user("recompute '{}' is unknown: use none, selective or blocks", name);
}

Prepared parallelize(models::Llama& model, const config::RunConfig& run) {
  Prepared prepared;
  add_adapters(model, run, prepared);
  model.set_recompute(parse_recompute(run.train().recompute()));
  model.set_deterministic(run.train().deterministic());
  const bool decay_all = run.optim().decay() == "all";
  for (const nn::Parameter& p : model.parameters()) {
    if (prepared.adapter && !lora::is_adapter_parameter(p.name)) continue;
    autograd::set_requires_grad(*p.value, true);
    prepared.trained.push_back({p.name, *p.value, decay_all || p.value->ndim() >= 2});
  }
  return prepared;
}

}  // namespace ridge
