// Any bytes give a quantization config and a quant_state of values that can be reckoned with, or a UserError
// of one line.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/error.h"
#include "core/models/bitsandbytes_keys.h"
#include "core/models/quantization_config.h"

namespace {

void expect(bool ok, const char* what) { ridge::check(ok, what); }

template <class Parse>
void survive(Parse&& parse) {
  try {
    parse();
  } catch (const ridge::UserError& error) {
    const std::string message = error.what();
    expect(message.find("fuzz.json") != message.npos && message.find('\n') == message.npos,
           "one line that names the file");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  survive([&] {
    const auto config = ridge::models::QuantizationConfig::parse(json, "fuzz.json");
    for (const auto& group : config.groups)
      expect((group.bits == 4 || group.bits == 8) && !group.text().empty(), "widths that are read");
    expect(!config.four_bit || config.four_bit_type == "nf4" || config.four_bit_type == "fp4", "a type");
    expect(!name_of(config.method).empty(), "a method");
  });
  survive([&] {
    const auto state = ridge::models::QuantState::parse(json, "fuzz.json");
    expect(state.block > 0 && state.shape.size() == 2 && state.shape[0] > 0 && state.shape[1] > 0, "sizes");
    expect(std::isfinite(state.nested_offset), "an offset");
    expect(std::isfinite(static_cast<float>(state.nested_offset)), "an offset in f32");
  });
  return 0;
}
