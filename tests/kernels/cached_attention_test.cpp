// Against softmax in f64 over what the cache holds.
#include "kernels/cached_attention.h"

#include "core/base/error.h"
#include "tests/kernels/kv_test.h"

namespace ridge::kernels::testing {
namespace {

struct Extents {
  std::int64_t batch, queries, heads, kv_heads, dim, capacity;
};

template <class T>
struct Problem {
  Extents n;
  Cache cache;
  Array<T> q, o;
  Memory<std::int32_t> positions;
  CachedAttentionOptions options;
  Memory<float> scratch;

  Problem(const Extents& e, KvFormat format, std::vector<std::int32_t> at, std::int64_t gap = 0)
      : n(e),
        cache(format, e.batch, e.capacity, e.kv_heads, e.dim),
        q(Array<T>::gapped({e.batch, e.queries, e.heads, e.dim}, gap)),
        o(Array<T>::gapped({e.batch, e.queries, e.heads, e.dim}, gap)),
        positions(at.begin(), at.end()),
        scratch(static_cast<std::size_t>(
            cached_attention_scratch(e.batch, e.queries, e.heads, e.kv_heads, e.dim))) {
    cache.randomize(1);
    q.randomize(2);
    o.randomize(3);
    options.scale = 1 / std::sqrt(static_cast<double>(e.dim));
  }

  std::vector<double> run() {
    cached_attention<T>(test_stream(), q.in(), cache.view(),
                        View<const std::int32_t>(positions.data(), {n.batch, n.queries}), o.view(), options,
                        View<float>(scratch.data(), {static_cast<std::int64_t>(scratch.size())}));
    return o.values();
  }

