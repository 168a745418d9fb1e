// A queue of work on one device. On the CPU work runs at once; on meta a virtual clock advances.
#pragma once

#include <string>

#include "core/base/device.h"

namespace ridge {

class Profiler;

/// What a machine can do at the most: the roof that work is measured against.
struct Ceilings {
  double flops_per_s = 0;       // matmul rate, FLOP/s
  double read_bytes_per_s = 0;  // memory read, byte/s
  double copy_bytes_per_s = 0;  // memory copy, byte/s, read and written bytes both counted
};

class Stream {
 public:
  /// `native`: a cudaStream_t; null on cuda means the process's compute stream.
  Stream(Device device, std::string name, void* native = nullptr)
      : device_(device), name_(std::move(name)), native_(native) {}
  Device device() const { return device_; }
  const std::string& name() const { return name_; }
  /// The cudaStream_t of a stream on cuda.
  void* native() const;

  /// Records every launch while set; null costs one branch a launch.
  Profiler* profiler = nullptr;
  /// The machine that meta's clock pretends to be, and the device that its sizes are chosen for.
  Ceilings meta_ceilings;
  Device meta_device = Device::cpu;
  /// Seconds that the work launched on meta would have taken at the ceilings.
  double virtual_seconds = 0;

 private:
  Device device_;
  std::string name_;
  void* native_;
};

/// This thread's compute stream of a device. On cuda all threads share one queue.
Stream& current_stream(Device device);

/// The device that sizes of chunks and scratch are chosen for: itself, or the one that meta stands for.
Device planned_device(Device device);

}  // namespace ridge
