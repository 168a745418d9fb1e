#include "core/nn/kv_cache.h"

#include <gtest/gtest.h>

#include "tests/core/ops/jacobian.h"

namespace ridge::nn {
namespace {

using test::random_tensor;

void expect_equal(const Tensor& got, const Tensor& want) { test::expect_close(got, want, 0, "cache"); }

TEST(KvCache, GivesBackWhatWasAppendedInOrder) {
  KvCache cache(2, 3, 8, 2, 5, DType::f32, test::test_device());
  EXPECT_EQ(cache.capacity(), 8);
  EXPECT_EQ(cache.length(), 0);
  const Tensor keys = random_tensor({3, 8, 2, 5}, 1, -1, 1, DType::f32);
  const Tensor values = random_tensor({3, 8, 2, 5}, 2, -1, 1, DType::f32);
  std::int64_t begin = 0;
  for (const std::int64_t tokens : {3, 1, 4}) {
    for (std::int64_t layer = 0; layer < 2;
         ++layer) {  // layers hold different numbers: the second the negatives
      const Tensor k = keys.sliced(1, begin, begin + tokens), v = values.sliced(1, begin, begin + tokens);
      cache.append(layer, layer == 0 ? k : v, layer == 0 ? v : k);
      EXPECT_EQ(cache.length(), begin);  // until the model has gone through
      expect_equal(cache.keys(layer, tokens), (layer == 0 ? keys : values).sliced(1, 0, begin + tokens));
      expect_equal(cache.values(layer, tokens), (layer == 0 ? values : keys).sliced(1, 0, begin + tokens));
    }
    cache.advance(tokens);
    begin += tokens;
  }
  EXPECT_EQ(cache.length(), 8);
  expect_equal(cache.keys(0, 0), keys);
  expect_equal(cache.keys(1, 0), values);
}

TEST(KvCache, PastTheCapacityIsAnErrorThatNamesBoth) {
  KvCache cache(1, 1, 4, 1, 2, DType::f32, test::test_device());
  const Tensor three = Tensor::zeros({1, 3, 1, 2}, DType::f32, test::test_device());
  cache.append(0, three, three);
  cache.advance(3);
  try {
    cache.append(0, three, three);
    FAIL();
  } catch (const Error& error) {
    for (const char* part : {"cache of 4 tokens", "6"})
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(KvCache, HoldsItsOwnType) {
  KvCache cache(1, 1, 2, 1, 2, DType::bf16, test::test_device());
  const Tensor k = Tensor::from(std::vector<float>{1.001f, 2}, {1, 1, 1, 2}).on(test::test_device());
  cache.append(0, k, k);
  EXPECT_EQ(cache.keys(0, 1).dtype(), DType::bf16);
  expect_equal(cache.keys(0, 1), k.to(DType::bf16));
}

TEST(KvCache, TakesNoMemoryOnMeta) {
  const std::int64_t live = memory_stats(test::test_device()).live, meta = memory_stats(Device::meta).live;
  const KvCache cache(32, 8, 1 << 16, 8, 128, DType::bf16, Device::meta);
  EXPECT_EQ(memory_stats(test::test_device()).live, live);
  EXPECT_GE(memory_stats(Device::meta).live - meta, 2LL * 32 * 8 * (1 << 16) * 8 * 128 * 2);
}

}  // namespace
}  // namespace ridge::nn
