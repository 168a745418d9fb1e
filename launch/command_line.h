// Commands and their options: a light face for CLI11.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace ridge {

/// One command of the program. A copy names the same command; bound variables must outlive parsing.
class Command {
 public:
  explicit Command(CLI::App& app) : app_(&app) {}

  /// A command below this one; `groups` says that it needs one below itself.
  Command add(const std::string& name, const std::string& help, bool groups = false) const;

  /// "--name VALUE", or a positional without dashes. The variable's value is the default and is shown.
  const Command& option(const std::string& name, std::string& value, const std::string& help) const;
  const Command& option(const std::string& name, std::int64_t& value, const std::string& help) const;
  const Command& option(const std::string& name, std::uint64_t& value, const std::string& help) const;
  const Command& option(const std::string& name, double& value, const std::string& help) const;
  const Command& option(const std::string& name, std::vector<std::string>& values,
                        const std::string& help) const;
  const Command& required(const std::string& name, std::string& value, const std::string& help) const;
  const Command& required(const std::string& name, std::vector<std::string>& values,
                          const std::string& help) const;
  const Command& flag(const std::string& name, bool& value, const std::string& help) const;

  /// Whether the option was given; after parsing.
  bool given(const std::string& name) const;
  void run(std::function<void()> body) const;

 private:
  CLI::App* app_;
};

}  // namespace ridge
