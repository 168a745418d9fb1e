#include "launch/batch_source.h"

#include <algorithm>

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

BatchSource::BatchSource(std::unique_ptr<TokenStream> stream, std::int64_t sequence_length, bool shuffled,
                         std::uint64_t seed)
    : stream_(std::move(stream)),
      sequence_length_(sequence_length),
      order_(checked_samples(*stream_, sequence_length), shuffled, seed),
      sample_(static_cast<std::size_t>(sequence_length) + 1) {}

Batch BatchSource::read(std::int64_t first, std::int64_t rows) {
  const Shape shape{rows, sequence_length_};
  Batch batch{Tensor::empty(shape, DType::i32), Tensor::empty(shape, DType::i32)};
  for (std::int64_t row = 0; row < rows; ++row) {
    stream_->read(order_.at(first + row) * sequence_length_, sample_);
    const auto begin = batch.ids.span<std::int32_t>().begin() + row * sequence_length_;
    const auto target = batch.targets.span<std::int32_t>().begin() + row * sequence_length_;
    std::copy(sample_.begin(), sample_.end() - 1, begin);
    std::copy(sample_.begin() + 1, sample_.end(), target);
  }
  return batch;
}

}  // namespace ridge
