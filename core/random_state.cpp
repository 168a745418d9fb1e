#include "core/random_state.h"

namespace ridge {

RandomState& random_state() {
  static thread_local RandomState state;
  return state;
}

}  // namespace ridge
