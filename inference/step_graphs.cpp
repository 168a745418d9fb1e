#include "inference/step_graphs.h"

namespace ridge::inference {

void StepGraphs::run(Stream& stream, std::int64_t key, const std::function<void()>& body) {
  Recorded& step = graphs_[key];
  if (!step.warm || stream.profiler != nullptr) {  // a profiler times op by op
    step.warm = true;
    return body();
  }
  if (!step.graph.recorded()) {
    const RecordedMemory::Scope scope(step.memory);
    step.graph.record(stream, body);
  }
  step.graph.launch(stream);
}

}  // namespace ridge::inference
