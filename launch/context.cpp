#include "launch/context.h"

#include <cstdio>

namespace ridge {

void Context::emit(const JsonObject& object, const std::string& text) const {
  if (!is_root()) return;
  const std::string out = json ? object.dump() + "\n" : text;
  std::fwrite(out.data(), 1, out.size(), stdout);
  std::fflush(stdout);
}

void Context::note(const std::string& line) const {
  if (is_root()) std::fprintf(stderr, "%s\n", line.c_str());
}

}  // namespace ridge
