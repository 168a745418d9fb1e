// Against rotation and rounding by their definitions, in f64.
#include "kernels/kv_cache.h"

#include "core/base/error.h"
#include "kernels/rotary.h"
#include "tests/kernels/kv_test.h"

namespace ridge::kernels::testing {
namespace {

struct Shapes {
  std::int64_t batch, tokens, heads, kv_heads, dim, capacity, gap;
};

template <class T>
struct Append {
  Shapes n;
  Cache cache;
  QkvHeads heads{n.heads, n.kv_heads, n.dim};
  Array<T> qkv;
  Array<float> cos, sin;
  Memory<std::int32_t> positions;

  Append(const Shapes& s, KvFormat format, std::vector<std::int32_t> at)
      : n(s),
        cache(format, s.batch, s.capacity, s.kv_heads, s.dim),
        qkv(Array<T>::gapped({s.batch, s.tokens, heads.width()}, s.gap)),
        cos({s.capacity, s.dim / 2}),
        sin({s.capacity, s.dim / 2}),
        positions(at.begin(), at.end()) {
    qkv.randomize(1);
    rotary_table(rotary_inv_freq(1e4, s.dim, {}, 4096, 4096), 1, 0, cos.view(), sin.view());
  }
  void run() {
    rotary_append<T>(test_stream(), qkv.view(), heads, cos.in(), sin.in(),
                     View<const std::int32_t>(positions.data(), {n.batch, n.tokens}), cache.view());
    wait_for_device();
  }
  std::int32_t position(std::int64_t b, std::int64_t t) const {
    return positions[static_cast<std::size_t>(b * n.tokens + t)];
  }
  // Element d of head h of all H + 2 G, rotated where it should be; before rounding.
  double wanted(const std::vector<double>& before, std::int64_t b, std::int64_t t, std::int64_t h,
                std::int64_t d) const {
    const auto at = [&](std::int64_t e) {
      return before[static_cast<std::size_t>((b * n.tokens + t) * heads.width() + h * n.dim + e)];
    };
    if (h >= n.heads + n.kv_heads || position(b, t) < 0) return at(d);
    const std::int64_t half = n.dim / 2, row = position(b, t) * half + d % half;
    const double c = get(cos.in(), row), s = get(sin.in(), row);
    return d < half ? at(d) * c - at(d + half) * s : at(d) * c + at(d - half) * s;
  }
};

template <class T>
class KvCacheAppend : public ::testing::Test {};
using Types = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(KvCacheAppend, Types);

const Shapes kShapes[] = {{1, 1, 4, 4, 64, 9, 0},  {3, 1, 8, 2, 128, 40, 8}, {2, 5, 7, 1, 64, 20, 5},
                          {2, 3, 6, 3, 20, 11, 1}, {1, 2, 3, 1, 6, 8, 0},    {1, 33, 14, 2, 96, 64, 8},
                          {2, 1, 5, 5, 256, 7, 0}, {1, 1, 2, 2, 2, 3, 0}};

std::vector<std::int32_t> positions_for(const Shapes& s) {
  std::vector<std::int32_t> at;
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t t = 0; t < s.tokens; ++t)
      at.push_back(b == 1 && t == 0 ? -1 : static_cast<std::int32_t>((3 * b + 1 + t) % s.capacity));
  }
  return at;
}

// Half a step of the format at x, of a row with this absmax; `T` rounds first.
double step_at(KvFormat format, double x, double absmax) {
  const auto binade = [](double v) {
    return std::exp2(std::floor(std::log2(std::max(std::fabs(v), 1e-30))));
  };
  switch (format) {
    case KvFormat::f32:
      return binade(x) * 0x1p-24;
    case KvFormat::bf16:
      return binade(x) * 0x1p-8;
    case KvFormat::fp8:
      return absmax / 448 * std::max(binade(x / absmax * 448) * 0x1p-4, 0x1p-10) * 1.001;
    case KvFormat::int8:
      return absmax / 127 / 2 * 1.001;
  }
  return 0;
}

template <class T>
double rounding(double x) {
  return std::fabs(x) * (std::is_same_v<T, bf16> ? 0x1p-8 : 0x1p-22) + 1e-6;
}

// Head h of token t: q in qkv, k and v in the cache.
template <class T>
void check_head(const Append<T>& a, KvFormat format, const std::vector<double>& before,
                const std::vector<double>& after, std::int64_t b, std::int64_t t, std::int64_t h) {
  const Shapes& s = a.n;
  double absmax = 0;
  for (std::int64_t d = 0; d < s.dim; ++d) absmax = std::max(absmax, std::fabs(a.wanted(before, b, t, h, d)));
  const std::int64_t g = (h - s.heads) % s.kv_heads, p = a.position(b, t);
  for (std::int64_t d = 0; d < s.dim; ++d) {
    const double want = a.wanted(before, b, t, h, d);
    const auto i = static_cast<std::size_t>((b * s.tokens + t) * a.heads.width() + h * s.dim + d);
    if (h < s.heads) {
      ASSERT_NEAR(after[i], want, rounding<T>(want)) << "q";
      continue;
    }
    ASSERT_EQ(after[i], before[i]) << "k and v of qkv stay";
    if (p < 0) continue;
    const double kept = h < s.heads + s.kv_heads ? a.cache.key(b, p, g, d) : a.cache.value(b, p, g, d);
    ASSERT_NEAR(kept, want, step_at(format, want, absmax) + 1.1 * rounding<T>(absmax));
  }
}

