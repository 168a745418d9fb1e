#include "launch/batch_source.h"

#include <algorithm>
#include <cstring>

#include "core/base/cuda.h"
#include "core/base/stream.h"

namespace ridge {
namespace {

std::int64_t checked_samples(const TokenStream& stream, std::int64_t sequence_length) {
  const std::int64_t samples = SampleOrder::count(stream.size(), sequence_length);
  require(samples >= 1,
          "the training data have {} tokens, but one sample of data.sequence_length {} needs {}: give more "
          "text or "
          "a shorter sequence",
          stream.size(), sequence_length, sequence_length + 1);
  return samples;
}

}  // namespace

// Page-locked memory for batches on their way to a GPU; a slot is used again once its copy is done.
class Staging {
 public:
  ~Staging() {
    for (Slot& slot : slots_) cuda::release_pinned(slot.data);
  }
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  Tensor upload(const Tensor& batch) {
    const Stream& stream = current_stream(Device::cuda);
    Slot& slot = free_slot(batch.bytes());
    std::memcpy(slot.data, batch.data(), static_cast<std::size_t>(batch.bytes()));
    const Tensor there = Tensor::empty(batch.shape(), batch.dtype(), Device::cuda);
    cuda::copy(there.data(), slot.data, batch.bytes(), stream);
    slot.copied.record(stream);
    return there;
  }

 private:
  struct Slot {
    void* data;
    std::int64_t bytes;
    cuda::Event copied;
  };

  Slot& free_slot(std::int64_t bytes) {
    for (Slot& slot : slots_) {
      if (slot.bytes >= bytes && slot.copied.done()) return slot;
    }
    slots_.push_back({cuda::allocate_pinned(bytes), bytes, cuda::Event()});
    return slots_.back();
  }

  std::vector<Slot> slots_;
};

BatchSource::~BatchSource() = default;

BatchSource::BatchSource(std::unique_ptr<TokenStream> stream, std::int64_t sequence_length, bool shuffled,
                         std::uint64_t seed)
    : stream_(std::move(stream)),
      sequence_length_(sequence_length),
      order_(checked_samples(*stream_, sequence_length), shuffled, seed),
      sample_(static_cast<std::size_t>(sequence_length) + 1),
      ranges_{{0, sequence_length}} {}

Batch BatchSource::read(std::int64_t first, std::int64_t rows, Device device) {
  std::int64_t tokens = 0;
  for (const auto& [begin, end] : ranges_) tokens += end - begin;
  const Shape shape{rows, tokens};
  Batch batch{Tensor::empty(shape, DType::i32), Tensor::empty(shape, DType::i32)};
  for (std::int64_t row = 0; row < rows; ++row) {
    stream_->read(order_.at(first + row) * sequence_length_, sample_);
    auto id = batch.ids.span<std::int32_t>().begin() + row * tokens;
    auto target = batch.targets.span<std::int32_t>().begin() + row * tokens;
    for (const auto& [begin, end] : ranges_) {
      id = std::copy(sample_.begin() + begin, sample_.begin() + end, id);
      target = std::copy(sample_.begin() + begin + 1, sample_.begin() + end + 1, target);
    }
  }
  if (device != Device::cuda) return batch;
  if (staging_ == nullptr) staging_ = std::make_unique<Staging>();
  return {staging_->upload(batch.ids), staging_->upload(batch.targets)};
}

}  // namespace ridge
