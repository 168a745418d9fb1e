// A pass over the cache against the model's own forward pass.
#include "inference/decode_model.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "core/autograd.h"
#include "tests/core/models/reference.h"
#include "tests/inference/decode_helpers.h"

namespace ridge::inference {
namespace {

using namespace test;

constexpr std::int64_t kCapacity = 64;

// A decoder with a cache of its own.
struct Decoder {
  models::Llama& model;
  DecodeModel decode;
  Cache cache;

  Decoder(models::Llama& m, std::int64_t slots, kernels::KvFormat format)
      : model(m),
        decode(m, kCapacity, slots),
        cache(shaped(decode.cache_shape(), slots, format), kCapacity, m.device()) {
    decode.reach(kCapacity);
  }
  static CacheShape shaped(CacheShape shape, std::int64_t slots, kernels::KvFormat format) {
    shape.slots = slots;
    shape.format = format;
    return shape;
  }
  // T tokens of each of the slots from `first` on, at these positions [B, T].
  Tensor run(const std::vector<std::int32_t>& ids, const std::vector<std::int32_t>& positions,
             std::int64_t batch, std::int64_t first) {
    const auto count = static_cast<std::int64_t>(ids.size());
    return decode
        .run(Tensor::from(ids, {count}).on(model.device()),
             Tensor::from(positions, {batch, count / batch}).on(model.device()), cache, first, true)
        .contiguous_copy();
  }
  // Tokens begin .. end - 1 of a text.
  Tensor run(const std::vector<std::int32_t>& text, std::size_t begin, std::size_t end, std::int64_t slot) {
    std::vector<std::int32_t> positions(end - begin);
    std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(begin));
    const auto at = [&](std::size_t i) { return text.begin() + static_cast<std::ptrdiff_t>(i); };
    return run({at(begin), at(end)}, positions, 1, slot);
  }
};

Tensor whole_logits(models::Llama& model, const std::vector<std::int32_t>& text) {
  const autograd::NoGradScope no_grad;
  const Tensor ids = Tensor::from(text, {1, static_cast<std::int64_t>(text.size())});
  return model.last_logits(ids, nullptr);
}

// max |got - want| over the range of `want`.
double error_of(const Tensor& got, const Tensor& want) { return max_difference(got, want) / range_of(want); }

TEST(DecodeModel, ChunksAndTokensAreTheWholeText) {
  for (const char* name : {"llama3", "qwen2_sliding", "mistral"}) {
    const auto model = load_test_model(name);
    const auto text = prompt_of(*model, 40, 1);
    Decoder decoder(*model, 2, kernels::KvFormat::f32);
    std::size_t begin = 0;
    for (const std::size_t count : {1, 1, 9, 3, 1, 16, 1, 8}) {
      const Tensor logits = decoder.run(text, begin, begin + count, 1);
      begin += count;
      EXPECT_LT(error_of(logits, whole_logits(*model, {text.begin(),
                                                       text.begin() + static_cast<std::ptrdiff_t>(begin)})),
                2e-6)
          << name << " after " << begin;
    }
    EXPECT_EQ(begin, text.size());
  }
}

TEST(DecodeModel, Bf16IsCloseToTheWholeText) {
  const auto model = load_test_model("bf16", DType::bf16);
  const auto text = prompt_of(*model, 30, 2);
  Decoder decoder(*model, 1, kernels::KvFormat::bf16);
  decoder.run(text, 0, 29, 0);
  EXPECT_LT(error_of(decoder.run(text, 29, 30, 0), whole_logits(*model, text)), 0.02);
}

// What the formats of the cache cost, beside keys and values as they are. `bound` is twice what was measured.
TEST(DecodeModel, SmallerCachesAreClose) {
  struct Case {
    kernels::KvFormat format;
    double bound;
  };
  models::ModelConfig config = tiny_decoder();
  config.hidden_size = 128;
  config.intermediate_size = 256;
  config.head_dim = config.rope.head_dim = 32;
  config.heads = 4;
  config.layers = 4;
  const auto model = random_model(config);
  const auto text = prompt_of(*model, 50, 3);
  const Tensor want = whole_logits(*model, text);
  for (const Case& c : {Case{kernels::KvFormat::bf16, 0.013}, Case{kernels::KvFormat::int8, 0.043},
                        Case{kernels::KvFormat::fp8, 0.143}}) {
    Decoder decoder(*model, 1, c.format);
    decoder.run(text, 0, 20, 0);
    for (std::size_t i = 20; i + 1 < text.size(); ++i) decoder.run(text, i, i + 1, 0);
    const double error = error_of(decoder.run(text, 49, 50, 0), want);
    EXPECT_LT(error, c.bound) << kernels::name_of(c.format);
    EXPECT_GT(error, 0) << kernels::name_of(c.format) << " is another format";
  }
}

// A sequence's bits are its own: beside others, beside a row that has none, in another slot.
TEST(DecodeModel, NeighboursDoNotMatter) {
  const auto model = load_test_model("llama3");
  const auto a = prompt_of(*model, 12, 1), b = prompt_of(*model, 30, 2);
  Decoder alone(*model, 1, kernels::KvFormat::f32), both(*model, 3, kernels::KvFormat::f32);
  alone.run(a, 0, 11, 0);
  both.run(b, 0, 29, 0);
  both.run(a, 0, 11, 2);
  const Tensor want = alone.run(a, 11, 12, 0);
  const Tensor got = both.run({b[29], 5, a[11]}, {29, -1, 11}, 3, 0);
  EXPECT_EQ(values_of(got.sliced(0, 2, 3)), values_of(want));
  EXPECT_LT(error_of(got.sliced(0, 0, 1), whole_logits(*model, b)), 2e-6);
}

// A step's kernels take a layer with biases in any format, and a token's bits are its own beside 0 to 7
// others.
TEST(DecodeModel, StepsOfOneToEightSequences) {
  models::ModelConfig config = tiny_decoder();
  config.vocab_size = 80;
  config.hidden_size = 256;
  config.intermediate_size = 512;
  config.heads = 4;
  config.head_dim = config.rope.head_dim = 64;
  config.qkv_bias = config.output_bias = config.mlp_bias = true;
  for (const char* format : {"", "int8", "fp8", "nf4", "nf4-dq", "int4-g64", "int4-g64-zp"}) {
    const auto model = random_model(config, DType::bf16);
    if (*format != 0) quantize_linears(*model, kernels::parse_weight_format(format));
    Decoder alone(*model, 1, kernels::KvFormat::bf16), many(*model, 8, kernels::KvFormat::bf16);
    EXPECT_EQ(alone.decode.steps(), on_gpu()) << format;
    EXPECT_EQ(many.decode.steps(), on_gpu()) << format;
    EXPECT_FALSE(Decoder(*model, 9, kernels::KvFormat::bf16).decode.steps());
    const auto a = prompt_of(*model, 12, 1);
    alone.run(a, 0, 11, 0);
    const Tensor want = alone.run(a, 11, 12, 0);
    EXPECT_LT(error_of(want, whole_logits(*model, a)), 0.05) << format;
    for (const std::int64_t slot : {1, 4, 7}) {
      many.run(a, 0, 11, slot);
      std::vector<std::int32_t> ids(static_cast<std::size_t>(slot + 1), 5), positions(ids.size(), -1);
      ids.back() = a[11], positions.back() = 11;
      const Tensor got = many.run(ids, positions, slot + 1, 0);
      EXPECT_EQ(values_of(got.sliced(0, slot, slot + 1)), values_of(want)) << format << ", " << slot;
    }
  }
}

// On meta the same memory is taken and nothing is computed.
TEST(DecodeModel, MetaTakesTheSameMemory) {
  const auto peak = [](Device device) {
    reset_memory_peaks(device);
    models::Llama model(tiny_decoder(), DType::bf16, device);
    if (device != Device::meta) model.initialize(1);
    const std::int64_t before = memory_stats(device).live;
    DecodeModel decode(model, 16, 2);
    const Cache cache(Decoder::shaped(decode.cache_shape(), 2, kernels::KvFormat::int8), 100, device);
    decode.reach(100);
    decode.run(Tensor::zeros({2}, DType::i32, device), Tensor::zeros({2, 1}, DType::i32, device), cache, 0,
               true);
    return memory_stats(device).live - before;
  };
  if (on_gpu()) GTEST_SKIP() << "of the CPU";
  EXPECT_EQ(peak(Device::meta), peak(Device::cpu));
}

TEST(Cache, GrowsWithItsContent) {
  for (const auto format :
       {kernels::KvFormat::f32, kernels::KvFormat::bf16, kernels::KvFormat::fp8, kernels::KvFormat::int8}) {
    const auto model = load_test_model("llama3");
    const auto text = prompt_of(*model, 41, 5);
    Decoder small(*model, 2, format), wide(*model, 2, format);
    small.cache = Cache(small.cache.shape(), 40, model->device());
    EXPECT_EQ(small.cache.bytes(), 40 * small.cache.shape().bytes(1));
    for (Decoder* d : {&small, &wide}) {
      d->run(text, 0, 40, 1);
      d->run(prompt_of(*model, 7, 6), 0, 7, 0);
    }
    EXPECT_THROW(small.cache.grow(std::int64_t{1} << 40), UserError);
    EXPECT_EQ(small.cache.capacity(), 40) << "no room for so many";
    small.cache.grow(57);
    EXPECT_EQ(small.cache.capacity(), 57);
    for (const std::int64_t slot : {0, 1}) {
      const std::size_t at = slot == 0 ? 7 : 40;
      EXPECT_EQ(values_of(small.run(text, at, at + 1, slot)), values_of(wide.run(text, at, at + 1, slot)));
    }
  }
}

}  // namespace
}  // namespace ridge::inference
