// Steps of decoding that a GPU has been told once and runs again.
#pragma once

#include <functional>
#include <map>

#include "core/base/cuda.h"
#include "core/base/memory.h"
#include "core/base/stream.h"

namespace ridge::inference {

class StepGraphs {
 public:
  /// Runs `body` on the stream: as it is the first time, which readies what a recording may not, and recorded
  /// from then on, one recording for each `key`.
  void run(Stream& stream, std::int64_t key, const std::function<void()>& body);
  /// Forgets them: what `body` reads or writes has moved.
  void clear() { graphs_.clear(); }

 private:
  struct Recorded {
    RecordedMemory memory{Device::cuda};
    cuda::Graph graph;
    bool warm = false;
  };
  std::map<std::int64_t, Recorded> graphs_;
};

}  // namespace ridge::inference
