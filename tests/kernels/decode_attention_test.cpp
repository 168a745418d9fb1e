// Against rotary_append followed by softmax in f64 over what that leaves in the cache.
#include "kernels/decode_attention.h"

#include "core/base/error.h"
#include "kernels/rotary.h"
#include "tests/kernels/kv_test.h"

namespace ridge::kernels::testing {
namespace {

struct Extents {
  std::int64_t batch, heads, kv_heads, dim, capacity;
};

template <class T>
struct Problem {
  Extents n;
  QkvHeads heads{n.heads, n.kv_heads, n.dim};
  Cache cache;
  Array<T> qkv, o;
  Array<float> cos, sin;
  Memory<std::int32_t> positions;
  CachedAttentionOptions options;
  Memory<float> scratch;

  Problem(const Extents& e, KvFormat format, std::vector<std::int32_t> at, std::int64_t gap = 0)
      : n(e),
        cache(format, e.batch, e.capacity, e.kv_heads, e.dim),
        qkv(Array<T>::gapped({e.batch, heads.width()}, gap)),
        o(Array<T>::gapped({e.batch, e.heads * e.dim}, gap)),
        cos({e.capacity, e.dim / 2}),
        sin({e.capacity, e.dim / 2}),
        positions(at.begin(), at.end()),
        scratch(static_cast<std::size_t>(decode_attention_scratch(e.batch, e.heads, e.kv_heads, e.dim))) {
    cache.randomize(1);
    qkv.randomize(2);
    o.randomize(3);
    rotary_table(rotary_inv_freq(1e4, e.dim, {}, 4096, 4096), 1, 0, cos.view(), sin.view());
    wait_for_device();
    options.scale = 1 / std::sqrt(static_cast<double>(e.dim));
  }

