#include "kernels/attention_merge.h"

#include "kernels/attention.h"
#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();

// The types of the sum so far, of a part, and of the new sum.
template <class A, class B, class Y>
struct Types {
  using Sum = A;
  using Part = B;
  using Result = Y;
};

template <class Case>
class AttentionMerge : public ::testing::Test {};
using Cases =
    ::testing::Types<Types<float, float, float>, Types<double, double, double>, Types<bf16, bf16, bf16>,
                     Types<bf16, bf16, float>, Types<float, bf16, bf16>, Types<float, bf16, float>>;
TYPED_TEST_SUITE(AttentionMerge, Cases);

const Shape kShapes[] = {{1, 1, 1, 1},  {2, 3, 5, 7},    {1, 33, 2, 64}, {3, 17, 4, 128},
                         {2, 9, 3, 96}, {1, 5, 2, 1000}, {2, 2, 2, 256}};

// [B, H, T] of a tensor [B, T, H, D].
Shape rows_of(const Shape& shape) { return {shape[0], shape[2], shape[1]}; }

struct Expected {
  std::vector<double> y, lse;
};

// By the definition: values and log-sum-exps are small enough for exp to hold them.
template <class A, class B, class C>
Expected merged(const View<A>& a, const View<C>& lse_a, const View<B>& b, const View<C>& lse_b) {
  Expected want;
  for (std::int64_t i = 0; i < lse_a.numel(); ++i)
    want.lse.push_back(std::log(std::exp(get(lse_a, i)) + std::exp(get(lse_b, i))));
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    const std::int64_t row = i / a.dim(3), h = row % a.dim(2), t = row / a.dim(2) % a.dim(1),
                       at = (row / a.dim(2) / a.dim(1) * a.dim(2) + h) * a.dim(1) + t;
    const double ea = std::exp(get(lse_a, at)), eb = std::exp(get(lse_b, at));
    want.y.push_back((get(a, i) * ea + get(b, i) * eb) / (ea + eb));
  }
  return want;
}

template <class Y>
constexpr double merge_tolerance() {
  return std::is_same_v<Y, float> ? 5e-6 : tolerance<Y>();
}

TYPED_TEST(AttentionMerge, IsTheWeightedMeanOfAnyShape) {
  using A = typename TypeParam::Sum;
  using B = typename TypeParam::Part;
  using Y = typename TypeParam::Result;
  using C = acc_t<B>;
  for (const Shape& shape : kShapes) {
    for (const std::int64_t gap : {0, 8, 5}) {  // rows in vectors, also with others between, or neither
      auto a = Array<A>::gapped(shape, gap);
      auto y = Array<Y>::gapped(shape, gap);
      auto b = Array<B>::gapped(shape, gap);
      auto lse_a = Array<C>::gapped(rows_of(shape), 3);
      Array<C> lse_b(rows_of(shape)), lse_y(rows_of(shape));
      a.randomize(1), b.randomize(2), lse_a.randomize(3, -8, 8), lse_b.randomize(4, -8, 8);
      merge_attention<A, B, Y>(test_stream(), a.in(), lse_a.in(), b.in(), lse_b.in(), y.view(), lse_y.view());
      const Expected want = merged(a.in(), lse_a.in(), b.in(), lse_b.in());
      EXPECT_LT(normalized_error(y.values(), want.y), merge_tolerance<Y>()) << to_string(shape);
      EXPECT_LT(normalized_error(lse_y.values(), want.lse), merge_tolerance<C>()) << to_string(shape);
    }
  }
}

