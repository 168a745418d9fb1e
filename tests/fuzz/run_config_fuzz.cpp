// Run configs: any text gives a config or a UserError; a config that resolves dumps to an equal one.
// A line that begins with '%' is an override.
#include <google/protobuf/util/message_differencer.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"

namespace {

void require_round_trip(const ridge::config::RunConfig& config) {
  const ridge::config::RunConfig again = ridge::parse_run_config(ridge::dump_yaml(config), "dump");
  ridge::check(google::protobuf::util::MessageDifferencer::Equals(config, again), "a dump reads back equal");
}

void take_line(std::string_view line, std::string& yaml, std::vector<std::string>& overrides) {
  if (line.starts_with('%')) {
    overrides.emplace_back(line.substr(1));
  } else {
    yaml += line;
    yaml += '\n';
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string yaml;
  std::vector<std::string> overrides;
  for (std::string_view rest(reinterpret_cast<const char*>(data), size); !rest.empty();) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    take_line(rest.substr(0, end), yaml, overrides);
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  try {
    ridge::config::RunConfig config = ridge::parse_run_config(yaml, "fuzz.yaml", overrides);
    require_round_trip(config);
    ridge::resolve(config, 2);
    require_round_trip(config);
    ridge::arch_json(config);
  } catch (const ridge::UserError&) {
    return 0;  // what a bad config gets
  }
  return 0;
}
