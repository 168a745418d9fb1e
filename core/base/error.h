// Errors: UserError for what a user can mend (bad file, bad flag), Error for a bug of ours.
#pragma once

#include <fmt/core.h>

#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>

namespace ridge {

/// A bug in Ridgeline or a failed call of a library: exit code 2.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Something the user can mend; the message says what, where, both values and what to do: exit code 1.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {
[[noreturn]] void throw_user_error(std::string message);
[[noreturn]] void throw_error(std::string message);
[[noreturn]] void throw_check(const char* what, std::source_location where);
}  // namespace detail

/// Throws a UserError with a formatted message: control characters as \xNN, the middle of a very long one
/// left out.
template <class... Args>
[[noreturn]] void fail_user(fmt::format_string<Args...> format, Args&&... args) {
  detail::throw_user_error(fmt::vformat(format, fmt::make_format_args(args...)));
}

/// Throws an Error (a bug) with a formatted message.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  detail::throw_error(fmt::vformat(format, fmt::make_format_args(args...)));
}

/// Throws a UserError unless `ok`.
template <class... Args>
void require(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) detail::throw_user_error(fmt::vformat(format, fmt::make_format_args(args...)));
}

/// Throws an Error unless `ok`: for invariants of the program itself.
inline void check(bool ok, const char* what, std::source_location where = std::source_location::current()) {
  if (!ok) detail::throw_check(what, where);
}

}  // namespace ridge