  std::vector<double> expected() const {
    std::vector<double> out, keys, values;  // [B, S, G, D]
    for (std::int64_t i = 0; i < n.batch * n.capacity * n.kv_heads * n.dim; ++i) {
      const std::int64_t d = i % n.dim, g = i / n.dim % n.kv_heads, s = i / n.dim / n.kv_heads;
      keys.push_back(cache.key(s / n.capacity, s % n.capacity, g, d));
      values.push_back(cache.value(s / n.capacity, s % n.capacity, g, d));
    }
    const auto query = q.values();
    for (std::int64_t i = 0; i < n.batch * n.queries * n.heads; ++i) {
      const std::int64_t g = i % n.heads / (n.heads / n.kv_heads), b = i / n.heads / n.queries;
      const std::int64_t first = (b * n.capacity * n.kv_heads + g) * n.dim;
      row(positions[static_cast<std::size_t>(i / n.heads)], query.data() + i * n.dim, keys.data() + first,
          values.data() + first, out);
    }
    return out;
  }
  void row(std::int64_t position, const double* query, const double* keys, const double* values,
           std::vector<double>& out) const {
    std::vector<double> weight, sums(static_cast<std::size_t>(n.dim));
    const std::int64_t step = n.kv_heads * n.dim;
    const std::int64_t first =
        options.window > 0 ? std::max<std::int64_t>(0, position - options.window + 1) : 0;
    double most = -1e300, total = 0;
    for (std::int64_t j = first; j <= position; ++j) {
      double dot = 0;
      for (std::int64_t d = 0; d < n.dim; ++d) dot += query[d] * keys[j * step + d];
      weight.push_back(dot * options.scale);
      most = std::max(most, weight.back());
    }
    for (double& w : weight) total += w = std::exp(w - most);
    for (std::int64_t j = first; j <= position; ++j) {
      const double share = weight[static_cast<std::size_t>(j - first)] / total;
      for (std::int64_t d = 0; d < n.dim; ++d)
        sums[static_cast<std::size_t>(d)] += share * values[j * step + d];
    }
    out.insert(out.end(), sums.begin(), sums.end());
  }
};

template <class T>
constexpr double kLimit = std::is_same_v<T, float> ? 1e-5 : 8e-3;

template <class T>
class CachedAttention : public ::testing::Test {};
using Types = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(CachedAttention, Types);

const Extents kShapes[] = {{3, 1, 4, 4, 64, 40},    {2, 1, 8, 2, 128, 333},  {2, 1, 7, 1, 64, 700},
                           {1, 1, 14, 2, 128, 70},  {2, 1, 6, 3, 20, 90},    {1, 1, 2, 1, 7, 33},
                           {2, 1, 32, 2, 64, 300},  {1, 1, 20, 1, 128, 64},  {1, 1, 3, 3, 256, 130},
                           {2, 3, 8, 2, 64, 200},   {1, 37, 4, 1, 128, 150}, {2, 5, 14, 2, 64, 140},
                           {1, 19, 6, 2, 36, 100},  {1, 1, 5, 5, 96, 2500},  {4, 1, 8, 8, 128, 129},
                           {1, 2, 40, 2, 128, 500}, {2, 50, 8, 2, 64, 300},  {1, 33, 4, 2, 128, 900}};

std::vector<std::int32_t> positions_for(const Extents& e, std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<std::int32_t> at;
  for (std::int64_t b = 0; b < e.batch; ++b) {
    const std::int64_t last =
        b == 0 ? e.capacity - 1 : static_cast<std::int64_t>(engine() % static_cast<unsigned>(e.capacity));
    for (std::int64_t t = 0; t < e.queries; ++t)
      at.push_back(static_cast<std::int32_t>(std::max<std::int64_t>(-1, last - (e.queries - 1 - t))));
  }
  return at;
}

TYPED_TEST(CachedAttention, IsSoftmaxOverTheCache) {
  for (const Extents& e : kShapes) {
    for (const KvFormat format : kKvFormats) {
      for (const std::int64_t window : {0, 50}) {
        Problem<TypeParam> p(e, format, positions_for(e, 5), window == 0 ? 8 : 3);
        p.options.window = window;
        const auto want = p.expected();
        EXPECT_LT(normalized_error(p.run(), want), kLimit<TypeParam>)
            << name_of(format) << " H " << e.heads << " G " << e.kv_heads << " D " << e.dim << " S "
            << e.capacity << " T " << e.queries << " window " << window;
      }
    }
  }
}

TYPED_TEST(CachedAttention, EveryLengthAroundTheEdgesOfParts) {
  for (const KvFormat format : kKvFormats) {
    for (const std::int32_t last :
         {0, 1, 14, 15, 16, 17, 31, 32, 62, 63, 64, 65, 127, 128, 255, 256, 257, 600}) {
      Problem<TypeParam> p({1, 1, 4, 1, 64, 601}, format, {last});
      EXPECT_LT(normalized_error(p.run(), p.expected()), kLimit<TypeParam>)
          << name_of(format) << " position " << last;
    }
  }
}

TYPED_TEST(CachedAttention, GreatScoresDoNotOverflow) {
  for (const KvFormat format : kKvFormats) {
    Problem<TypeParam> p({1, 1, 4, 2, 128, 300}, format, {299});
    p.options.scale = 40;
    EXPECT_LT(normalized_error(p.run(), p.expected()), 20 * kLimit<TypeParam>) << name_of(format);
  }
}

TYPED_TEST(CachedAttention, WhatIsBeyondThePositionIsNotRead) {
  for (const KvFormat format : kKvFormats) {
    Problem<TypeParam> p({1, 1, 8, 2, 64, 200}, format, {77});
    const auto want = p.run();
    const std::size_t used = 78 * 2 * 64 * static_cast<std::size_t>(element_bytes(format));
    for (auto* x : {&p.cache.key_bytes(), &p.cache.value_bytes()})
      std::fill(x->begin() + static_cast<std::ptrdiff_t>(used), x->end(), std::uint8_t{0xFF});  // NaN
    for (std::size_t i = 78 * 2; i < p.cache.key_scales().size(); ++i) p.cache.key_scales()[i] = NAN;
    EXPECT_EQ(p.run(), want) << name_of(format);
  }
}

// The sequence under test among others of other lengths, at another place, with more room: the same bits.
TYPED_TEST(CachedAttention, DoesNotDependOnTheBatch) {
  constexpr std::int64_t kHeads = 8, kGroups = 2, kDim = 64, kRow = kGroups * kDim;
  for (const KvFormat format : kKvFormats) {
    const std::int64_t width = element_bytes(format);
    Problem<TypeParam> alone({1, 1, kHeads, kGroups, kDim, 900}, format, {811});
    const auto want = alone.run();
    Problem<TypeParam> batch({3, 1, kHeads, kGroups, kDim, 1200}, format, {3, 811, 1199});
    const KvView from = alone.cache.view(), to = batch.cache.view();
    for (const auto& [a, b] : {std::pair(from.keys, to.keys), std::pair(from.values, to.values)})
      std::memcpy(static_cast<char*>(b) + 1200 * kRow * width, a,
                  static_cast<std::size_t>(900 * kRow * width));
    if (has_scales(format)) {
      std::copy_n(from.key_scales, 900 * kGroups, to.key_scales + 1200 * kGroups);
      std::copy_n(from.value_scales, 900 * kGroups, to.value_scales + 1200 * kGroups);
    }
    std::copy_n(alone.q.data().begin(), kHeads * kDim, batch.q.data().begin() + kHeads * kDim);
    const auto got = batch.run();
    EXPECT_EQ(std::vector(got.begin() + kHeads * kDim, got.begin() + 2 * kHeads * kDim), want)
        << name_of(format);
    alone.options.keys = 812;
    EXPECT_EQ(alone.run(), want) << name_of(format) << " with a smaller bound of the keys";
  }
}

TYPED_TEST(CachedAttention, RowsWithoutATokenAreZero) {
  for (const KvFormat format : kKvFormats) {
    Problem<TypeParam> p({3, 1, 4, 2, 64, 100}, format, {40, -1, 99});
    auto want = p.expected();
    EXPECT_LT(normalized_error(p.run(), want), kLimit<TypeParam>);
    const auto got = p.run();
    for (std::size_t i = 4 * 64; i < 2 * 4 * 64; ++i) EXPECT_EQ(got[i], 0);
  }
}

TYPED_TEST(CachedAttention, AgainWithTheSameScratchIsTheSame) {
  Problem<TypeParam> p({2, 1, 8, 2, 128, 3000}, KvFormat::bf16, {2999, 1500});
  const auto want = p.run();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(p.run(), want);
  Problem<TypeParam> other({1, 3, 4, 2, 64, 50}, KvFormat::bf16, positions_for({1, 3, 4, 2, 64, 50}, 1));
  const auto small = other.run();
  other.scratch.swap(p.scratch);
  EXPECT_EQ(other.run(), small);
  p.scratch.swap(other.scratch);
  EXPECT_EQ(p.run(), want);
}

TYPED_TEST(CachedAttention, SameBitsOnAnyNumberOfThreads) {
  expect_same_bits_on_threads([] {
    Problem<TypeParam> p({2, 1, 8, 2, 64, 3000}, KvFormat::int8, {2999, 1500});
    return p.run();
  });
}

TEST(CachedAttentionErrors, PositionsOutsideTheCache) {
  if (on_gpu()) GTEST_SKIP() << "a GPU takes them for -1";
  for (const std::int32_t bad : {100, -2}) {
    Problem<float> p({1, 1, 4, 2, 64, 100}, KvFormat::f32, {bad});
    EXPECT_NE(message_of<Error>([&] { p.run(); }).find(std::to_string(bad)), std::string::npos);
  }
}

TEST(CachedAttentionWork, ReadsWhatMayBeVisible) {
  const auto work = [](std::int64_t window, std::int64_t keys, KvFormat format) {
    return launched_on_meta([&](Stream& stream) {
      KvView cache;
      cache.format = format;
      cache.batch = 2, cache.capacity = 1000, cache.kv_heads = 2, cache.head_dim = 64;
      cached_attention<bf16>(stream, meta_view<const bf16>({2, 1, 8, 64}), cache,
                             meta_view<const std::int32_t>({2, 1}), meta_view<bf16>({2, 1, 8, 64}),
                             {.scale = 1, .window = window, .keys = keys},
                             meta_view<float>({cached_attention_scratch(2, 1, 8, 2, 64)}));
    });
  };
  const double qo = 2.0 * 2 * 8 * 64 * 2;
  EXPECT_EQ(work(0, 0, KvFormat::bf16).bytes, qo + 2 * 1000 * 2 * 2 * 64 * 2);
  EXPECT_EQ(work(0, 300, KvFormat::fp8).bytes, qo + 2 * 300 * 2 * 2 * (64 + 4));
  EXPECT_EQ(work(0, 300, KvFormat::fp8).flops, 4.0 * 2 * 8 * 64 * 300);
  EXPECT_EQ(work(100, 300, KvFormat::bf16).flops, 4.0 * 2 * 8 * 64 * 100);
}

}  // namespace
}  // namespace ridge::kernels::testing
