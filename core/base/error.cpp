#include "core/base/error.h"

namespace ridge::detail {

void throw_user_error(std::string message) { throw UserError(std::move(message)); }

void throw_error(std::string message) { throw Error(std::move(message)); }

void throw_check(const char* what, std::source_location where) {
  throw Error(fmt::format("{}:{} ({}): {}", where.file_name(), where.line(), where.function_name(), what));
}

}  // namespace ridge::detail
