// The run config: read from YAML with `a.b=value` overrides, completed and checked against the number of
// ranks.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ridge::config {
class RunConfig;  // launch/run_config.proto
}

namespace ridge {

/// Every option at its default; `adapter`, `lora` and `model.arch` are absent.
config::RunConfig default_run_config();

/// Reads the YAML file `path`, applies the overrides in order, fills in the defaults.
/// A UserError names the file and line, the dotted field, the value and what was expected.
config::RunConfig load_run_config(const std::string& path, std::span<const std::string> overrides = {});

/// The same for YAML held in memory; `name` stands for the file in messages.
config::RunConfig parse_run_config(std::string_view yaml, std::string_view name,
                                   std::span<const std::string> overrides = {});

/// Completes and checks the config for a run of `world_size` ranks: the -1 of `parallel`, `micro_batch`, what
/// must be given, what must divide what. Resolving again changes nothing. Returns notes that are worth a log
/// line.
std::vector<std::string> resolve(config::RunConfig& config, std::int64_t world_size);

/// The part of that for `parallel` alone.
void resolve_parallel(config::RunConfig& config, std::int64_t world_size);

/// Ranks that each take their own samples: replicate * shard, after resolve().
std::int64_t data_parallel_degree(const config::RunConfig& config);

/// The config as YAML; parse_run_config() of it gives the same config.
std::string dump_yaml(const config::RunConfig& config);

/// `model.arch` as the text of a Hugging Face config.json.
std::string arch_json(const config::RunConfig& config);

}  // namespace ridge