TYPED_TEST(AttentionMerge, IsInPlaceTheSameBits) {
  using A = typename TypeParam::Sum;
  using B = typename TypeParam::Part;
  using Y = typename TypeParam::Result;
  using C = acc_t<B>;
  const Shape shape{2, 19, 3, 72};
  Array<A> a(shape);
  Array<B> b(shape);
  Array<Y> y(shape);
  Array<C> lse_a(rows_of(shape)), lse_b(rows_of(shape)), lse_y(rows_of(shape));
  a.randomize(1), b.randomize(2), lse_a.randomize(3, -3, 3), lse_b.randomize(4, -3, 3);
  merge_attention<A, B, Y>(test_stream(), a.in(), lse_a.in(), b.in(), lse_b.in(), y.view(), lse_y.view());
  const auto want = y.values(), want_lse = lse_y.values();
  if constexpr (std::is_same_v<A, Y>) {
    merge_attention<A, B, Y>(test_stream(), a.in(), lse_a.in(), b.in(), lse_b.in(), a.view(), lse_a.view());
    EXPECT_EQ(a.values(), want);
    EXPECT_EQ(lse_a.values(), want_lse);
  } else if constexpr (std::is_same_v<B, Y>) {
    merge_attention<A, B, Y>(test_stream(), a.in(), lse_a.in(), b.in(), lse_b.in(), b.view(), lse_b.view());
    EXPECT_EQ(b.values(), want);
    EXPECT_EQ(lse_b.values(), want_lse);
  }
}

TYPED_TEST(AttentionMerge, APartThatSawNoKeyAddsNothing) {
  using A = typename TypeParam::Sum;
  using B = typename TypeParam::Part;
  using Y = typename TypeParam::Result;
  using C = acc_t<B>;
  const Shape shape{1, 4, 1, 16};  // rows: both see keys, a alone, b alone, none
  Array<A> a(shape);
  Array<B> b(shape);
  Array<Y> y(shape);
  Array<C> lse_a(rows_of(shape)), lse_b(rows_of(shape)), lse_y(rows_of(shape));
  a.randomize(1), b.randomize(2);
  const auto nothing = static_cast<C>(kNothing);
  lse_a.data() = {C(0.5), C(300), nothing, nothing};
  lse_b.data() = {C(0.5), nothing, C(-300), nothing};
  for (std::size_t i = 48; i < 64; ++i) a.data()[i] = A(), b.data()[i] = B();
  merge_attention<A, B, Y>(test_stream(), a.in(), lse_a.in(), b.in(), lse_b.in(), y.view(), lse_y.view());
  const auto got = y.values(), as = a.values(), bs = b.values(), lse = lse_y.values();
  for (std::size_t d = 0; d < 16; ++d) {
    EXPECT_NEAR(got[d], (as[d] + bs[d]) / 2, 2 * merge_tolerance<Y>());
    EXPECT_NEAR(got[16 + d], as[16 + d], 2 * merge_tolerance<Y>());
    EXPECT_NEAR(got[32 + d], bs[32 + d], 2 * merge_tolerance<Y>());
    EXPECT_EQ(got[48 + d], 0);
  }
  EXPECT_NEAR(lse[0], 0.5 + std::log(2.0), 1e-6);
  EXPECT_EQ(lse[1], 300);
  EXPECT_EQ(lse[2], -300);
  EXPECT_EQ(lse[3], kNothing);
}

TYPED_TEST(AttentionMerge, AddsParts) {
  using A = typename TypeParam::Sum;
  using B = typename TypeParam::Part;
  using Y = typename TypeParam::Result;
  for (const std::int64_t gap : {0, 8, 3}) {
    const Shape shape{2, 3, 5, 40};
    auto a = Array<A>::gapped(shape, gap);
    auto y = Array<Y>::gapped(shape, gap);
    auto b = Array<B>::gapped(shape, gap);
    a.randomize(1), b.randomize(2);
    add_parts<A, B, Y>(test_stream(), a.in(), b.in(), y.view());
    const auto as = a.values(), bs = b.values();
    std::vector<double> want;
    for (std::size_t i = 0; i < as.size(); ++i) want.push_back(as[i] + bs[i]);
    EXPECT_LT(normalized_error(y.values(), want), tolerance<Y>());
    if constexpr (std::is_same_v<B, Y>) {
      add_parts<A, B, Y>(test_stream(), a.in(), b.in(), b.view());
      EXPECT_EQ(b.values(), y.values());
    }
  }
}

