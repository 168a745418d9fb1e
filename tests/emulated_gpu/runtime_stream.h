// Streams run what they are given at once. One that is being captured keeps it for a graph instead.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "tests/emulated_gpu/runtime.h"

namespace ridge::emulated {

/// What a graph does, in order, and the objects that live as long as it and all that was made of it.
struct Recording {
  std::vector<std::function<void()>> work;
  std::vector<cudaUserObject_t> objects;
  Recording() = default;
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  ~Recording();
};

struct Capture {
  cudaGraph_t graph = nullptr;
  unsigned long long id = 0;
  cudaStream_t origin = nullptr;
  bool invalid = false, ended = false;
};

/// The capture that a stream takes part in; null: none.
Capture* capture_of(cudaStream_t stream);
bool any_capture();

}  // namespace ridge::emulated

struct CUstream_st {
  std::shared_ptr<ridge::emulated::Capture> capture;
  int priority = 0;
  unsigned flags = 0;
};

struct CUevent_st {
  bool timed = true, recorded = false;
  std::chrono::steady_clock::time_point time;
  std::shared_ptr<ridge::emulated::Capture> capture;  // that it was last recorded in
};

struct CUgraph_st {
  std::shared_ptr<ridge::emulated::Recording> recording = std::make_shared<ridge::emulated::Recording>();
};

struct CUgraphExec_st {
  std::shared_ptr<ridge::emulated::Recording> recording;
};
