#include "inference/token_ring.h"

#include <cstring>

#include "core/base/launch.h"

namespace ridge::inference {

TokenRing::TokenRing(Device device, std::int64_t count, int depth) : device_(device), count_(count) {
  for (int i = 0; i < depth; ++i) {
    const auto size = static_cast<std::size_t>(count);
    if (device != Device::cuda) {
      places_.push_back({std::shared_ptr<std::int32_t[]>(new std::int32_t[size]), nullptr});
      continue;
    }
    void* pinned = cuda::allocate_pinned(count * static_cast<std::int64_t>(sizeof(std::int32_t)));
    places_.push_back(
        {std::shared_ptr<std::int32_t[]>(static_cast<std::int32_t*>(pinned), cuda::release_pinned),
         std::make_unique<cuda::Event>()});
  }
}

std::int64_t TokenRing::read(const Tensor& ids) {
  check(ids.numel() == count_, "as many ids as places");
  const Place& to = place(next_);
  Stream& stream = current_stream(device_);
  const auto bytes = static_cast<std::int64_t>(sizeof(std::int32_t)) * count_;
  launch(
      stream, "read_ids", {0, 2.0 * static_cast<double>(bytes)},
      [&] { std::memcpy(to.ids.get(), ids.data(), static_cast<std::size_t>(bytes)); },
      [&] {
        cuda::copy(to.ids.get(), ids.data(), bytes, stream);
        to.done->record(stream);
      });
  return next_++;
}

std::span<const std::int32_t> TokenRing::await(std::int64_t ticket) const {
  const Place& from = place(ticket);
  if (from.done != nullptr) from.done->synchronize();
  return {from.ids.get(), static_cast<std::size_t>(count_)};
}

}  // namespace ridge::inference
