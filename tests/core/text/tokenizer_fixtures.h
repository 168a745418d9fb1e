// Files of tests/data/tokenizers, written by tests/reference/make_tokenizer_fixtures.py.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "core/text/tokenizer.h"

namespace ridge::test {

inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream out;
  out << file.rdbuf();
  return std::move(out).str();
}

inline std::string fixture_path(const std::string& name) {
  return std::string(RIDGE_SOURCE_DIR "/tests/data/tokenizers/") + name;
}

inline nlohmann::json read_fixture(const std::string& name) {
  return nlohmann::json::parse(read_bytes(fixture_path(name)));
}

inline Tokenizer load_fixture(const std::string& family) {
  return Tokenizer::from_json(read_bytes(fixture_path(family + ".json")), family + ".json");
}

/// Text for failure messages: every byte visible.
inline std::string visible(std::string_view text) {
  return nlohmann::json(std::string(text)).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

}  // namespace ridge::test
