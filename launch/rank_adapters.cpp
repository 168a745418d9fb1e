#include "launch/rank_adapters.h"

#include <algorithm>

#include "lora/adapter.h"
#include "parallel/tensor_parallel.h"

namespace ridge {

using parallel::Placement;

std::map<std::string, Placement> weight_placements(models::Llama& model,
                                                   const std::map<std::string, Placement>& placements) {
  std::map<std::string, Placement> weights;
  for (const nn::LinearSlot& slot : model.linears())
    weights[slot.path] = placements.at(slot.path + ".weight");
  return weights;
}

void add_rank_adapters(models::Llama& model, const lora::LoraConfig& config, std::uint64_t seed,
                       const std::map<std::string, Placement>& weights, const parallel::Communicator& tp,
                       std::map<std::string, Placement>& placements) {
  const std::vector<nn::LinearSlot> linears = model.linears();
  const bool targeted = std::any_of(linears.begin(), linears.end(), [&](const nn::LinearSlot& slot) {
    return config.targets_layer(slot.path);
  });
  if (!targeted) return;
  lora::add_adapters(linears, config, seed, Device::meta);
  for (const nn::Parameter& p : model.parameters()) {
    if (!lora::is_adapter_parameter(p.name)) continue;
    const std::string linear = p.name.substr(0, p.name.find(".lora_"));
    const bool is_a = p.name.ends_with("lora_A.weight");
    placements[p.name] = tp.size() > 1
                             ? parallel::adapter_placement(weights.at(linear), is_a, tp.size(), tp.rank())
                             : Placement{};
  }
}

}  // namespace ridge