  std::vector<double> run() {
    decode_attention<T>(test_stream(), qkv.view(), heads, cos.in(), sin.in(),
                        View<const std::int32_t>(positions.data(), {n.batch}), cache.view(), o.view(),
                        options, View<float>(scratch.data(), {static_cast<std::int64_t>(scratch.size())}));
    return o.values();
  }
  void append() {
    const View<T> rows = qkv.view();
    rotary_append<T>(
        test_stream(), View<T>(rows.data, {n.batch, 1, heads.width()}, {rows.strides[0], rows.strides[0], 1}),
        heads, cos.in(), sin.in(), View<const std::int32_t>(positions.data(), {n.batch, 1}), cache.view());
    wait_for_device();
  }
  // After append().
  std::vector<double> expected() const {
    const auto rows = qkv.values();
    std::vector<double> out;
    for (std::int64_t b = 0; b < n.batch; ++b) {
      for (std::int64_t h = 0; h < n.heads; ++h) head(b, h, rows.data() + b * heads.width() + h * n.dim, out);
    }
    return out;
  }
  void head(std::int64_t b, std::int64_t h, const double* q, std::vector<double>& out) const {
    const std::int64_t g = h / (n.heads / n.kv_heads), position = positions[static_cast<std::size_t>(b)];
    const std::int64_t first =
        options.window > 0 ? std::max<std::int64_t>(0, position - options.window + 1) : 0;
    std::vector<double> weight, sums(static_cast<std::size_t>(n.dim));
    double most = -1e300, total = 0;
    for (std::int64_t j = first; j <= position; ++j) {
      double dot = 0;
      for (std::int64_t d = 0; d < n.dim; ++d) dot += q[d] * cache.key(b, j, g, d);
      weight.push_back(dot * options.scale);
      most = std::max(most, weight.back());
    }
    for (double& w : weight) total += w = std::exp(w - most);
    for (std::int64_t j = first; j <= position; ++j) {
      for (std::int64_t d = 0; d < n.dim; ++d)
        sums[static_cast<std::size_t>(d)] +=
            weight[static_cast<std::size_t>(j - first)] / total * cache.value(b, j, g, d);
    }
    out.insert(out.end(), sums.begin(), sums.end());
  }
};

template <class T>
constexpr double kLimit = std::is_same_v<T, float> ? 1e-5 : 8e-3;

// One against the two ops' cache and softmax.
template <class T>
void expect_same(const Extents& e, KvFormat format, const std::vector<std::int32_t>& at,
                 std::int64_t window = 0, std::int64_t gap = 0) {
  Problem<T> one(e, format, at, gap), two(e, format, at, gap);
  one.options.window = two.options.window = window;
  const auto got = one.run();
  two.append();
  const auto where = ::testing::Message()
                     << name_of(format) << " H " << e.heads << " G " << e.kv_heads << " D " << e.dim << " S "
                     << e.capacity << " at " << at[0] << " window " << window;
  EXPECT_LT(normalized_error(got, two.expected()), kLimit<T>) << where;
  EXPECT_EQ(one.cache.key_bytes(), two.cache.key_bytes()) << where;
  EXPECT_EQ(one.cache.value_bytes(), two.cache.value_bytes()) << where;
  EXPECT_EQ(one.cache.key_scales(), two.cache.key_scales()) << where;
  EXPECT_EQ(one.cache.value_scales(), two.cache.value_scales()) << where;
}

template <class T>
class DecodeAttention : public ::testing::Test {};
using Types = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(DecodeAttention, Types);

TYPED_TEST(DecodeAttention, IsSoftmaxOverTheCacheAndTheNewToken) {
  const Extents shapes[] = {{1, 32, 8, 128, 700}, {2, 4, 4, 64, 333},  {2, 7, 1, 64, 90},
                            {1, 14, 2, 128, 130}, {3, 8, 1, 128, 70},  {2, 6, 3, 20, 90},
                            {1, 20, 1, 128, 64},  {1, 3, 3, 256, 50},  {2, 9, 3, 128, 257},
                            {1, 5, 5, 96, 300},   {1, 28, 4, 128, 100}};
  for (const Extents& e : shapes) {
    for (const KvFormat format : kKvFormats) {
      for (const std::int64_t window : {0, 50}) {
        std::vector<std::int32_t> at{static_cast<std::int32_t>(e.capacity - 1)};
        for (std::int64_t b = 1; b < e.batch; ++b) at.push_back(static_cast<std::int32_t>(17 * b));
        expect_same<TypeParam>(e, format, at, window, window == 0 ? 8 : 3);
      }
    }
  }
}

TYPED_TEST(DecodeAttention, EveryLengthAroundTheEdgesOfParts) {
  for (const KvFormat format : kKvFormats) {
    for (const std::int32_t last :
         {0, 1, 15, 16, 17, 31, 32, 63, 64, 127, 128, 129, 255, 256, 511, 512, 513}) {
      expect_same<TypeParam>({1, 4, 2, 64, 514}, format, {last});
      expect_same<TypeParam>({1, 4, 2, 64, 514}, format, {last}, 20);
    }
  }
}

// Beyond what one cluster reads.
TYPED_TEST(DecodeAttention, ManyKeys) {
  for (const KvFormat format : kKvFormats) {
    for (const std::int32_t last : {1023, 1024, 1025, 1500, 2999})
      expect_same<TypeParam>({2, 2, 1, 64, 3000}, format, {last, 2999 - last});
    expect_same<TypeParam>({1, 3, 1, 128, 3000}, format, {2998}, 1400);
    expect_same<TypeParam>({1, 4, 2, 128, 2300}, format, {2200});
  }
}

// A warp of the kernel has three places for tiles, of 16 keys in bf16 and 32 of 8 bits: with more tiles it
// uses each again.
TEST(DecodeAttentionRings, MoreTilesThanPlaces) {
  if (!on_gpu()) GTEST_SKIP() << "a GPU's kernel";
  expect_same<bf16>({1, 8, 8, 128, 1910}, KvFormat::bf16, {1899});  // few keys: up to 2048 of 8 heads
  expect_same<bf16>({1, 32, 8, 128, 2048}, KvFormat::bf16, {2047}, 1950);
  expect_same<bf16>({1, 32, 8, 128, 8000}, KvFormat::bf16, {7990});  // many: 32 parts
  expect_same<bf16>({1, 8, 8, 128, 12100}, KvFormat::bf16, {12051}, 11900);
  expect_same<bf16>({1, 8, 8, 128, 16500}, KvFormat::fp8, {16490});
  expect_same<bf16>({1, 8, 8, 128, 22000}, KvFormat::int8, {21990});
}

TYPED_TEST(DecodeAttention, GreatScoresDoNotOverflow) {
  for (const KvFormat format : kKvFormats) {
    Problem<TypeParam> p({1, 4, 2, 128, 300}, format, {299}), two({1, 4, 2, 128, 300}, format, {299});
    p.options.scale = two.options.scale = 40;
    const auto got = p.run();
    two.append();
    EXPECT_LT(normalized_error(got, two.expected()), 20 * kLimit<TypeParam>) << name_of(format);
  }
}

TYPED_TEST(DecodeAttention, WhatIsBeyondThePositionIsNotRead) {
  for (const KvFormat format : kKvFormats) {
    Problem<TypeParam> p({1, 8, 2, 64, 200}, format, {77}), other({1, 8, 2, 64, 200}, format, {77});
    const std::size_t used = 77 * 2 * 64 * static_cast<std::size_t>(element_bytes(format));
    for (auto* x : {&other.cache.key_bytes(), &other.cache.value_bytes()})
      std::fill(x->begin() + static_cast<std::ptrdiff_t>(used), x->end(), std::uint8_t{0xFF});  // NaN
    for (std::size_t i = 77 * 2; i < other.cache.key_scales().size(); ++i) other.cache.key_scales()[i] = NAN;
    EXPECT_EQ(p.run(), other.run()) << name_of(format);
  }
}

// The sequence under test among others of other lengths, at another place, with more room: the same bits.
TYPED_TEST(DecodeAttention, DoesNotDependOnTheBatchNorOnTheBound) {
  constexpr std::int64_t kHeads = 8, kGroups = 2, kDim = 64, kRow = kGroups * kDim, kWidth = (8 + 4) * kDim;
  for (const KvFormat format : kKvFormats) {
    for (const std::int32_t at : {811, 1400}) {
      const std::int64_t width = element_bytes(format);
      Problem<TypeParam> alone({1, kHeads, kGroups, kDim, 1500}, format, {at});
      Problem<TypeParam> batch({3, kHeads, kGroups, kDim, 4000}, format, {3, at, 3999});
      const KvView from = alone.cache.view(), to = batch.cache.view();
      for (const auto& [a, b] : {std::pair(from.keys, to.keys), std::pair(from.values, to.values)})
        std::memcpy(static_cast<char*>(b) + 4000 * kRow * width, a,
                    static_cast<std::size_t>(1500 * kRow * width));
      if (has_scales(format)) {
        std::copy_n(from.key_scales, 1500 * kGroups, to.key_scales + 4000 * kGroups);
        std::copy_n(from.value_scales, 1500 * kGroups, to.value_scales + 4000 * kGroups);
      }
      std::copy_n(alone.qkv.data().begin(), kWidth, batch.qkv.data().begin() + kWidth);
      const auto qkv = alone.qkv.data();
      const auto want = alone.run(), got = batch.run();
      EXPECT_EQ(std::vector(got.begin() + kHeads * kDim, got.begin() + 2 * kHeads * kDim), want)
          << name_of(format);
      alone.qkv.data() = qkv;
      alone.options.keys = at + 1;
      EXPECT_EQ(alone.run(), want) << name_of(format) << " with a smaller bound of the keys";
    }
  }
}

TYPED_TEST(DecodeAttention, SequencesWithoutATokenAreZeroAndStay) {
  for (const KvFormat format : kKvFormats) {
    for (const std::int64_t capacity : {100, 5000}) {
      const std::int32_t last = static_cast<std::int32_t>(capacity - 1);
      Problem<TypeParam> p({3, 4, 2, 64, capacity}, format, {40, -1, last}),
          two({3, 4, 2, 64, capacity}, format, {40, -1, last});
      const auto got = p.run();
      for (std::size_t i = 4 * 64; i < 2 * 4 * 64; ++i) EXPECT_EQ(got[i], 0);
      two.append();
      EXPECT_LT(normalized_error(got, two.expected()), kLimit<TypeParam>);
      EXPECT_EQ(p.cache.key_bytes(), two.cache.key_bytes());
      EXPECT_EQ(p.cache.value_bytes(), two.cache.value_bytes());
    }
  }
}

TYPED_TEST(DecodeAttention, AgainWithTheSameScratchIsTheSame) {
  Problem<TypeParam> p({2, 8, 2, 128, 3000}, KvFormat::bf16, {2999, 1500});
  const auto qkv = p.qkv.data();
  const auto want = p.run();
  for (int i = 0; i < 3; ++i) {
    p.qkv.data() = qkv;
    EXPECT_EQ(p.run(), want);
  }
}

TEST(DecodeAttentionErrors, ArgumentsThatDoNotFit) {
  Problem<float> p({1, 4, 2, 64, 100}, KvFormat::f32, {3});
  p.scratch.resize(8);
  EXPECT_NE(message_of<Error>([&] { p.run(); }).find("scratch"), std::string::npos);
  Problem<float> q({1, 4, 2, 64, 100}, KvFormat::f32, {3});
  q.heads.kv_heads = 4;
  EXPECT_THROW(q.run(), Error);
}

TEST(DecodeAttentionWork, ReadsWhatMayBeVisible) {
  const auto work = [](std::int64_t window, std::int64_t keys, KvFormat format) {
    return launched_on_meta([&](Stream& stream) {
      KvView cache;
      cache.format = format;
      cache.batch = 2, cache.capacity = 1000, cache.kv_heads = 2, cache.head_dim = 64;
      decode_attention<bf16>(stream, meta_view<bf16>({2, 12 * 64}), {8, 2, 64},
                             meta_view<const float>({1000, 32}), meta_view<const float>({1000, 32}),
                             meta_view<const std::int32_t>({2}), cache, meta_view<bf16>({2, 8 * 64}),
                             {.scale = 1, .window = window, .keys = keys},
                             meta_view<float>({decode_attention_scratch(2, 8, 2, 64)}));
    });
  };
  const double rows = 2.0 * (12 + 8) * 64 * 2 + 2 * (4 + 64 * 4);
  EXPECT_EQ(work(0, 0, KvFormat::bf16).bytes, rows + 2 * 1000 * 2 * 2 * 64 * 2);
  EXPECT_EQ(work(0, 300, KvFormat::fp8).bytes, rows + 2 * 300 * 2 * 2 * (64 + 4));
  EXPECT_EQ(work(0, 300, KvFormat::fp8).flops, 2.0 * 64 * (3 * 10 + 4 * 8 * 300));
  EXPECT_EQ(work(100, 300, KvFormat::bf16).flops, 2.0 * 64 * (3 * 10 + 4 * 8 * 100));
}

}  // namespace
}  // namespace ridge::kernels::testing
