#include "launch/command_line.h"

#include <CLI/CLI.hpp>

namespace ridge {

Command Command::add(const std::string& name, const std::string& help, bool groups) const {
  CLI::App* app = app_->add_subcommand(name, help);
  if (groups) app->require_subcommand(1);
  return Command(*app);
}

const Command& Command::option(const std::string& name, std::string& value, const std::string& help) const {
  CLI::Option* option = app_->add_option(name, value, help);
  if (!value.empty()) option->capture_default_str();
  return *this;
}

const Command& Command::option(const std::string& name, std::int64_t& value, const std::string& help) const {
  app_->add_option(name, value, help)->capture_default_str();
  return *this;
}

const Command& Command::option(const std::string& name, std::uint64_t& value, const std::string& help) const {
  app_->add_option(name, value, help)->capture_default_str();
  return *this;
}

const Command& Command::option(const std::string& name, double& value, const std::string& help) const {
  app_->add_option(name, value, help)->capture_default_str();
  return *this;
}

const Command& Command::option(const std::string& name, std::vector<std::string>& values,
                               const std::string& help) const {
  app_->add_option(name, values, help);
  return *this;
}

const Command& Command::required(const std::string& name, std::string& value, const std::string& help) const {
  app_->add_option(name, value, help)->required();
  return *this;
}

const Command& Command::required(const std::string& name, std::vector<std::string>& values,
                                 const std::string& help) const {
  app_->add_option(name, values, help)->required();
  return *this;
}

const Command& Command::flag(const std::string& name, bool& value, const std::string& help) const {
  app_->add_flag(name, value, help);
  return *this;
}

bool Command::given(const std::string& name) const { return app_->count(name) > 0; }

void Command::run(std::function<void()> body) const { app_->callback(std::move(body)); }

}  // namespace ridge
