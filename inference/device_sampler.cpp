#include "inference/device_sampler.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/base/stream.h"
#include "kernels/sample.h"

namespace ridge::inference {
namespace {

using kernels::SampleParameters;

constexpr auto kWords = static_cast<std::int64_t>(sizeof(SampleParameters) / sizeof(std::int32_t));

SampleParameters parameters_of(const SamplingOptions& options) {
  SampleParameters p;
  p.temperature = static_cast<float>(options.temperature);
  p.top_p = static_cast<float>(options.top_p);
  p.min_p = static_cast<float>(options.min_p);
  p.repetition_penalty = static_cast<float>(options.repetition_penalty);
  p.top_k = static_cast<std::int32_t>(
      std::min<std::int64_t>(options.top_k, std::numeric_limits<std::int32_t>::max()));
  p.seed = options.seed;
  return p;
}

}  // namespace

DeviceSampler::DeviceSampler(std::int64_t slots, std::int64_t vocabulary, bool penalties, Device device)
    : vocabulary_(vocabulary), parameters_(Tensor::zeros({slots, kWords}, DType::i32, device)) {
  if (penalties) seen_ = Tensor::zeros({slots, (vocabulary + 31) / 32}, DType::i32, device);
}

void DeviceSampler::begin(std::int64_t slot, const SamplingOptions& options,
                          std::span<const std::int32_t> prompt) {
  if (parameters_.device() == Device::meta) return;
  const SampleParameters p = parameters_of(options);
  std::vector<std::int32_t> bits(kWords);
  std::memcpy(bits.data(), &p, sizeof p);
  parameters_.sliced(0, slot, slot + 1).copy_from(Tensor::from(bits, {1, kWords}));
  if (!seen_.defined()) return;
  std::vector<std::int32_t> words(static_cast<std::size_t>(seen_.dim(1)));
  const auto seen = seen_words(
      prompt, std::max<std::int64_t>(vocabulary_, 1 + *std::max_element(prompt.begin(), prompt.end())));
  std::memcpy(words.data(), seen.data(), words.size() * sizeof(std::int32_t));
  seen_.sliced(0, slot, slot + 1).copy_from(Tensor::from(words, {1, seen_.dim(1)}));
}

void DeviceSampler::choose(const Tensor& logits_BV, std::int64_t first, View<const std::int64_t> steps_B,
                           const Tensor& ids_B) const {
  const std::int64_t B = logits_BV.dim(0);
  const Tensor logits = logits_BV.sliced(1, 0, vocabulary_);
  Stream& stream = current_stream(logits.device());
  const View<const SampleParameters> parameters(
      static_cast<const SampleParameters*>(parameters_.sliced(0, first, first + B).data()), {B});
  View<std::uint32_t> seen;
  if (seen_.defined())
    seen = {static_cast<std::uint32_t*>(seen_.sliced(0, first, first + B).data()), {B, seen_.dim(1)}};
  const auto run = [&]<class T>(std::type_identity<T>) {
    kernels::sample_ids<T>(stream, logits.view<T>(), parameters, steps_B, seen, ids_B.view<std::int32_t>());
  };
  if (logits.dtype() == DType::bf16) return run(std::type_identity<bf16>{});
  run(std::type_identity<float>{});
}

}  // namespace ridge::inference
