// Any bytes give an adapter config that says of every layer what to do, and that is read back as it is
// written; or a UserError of one line.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "lora/lora_config.h"

namespace {

using ridge::lora::LoraConfig;

constexpr const char* kPaths[] = {"model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj",
                                  "lm_head"};

void expect(bool ok, const char* what) { ridge::check(ok, what); }

void exercise(const LoraConfig& config) {
  std::vector<std::string> notes;
  const LoraConfig again = LoraConfig::parse(config.to_json(), "fuzz.json", notes);
  for (const char* path : kPaths) {
    const bool targeted = config.targets_layer(path);
    expect(again.targets_layer(path) == targeted, "targets are kept");
    if (!targeted) continue;
    expect(config.rank_of(path) >= 1 && again.rank_of(path) == config.rank_of(path), "ranks are kept");
    expect(std::isfinite(config.scaling_of(path)), "the scaling is a number");
    expect(again.scaling_of(path) == config.scaling_of(path), "scalings are kept");
  }
  expect(notes.empty(), "nothing of ours is unknown");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::vector<std::string> notes;
  try {
    exercise(LoraConfig::parse({reinterpret_cast<const char*>(data), size}, "fuzz.json", notes));
  } catch (const ridge::UserError& error) {
    expect(std::string_view(error.what()).find('\n') == std::string_view::npos, "one line");
  }
  return 0;
}
