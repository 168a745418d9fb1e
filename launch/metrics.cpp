#include "launch/metrics.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"

namespace ridge {
namespace {

using Json = nlohmann::ordered_json;

bool is_before(const std::string& line, std::int64_t first_step) {
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) return false;
  return json["step"].get<std::int64_t>() < first_step;
}

// Bytes of the whole lines that come before `first_step`.
std::uintmax_t bytes_to_keep(const std::string& path, std::int64_t first_step) {
  std::ifstream file(path, std::ios::binary);
  std::uintmax_t keep = 0;
  for (std::string line; std::getline(file, line) && !file.eof() && is_before(line, first_step);) {
    keep += line.size() + 1;
  }
  return keep;
}

}  // namespace

MetricsLog::MetricsLog(const std::string& folder, std::int64_t first_step)
    : path_(folder + "/metrics.jsonl") {
  std::error_code error;
  if (std::filesystem::is_regular_file(path_, error)) {
    std::filesystem::resize_file(path_, bytes_to_keep(path_, first_step), error);
    require(!error, "{}: cannot be cut back to step {}: {}", path_, first_step, error.message());
  }
  file_.reset(std::fopen(path_.c_str(), "ab"));
  require(file_ != nullptr, "{}: cannot be written: {}", path_, std::strerror(errno));
}

void MetricsLog::write(std::int64_t step, std::span<const Metric> fields) {
  Json json;
  json["step"] = step;
  for (const Metric& field : fields) {
    std::visit([&](const auto& value) { json[std::string(field.name)] = value; }, field.value);
  }
  const std::string line = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  const bool written = std::fwrite(line.data(), 1, line.size(), file_.get()) == line.size();
  require(written && std::fflush(file_.get()) == 0, "{}: cannot write step {}: {}", path_, step,
          std::strerror(errno));
}

}  // namespace ridge