TEST(AttentionMergeOf, KeysInThreePartsIsAttentionToAll) {
  const Shape q_shape{2, 13, 4, 24}, kv_shape{2, 30, 2, 24};
  Array<double> q(q_shape), k(kv_shape), v(kv_shape), whole(q_shape), o(q_shape), part(q_shape);
  Array<double> lse_whole(rows_of(q_shape)), lse(rows_of(q_shape)), lse_part(rows_of(q_shape));
  q.randomize(1), k.randomize(2), v.randomize(3);
  AttentionOptions options;
  options.causal = false;
  attention<double>(test_stream(), q.in(), k.in(), v.in(), whole.view(), lse_whole.view(), options);
  const auto keys = [](View<const double> x, std::int64_t begin, std::int64_t end) {
    x.data += begin * x.strides[1];
    x.shape[1] = end - begin;
    return x;
  };
  attention<double>(test_stream(), q.in(), keys(k.in(), 0, 7), keys(v.in(), 0, 7), o.view(), lse.view(),
                    options);
  for (const auto& [begin, end] : {std::pair(7, 8), std::pair(8, 30)}) {
    attention<double>(test_stream(), q.in(), keys(k.in(), begin, end), keys(v.in(), begin, end), part.view(),
                      lse_part.view(), options);
    merge_attention<double, double, double>(test_stream(), o.in(), lse.in(), part.in(), lse_part.in(),
                                            o.view(), lse.view());
  }
  EXPECT_LT(normalized_error(o.values(), whole.values()), 1e-13);
  EXPECT_LT(normalized_error(lse.values(), lse_whole.values()), 1e-13);
}

TEST(AttentionMergeOf, SameBitsOnAnyThreads) {
  const Shape shape{2, 301, 4, 16};
  Array<float> a(shape), b(shape), lse_a(rows_of(shape)), lse_b(rows_of(shape));
  a.randomize(1), b.randomize(2), lse_a.randomize(3), lse_b.randomize(4);
  expect_same_bits_on_threads([&] {
    Array<float> y(shape), lse(rows_of(shape));
    merge_attention<float, float, float>(cpu(), a.in(), lse_a.in(), b.in(), lse_b.in(), y.view(), lse.view());
    return y.values();
  });
}

TEST(AttentionMergeWork, EachOperandOnce) {
  const Shape shape{2, 8, 4, 16}, rows{2, 4, 8};
  const auto record = launched_on_meta([&](Stream& s) {
    merge_attention<float, bf16, bf16>(s, meta_view<const float>(shape), meta_view<const float>(rows),
                                       meta_view<const bf16>(shape), meta_view<const float>(rows),
                                       meta_view<bf16>(shape), meta_view<float>(rows));
  });
  EXPECT_STREQ(record.op, "merge_attention");
  EXPECT_EQ(record.bytes, 1024 * (4 + 2 + 2) + 64 * 3 * 4);
  EXPECT_EQ(record.flops, 3 * 1024);
  const auto sum = launched_on_meta([&](Stream& s) {
    add_parts<float, bf16, bf16>(s, meta_view<const float>(shape), meta_view<const bf16>(shape),
                                 meta_view<bf16>(shape));
  });
  EXPECT_EQ(sum.bytes, 1024 * (4 + 2 + 2));
}

TEST(AttentionMergeShapes, UnequalOnesAreErrors) {
  Array<float> a({1, 2, 3, 4}), other({1, 2, 3, 5}), lse({1, 3, 2}), turned({1, 2, 3});
  const auto merge = [&](Array<float>& x, Array<float>& of_x) {
    merge_attention<float, float, float>(test_stream(), a.in(), lse.in(), x.in(), of_x.in(), a.view(),
                                         lse.view());
  };
  EXPECT_THROW(merge(other, lse), Error);
  EXPECT_THROW(merge(a, turned), Error);
  EXPECT_THROW((add_parts<float, float, float>(test_stream(), a.in(), other.in(), a.view())), Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