TYPED_TEST(KvCacheAppend, RotatesAndKeepsWithinHalfAStep) {
  for (const Shapes& s : kShapes) {
    for (const KvFormat format : kKvFormats) {
      SCOPED_TRACE(std::string(name_of(format)) + " D " + std::to_string(s.dim));
      Append<TypeParam> a(s, format, positions_for(s));
      const auto before = a.qkv.values();
      a.run();
      const auto after = a.qkv.values();
      const std::int64_t heads = s.heads + 2 * s.kv_heads;
      for (std::int64_t i = 0; i < s.batch * s.tokens * heads; ++i)
        check_head(a, format, before, after, i / heads / s.tokens, i / heads % s.tokens, i % heads);
    }
  }
}

TYPED_TEST(KvCacheAppend, WritesNothingElse) {
  for (const KvFormat format : kKvFormats) {
    Append<TypeParam> a({2, 2, 4, 2, 64, 6, 0}, format, {3, -1, -1, 5});
    const auto keys = a.cache.key_bytes(), values = a.cache.value_bytes();
    const auto scales = a.cache.key_scales();
    a.run();
    const std::int64_t row = 2 * 64 * element_bytes(format);
    for (std::int64_t i = 0; i < 2 * 6; ++i) {
      const bool written = i == 3 || i == 6 + 5;
      const auto same = [&](const auto& x, const auto& y, std::int64_t width) {
        return std::equal(x.begin() + i * width, x.begin() + (i + 1) * width, y.begin() + i * width);
      };
      EXPECT_EQ(same(keys, a.cache.key_bytes(), row), !written) << i;
      EXPECT_EQ(same(values, a.cache.value_bytes(), row), !written) << i;
      if (has_scales(format)) {
        EXPECT_EQ(same(scales, a.cache.key_scales(), 2), !written) << i;
      }
    }
  }
}

TYPED_TEST(KvCacheAppend, ZerosStayZeroAndDamageStaysVisible) {
  for (const KvFormat format : kKvFormats) {
    Append<TypeParam> a({3, 1, 2, 1, 64, 4, 0}, format, {2, 2, 2});
    auto qkv = a.qkv.view();
    for (std::int64_t i = 0; i < a.heads.width(); ++i) qkv(0, 0, i) = TypeParam(0.0f);
    qkv(1, 0, 2 * 64 + 64 + 5) = TypeParam(NAN);
    qkv(2, 0, 2 * 64 + 64 + 5) = TypeParam(std::numeric_limits<float>::infinity());
    a.run();
    for (std::int64_t d = 0; d < 64; ++d) EXPECT_EQ(a.cache.value(0, 2, 0, d), 0);
    EXPECT_TRUE(std::isnan(a.cache.value(1, 2, 0, 5))) << name_of(format);
    EXPECT_FALSE(std::isfinite(a.cache.value(2, 2, 0, 5))) << name_of(format);
  }
}

TEST(KvCacheCodes, AreTheScaledValuesRounded) {
  Append<float> a({1, 1, 1, 1, 64, 1, 0}, KvFormat::int8, {0});
  a.run();
  const std::vector<double> before = a.qkv.values();
  double absmax = 0;
  for (std::int64_t d = 0; d < 64; ++d)
    absmax = std::max(absmax, std::fabs(before[128 + static_cast<std::size_t>(d)]));
  EXPECT_EQ(a.cache.value_scales()[0], static_cast<float>(absmax) / 127.0f);
  for (std::size_t d = 0; d < 64; ++d) {
    const double x = before[128 + d] / static_cast<double>(a.cache.value_scales()[0]);
    EXPECT_NEAR(static_cast<std::int8_t>(a.cache.value_bytes()[d]), x, 0.50001);
  }
}

TEST(KvCacheErrors, PositionsAndShapes) {
  if (!on_gpu()) {
    for (const std::int32_t bad : {6, -2}) {
      Append<float> a({1, 1, 2, 1, 8, 6, 0}, KvFormat::f32, {bad});
      EXPECT_NE(message_of<Error>([&] { a.run(); }).find(std::to_string(bad)), std::string::npos);
    }
  }
  Append<float> a({1, 1, 2, 1, 8, 6, 0}, KvFormat::f32, {0});
  a.heads.heads = 3;
  EXPECT_NE(message_of<Error>([&] { a.run(); }).find("(H + 2 G) D"), std::string::npos);
}

TEST(KvCacheFormats, HaveNamesAndSizes) {
  for (const KvFormat format : kKvFormats) EXPECT_EQ(parse_kv_format(name_of(format)), format);
  EXPECT_NE(message_of<UserError>([] { parse_kv_format("fp4"); }).find("'fp4'"), std::string::npos);
  EXPECT_EQ(kv_bytes(KvFormat::bf16, 8, 128), 4096);
  EXPECT_EQ(kv_bytes(KvFormat::f32, 8, 128), 8192);
  EXPECT_EQ(kv_bytes(KvFormat::fp8, 8, 128), 2 * 8 * 132);
}

TEST(KvCacheWork, CountsRowsOnce) {
  const auto record = launched_on_meta([](Stream& stream) {
    KvView cache;
    cache.format = KvFormat::bf16;
    cache.batch = 2, cache.capacity = 100, cache.kv_heads = 2, cache.head_dim = 64;
    rotary_append<bf16>(stream, meta_view<bf16>({2, 3, 12 * 64}), {8, 2, 64},
                        meta_view<const float>({100, 32}), meta_view<const float>({100, 32}),
                        meta_view<const std::int32_t>({2, 3}), cache);
  });
  EXPECT_EQ(record.bytes, 6.0 * (12 * 64 * 2 + 8 * 64 * 2 + 4 * 64 * 2 + 64 * 4 + 4));
}

}  // namespace
}  // namespace ridge::kernels::testing
