// Ids on their way from the device to the host, without waiting for them.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/base/cuda.h"
#include "core/tensor.h"

namespace ridge::inference {

class TokenRing {
 public:
  /// At most `depth` reads of `count` ids are under way at once.
  TokenRing(Device device, std::int64_t count, int depth);

  /// Queues a read of ids [count] i32; the ticket asks for them.
  std::int64_t read(const Tensor& ids);
  /// Waits for a read; its ids hold until `depth` more reads were queued.
  std::span<const std::int32_t> await(std::int64_t ticket) const;

 private:
  struct Place {
    std::shared_ptr<std::int32_t[]> ids;
    std::unique_ptr<cuda::Event> done;  // on a GPU
  };
  const Place& place(std::int64_t ticket) const {
    return places_[static_cast<std::size_t>(ticket) % places_.size()];
  }

  Device device_;
  std::int64_t count_;
  std::vector<Place> places_;
  std::int64_t next_ = 0;
};

}  // namespace ridge::inference
