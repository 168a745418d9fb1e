#include "core/base/error.h"

#include <string_view>

namespace ridge::detail {
namespace {

constexpr std::size_t kHead = 2000, kTail = 500;  // bytes of a message that are kept

// Names and values come from files: whatever they hold, a message stays one line that can be read.
std::string one_line(std::string_view message) {
  std::string line;
  for (std::size_t i = 0; i < message.size(); ++i) {
    if (i == kHead && message.size() > kHead + kTail) {
      line += fmt::format(" [{} bytes left out] ", message.size() - kHead - kTail);
      i = message.size() - kTail;
    }
    const auto byte = static_cast<unsigned char>(message[i]);
    if (byte < 0x20 || byte == 0x7F) {
      line += fmt::format("\\x{:02x}", byte);
    } else {
      line += message[i];
    }
  }
  return line;
}

}  // namespace

void throw_user_error(std::string message) { throw UserError(one_line(message)); }

void throw_error(std::string message) { throw Error(std::move(message)); }

void throw_check(const char* what, std::source_location where) {
  throw Error(fmt::format("{}:{} ({}): {}", where.file_name(), where.line(), where.function_name(), what));
}

}  // namespace ridge::detail
