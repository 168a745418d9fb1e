#include "parallel/peer_memory.h"

#include "core/base/error.h"

namespace ridge::parallel {

int PeerGroup::add_flag() {
  check(flags_ < kFlags, "a group of peers has room for another flag");
  return flags_++;
}

}  // namespace ridge::parallel
