// Any bytes give a model config whose numbers can be reckoned with, or a UserError of one line.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/error.h"
#include "core/models/config.h"

namespace {

void expect(bool ok, const char* what) { ridge::check(ok, what); }

// What `info` and the forecasts make of it; overflow ends the run under the sanitizer.
void reckon(const ridge::models::ModelConfig& c) {
  expect(c.vocab_size > 0 && c.hidden_size > 0 && c.intermediate_size > 0 && c.layers > 0,
         "sizes are positive");
  expect(c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0, "heads come in groups");
  expect(c.head_dim > 0 && c.head_dim % 2 == 0, "a head has pairs");
  expect(c.parameters() >= c.parameters_without_embedding() && c.parameters_without_embedding() > 0,
         "parameters");
  expect(c.parameters() < (std::int64_t{1} << 60), "bytes of all parameters can be counted");
  expect(c.kv_bytes_per_token(ridge::DType::f32) > 0, "bytes of keys and values");
  expect(std::isfinite(c.train_flops_per_token(1 << 20)), "FLOPs");
  expect(c.window(0) >= 0 && c.window(c.layers - 1) >= 0, "windows");
  expect(c.rope.theta > 0 && std::isfinite(c.rope.theta), "theta");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  try {
    const ridge::models::ModelConfig config = ridge::models::ModelConfig::parse(json, "fuzz.json");
    reckon(config);
    expect(ridge::models::ModelConfig::parse(config.json, "again").parameters() == config.parameters(),
           "the kept text is the whole");
  } catch (const ridge::UserError& error) {
    const std::string message = error.what();
    expect(message.find("fuzz.json") != message.npos && message.find('\n') == message.npos,
           "one line that names the file");
  }
  return 0;
}
