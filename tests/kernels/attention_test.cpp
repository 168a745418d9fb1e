#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "core/base/memory.h"
#include "core/base/threads.h"
#include "kernels/attention_cudnn.h"
#include "tests/kernels/attention_reference.h"

namespace ridge::kernels {
namespace {

using reference::Array;
using reference::error_of;
using test::Memory;
using test::on_gpu;
using test::test_stream;
using test::wait_for_device;

struct Case {
  const char* what;
  std::int64_t B, T, S, H, G, D;
  AttentionOptions options = {};
  bool aligned = false;  // rows begin at multiples of 16 bytes
};

AttentionOptions mask(bool causal, std::int64_t window = 0, std::int64_t q_offset = -1) {
  return {1, window, causal, q_offset};
}

template <class T>
struct Example {
  Case c;
  Array<T> q, k, v, grad, o, dq, dk, dv;
  Memory<acc_t<T>> lse;

  // Inputs lie inside wider rows, as the slices of a fused projection do.
  explicit Example(const Case& with, unsigned seed = 1)
      : c(with),
        q(c.B, c.T, c.H, c.D, c.aligned ? 8 : 5),
        k(c.B, c.S, c.G, c.D, c.aligned ? 16 : 3),
        v(c.B, c.S, c.G, c.D, c.aligned ? 24 : 7),
        grad(c.B, c.T, c.H, c.D, c.aligned ? 8 : 2),
        o(c.B, c.T, c.H, c.D, c.aligned ? 16 : 1),
        dq(c.B, c.T, c.H, c.D, 4),
        dk(c.B, c.S, c.G, c.D, 6),
        dv(c.B, c.S, c.G, c.D, 9),
        lse(static_cast<std::size_t>(c.B * c.H * c.T)) {
    c.options.scale = 1.7 / std::sqrt(static_cast<double>(c.D));
    q.randomize(seed);
    k.randomize(seed + 1);
    v.randomize(seed + 2);
    grad.randomize(seed + 3);
    for (Array<T>* output : {&o, &dq, &dk, &dv}) output->randomize(seed + 4, 100);  // must be overwritten
  }
  View<acc_t<T>> lse_view() { return {lse.data(), {c.B, c.H, c.T}}; }
  void forward(bool with_lse = true) {
    attention<T>(test_stream(), q.view(), k.view(), v.view(), o.view(),
                 with_lse ? lse_view() : View<acc_t<T>>(), c.options);
    wait_for_device();
  }
  void backward() {
    attention_backward<T>(test_stream(), grad.view(), q.view(), k.view(), v.view(), o.view(), lse_view(),
                          dq.view(), dk.view(), dv.view(), c.options);
    wait_for_device();
  }
};

template <class T>
double tolerance() {
  return std::is_same_v<T, bf16> ? 1.2e-2 : std::is_same_v<T, float> ? 4e-6 : 1e-13;
}

template <class T>
double lse_error(const Example<T>& run, const reference::Result& expected) {
  double worst = 0;
  for (std::size_t i = 0; i < run.lse.size(); ++i) {
    if (std::isinf(expected.lse[i]) && expected.lse[i] == static_cast<double>(run.lse[i])) continue;
    const double difference = std::abs(static_cast<double>(run.lse[i]) - expected.lse[i]);
    worst = difference <= worst ? worst : std::isnan(difference) ? HUGE_VAL : difference;
  }
  return worst;
}

template <class T>
void expect_matches(const Case& c) {
  Example<T> run(c);
  run.forward();
  run.backward();
  auto expected = reference::attention(run.q, run.k, run.v, run.grad, run.c.options);
  const double bound = tolerance<T>();
  EXPECT_LT(error_of(run.o, expected.o), bound) << "o of " << c.what;
  EXPECT_LT(lse_error(run, expected), 1e-5) << "lse of " << c.what;
  EXPECT_LT(error_of(run.dq, expected.dq), bound) << "dq of " << c.what;
  EXPECT_LT(error_of(run.dk, expected.dk), bound) << "dk of " << c.what;
  EXPECT_LT(error_of(run.dv, expected.dv), bound) << "dv of " << c.what;
}

template <class T>
class Attention : public ::testing::Test {};
using Types = ::testing::Types<float, double, bf16>;
TYPED_TEST_SUITE(Attention, Types);

TYPED_TEST(Attention, CausalAndNot) {
  expect_matches<TypeParam>({"one token", 1, 1, 1, 1, 1, 8, mask(true)});
  expect_matches<TypeParam>({"causal 17", 2, 17, 17, 3, 3, 16, mask(true)});
  expect_matches<TypeParam>({"full 65", 1, 65, 65, 2, 2, 33, mask(false)});
  expect_matches<TypeParam>({"causal 129", 1, 129, 129, 2, 2, 64, mask(true)});
  expect_matches<TypeParam>({"causal 200", 1, 200, 200, 1, 1, 128, mask(true)});
  expect_matches<TypeParam>({"D of 1", 1, 5, 5, 2, 1, 1, mask(true)});
}

TYPED_TEST(Attention, GroupedQueries) {
  expect_matches<TypeParam>({"GQA 4", 2, 33, 33, 8, 2, 16, mask(true)});
  expect_matches<TypeParam>({"MQA", 1, 70, 70, 5, 1, 24, mask(true)});
  expect_matches<TypeParam>({"MQA full", 2, 50, 50, 3, 1, 80, mask(false)});
}

TYPED_TEST(Attention, Windows) {
  for (const std::int64_t window : {1, 2, 7, 63, 64, 65, 100, 1000}) {
    const std::string what = "window " + std::to_string(window);
    expect_matches<TypeParam>({what.c_str(), 1, 131, 131, 2, 1, 8, mask(true, window)});
  }
  expect_matches<TypeParam>({"window with a cache", 2, 9, 150, 4, 2, 16, mask(true, 20)});
}

TYPED_TEST(Attention, FewerQueriesThanKeys) {
  expect_matches<TypeParam>({"offset by S - T", 1, 40, 129, 2, 2, 33, mask(true)});
  expect_matches<TypeParam>({"one query of 65", 2, 1, 65, 4, 4, 64, mask(true)});
  expect_matches<TypeParam>({"two rows", 1, 2, 77, 2, 2, 16, mask(true)});
  expect_matches<TypeParam>({"three rows", 1, 1, 77, 3, 1, 20, mask(true)});
  expect_matches<TypeParam>({"four rows", 1, 2, 77, 4, 2, 128, mask(true, 9)});
  expect_matches<TypeParam>({"seven rows", 1, 7, 70, 2, 2, 40, mask(true)});
  expect_matches<TypeParam>({"eight rows", 2, 2, 66, 8, 2, 33, mask(true, 30)});
  expect_matches<TypeParam>({"nine rows", 1, 3, 66, 6, 2, 16, mask(true)});
  expect_matches<TypeParam>({"too many heads to take together", 1, 4, 20, 33, 33, 8, mask(true)});
  expect_matches<TypeParam>({"cross attention", 2, 20, 33, 2, 1, 16, mask(false)});
}

TYPED_TEST(Attention, OffsetsLeaveSomeQueriesBlind) {
  expect_matches<TypeParam>({"before the keys", 1, 60, 50, 2, 2, 16, mask(true, 0, -20)});
  expect_matches<TypeParam>({"more queries than keys", 1, 60, 50, 2, 1, 16, mask(true)});
  expect_matches<TypeParam>({"window past the keys", 1, 100, 90, 2, 2, 16, mask(true, 30, 50)});
  expect_matches<TypeParam>({"nobody sees a key", 1, 7, 9, 1, 1, 16, mask(true, 4, 100)});
  expect_matches<TypeParam>({"few blind rows", 1, 3, 9, 1, 1, 16, mask(true, 0, -2)});
  expect_matches<TypeParam>({"all keys at once", 1, 10, 9, 1, 1, 16, mask(true, 0, 100)});
}

TYPED_TEST(Attention, LongContext) {
  expect_matches<TypeParam>({"decode, keys cut", 1, 1, 3001, 2, 1, 64, mask(true)});
  expect_matches<TypeParam>({"decode of many heads", 1, 1, 1030, 8, 1, 33, mask(true)});
  expect_matches<TypeParam>({"decode in a window", 2, 1, 2000, 2, 2, 16, mask(true, 1025)});
  expect_matches<TypeParam>({"a few queries, keys cut", 1, 5, 1500, 6, 2, 40, mask(true)});
}

TYPED_TEST(Attention, HeadDims) {
  for (const std::int64_t D : {2, 65, 96, 127, 200, 256}) {
    const std::string what = "D of " + std::to_string(D);
    expect_matches<TypeParam>({what.c_str(), 1, 70, 70, 2, 1, D, mask(true)});
    expect_matches<TypeParam>({what.c_str(), 1, 3, 300, 2, 1, D, mask(true, 100)});
  }
}

TYPED_TEST(Attention, AlignedRows) {
  for (const std::int64_t D : {48, 80, 136, 256}) {
    const std::string what = "aligned, D of " + std::to_string(D);
    expect_matches<TypeParam>({what.c_str(), 2, 65, 130, 4, 2, D, mask(true, 0, 30), true});
    expect_matches<TypeParam>({what.c_str(), 1, 200, 201, 2, 2, D, mask(false), true});
    for (const std::int64_t heads : {1, 3, 7, 20}) {
      expect_matches<TypeParam>({what.c_str(), 2, 1, 500, heads, 1, D, mask(true), true});
    }
  }
}

TYPED_TEST(Attention, PartsOfTheKeys) {
  for (const std::int64_t queries : {2, 8, 9, 70}) {
    const std::string what = std::to_string(queries) + " queries of many keys";
    expect_matches<TypeParam>({what.c_str(), 1, queries, 1700, 4, 2, 40, mask(true), true});
    expect_matches<TypeParam>({what.c_str(), 1, queries, 1700, 2, 2, 24, mask(true, 900)});
  }
  expect_matches<TypeParam>({"parts that some rows do not see", 1, 16, 800, 2, 1, 16, mask(true, 0, 3)});
}

TYPED_TEST(Attention, SameBitsForAnyThreadCount) {
  const int before = thread_count();
  for (const Case& c :
       {Case{"training", 1, 150, 150, 4, 2, 64, mask(true)}, Case{"decode", 1, 1, 1500, 4, 2, 64, mask(true)},
        Case{"many heads", 2, 60, 60, 9, 9, 16, mask(true)}}) {
    std::vector<Example<TypeParam>> runs;
    for (const int threads : {1, 2, 3}) {
      set_thread_count(threads);
      runs.emplace_back(c);
      runs.back().forward();
      runs.back().backward();
    }
    for (const auto array : {&Example<TypeParam>::o, &Example<TypeParam>::dq, &Example<TypeParam>::dk,
                             &Example<TypeParam>::dv}) {
      const auto& first = (runs[0].*array).data;
      for (const int other : {1, 2}) {
        EXPECT_EQ(
            std::memcmp(first.data(), (runs[other].*array).data.data(), first.size() * sizeof(TypeParam)), 0);
      }
    }
    EXPECT_EQ(runs[0].lse, runs[1].lse);
    EXPECT_EQ(runs[0].lse, runs[2].lse);
  }
  set_thread_count(before);
}

TYPED_TEST(Attention, LeavesNeighboursAlone) {
  Example<TypeParam> run({"slices", 1, 20, 20, 2, 1, 33, mask(true)});
  const auto o = run.o, dk = run.dk;
  run.forward();
  run.backward();
  for (std::int64_t t = 0; t < 20; ++t) {
    const auto same = [&](const auto& before, const auto& after, std::int64_t i) {
      return std::memcmp(&before.data[static_cast<std::size_t>(i)], &after.data[static_cast<std::size_t>(i)],
                         sizeof(TypeParam)) == 0;
    };
    EXPECT_TRUE(same(o, run.o, t * run.o.row()) && same(o, run.o, (t + 1) * run.o.row() - 1));
    EXPECT_TRUE(same(dk, run.dk, t * run.dk.row()) && same(dk, run.dk, (t + 1) * run.dk.row() - 1));
  }
}

TYPED_TEST(Attention, HeadsBeforeTokens) {
  Example<TypeParam> run({"dense", 2, 37, 37, 4, 2, 16, mask(true)});
  Array<TypeParam> turned(2, 4, 37, 16);  // [B, H, T, D]
  const View<TypeParam> out(turned.data.data(), {2, 37, 4, 16}, {4 * 37 * 16, 16, 37 * 16, 1});
  attention<TypeParam>(test_stream(), run.q.view(), run.k.view(), run.v.view(), out, {}, run.c.options);
  run.forward(false);
  for (std::int64_t h = 0; h < 4; ++h) {
    EXPECT_EQ(std::memcmp(&out(1, 30, h, 0), &run.o.view()(1, 30, h, 0), 16 * sizeof(TypeParam)), 0);
  }
}

TYPED_TEST(Attention, KeysStoredHeadByHead) {
  for (const std::int64_t queries : {1, 2, 30}) {
    Example<TypeParam> run({"cache", 2, queries, 300, 6, 3, 48, mask(true)});
    run.forward();
    const auto turn = [](Array<TypeParam>& x) {  // [B, S, G, D] values in [B, G, S, D] memory
      Memory<TypeParam> memory(static_cast<std::size_t>(x.B * x.T_ * x.H * x.D));
      const View<TypeParam> view(memory.data(), {x.B, x.T_, x.H, x.D},
                                 {x.H * x.T_ * x.D, x.D, x.T_ * x.D, 1});
      for (std::int64_t i = 0; i < view.numel(); ++i) {
        const std::int64_t d = i % x.D, h = i / x.D % x.H, t = i / x.D / x.H % x.T_, b = i / x.D / x.H / x.T_;
        view(b, t, h, d) = x.view()(b, t, h, d);
      }
      return std::pair(std::move(memory), view);
    };
    const auto expected = run.o;
    const auto k = turn(run.k), v = turn(run.v);
    attention<TypeParam>(test_stream(), run.q.view(), k.second, v.second, run.o.view(), {}, run.c.options);
    wait_for_device();
    for (std::size_t i = 0; i < expected.data.size(); ++i) {
      const auto a = static_cast<acc_t<TypeParam>>(run.o.data[i]),
                 b = static_cast<acc_t<TypeParam>>(expected.data[i]);
      ASSERT_NEAR(a, b, tolerance<TypeParam>()) << queries << " queries, element " << i;
    }
  }
}

TEST(AttentionExtremes, LargeScoresStayFinite) {
  Example<float> run({"sharp", 1, 100, 100, 2, 2, 64, mask(true)});
  for (float& x : run.q.data) x *= 100;
  run.forward();
  run.backward();
  auto expected = reference::attention(run.q, run.k, run.v, run.grad, run.c.options);
  EXPECT_LT(error_of(run.o, expected.o), 1e-3);
  EXPECT_LT(error_of(run.dq, expected.dq), 1e-2);
}

TEST(AttentionExtremes, NaNIsNotHidden) {
  Example<float> run({"nan", 1, 70, 70, 1, 1, 16, mask(true)});
  run.k.view()(0, 40, 0, 3) = NAN;
  run.forward();
  EXPECT_FALSE(std::isnan(run.o.view()(0, 39, 0, 0)));
  EXPECT_TRUE(std::isnan(run.o.view()(0, 40, 0, 0)));
  EXPECT_TRUE(std::isnan(run.o.view()(0, 69, 0, 5)));
}

std::string message_of(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(AttentionErrors, SayWhatIsWrong) {
  Stream meta(Device::meta, "meta");
  const View<float> q(nullptr, {1, 4, 6, 8}), k(nullptr, {1, 4, 4, 8}), narrow(nullptr, {1, 4, 3, 7});
  const View<float> good(nullptr, {1, 4, 3, 8});
  const auto call = [&](View<float> keys, View<float> values, AttentionOptions options) {
    return message_of([&] { attention<float>(meta, q, keys, values, q, {}, options); });
  };
  EXPECT_NE(call(k, k, {}).find("H is a multiple of G"), std::string::npos);
  EXPECT_NE(call(narrow, narrow, {}).find("share B and D"), std::string::npos);
  EXPECT_NE(call(good, k, {}).find("k and v [B, S, G, D]"), std::string::npos);
  EXPECT_NE(call(good, good, mask(false, 3)).find("a window needs a causal mask"), std::string::npos);
  EXPECT_EQ(call(good, good, {}), "no error");
  const View<float> sparse(nullptr, {1, 4, 3, 8}, {96, 24, 8, 2});
  EXPECT_NE(call(sparse, sparse, {}).find("last dim must be dense"), std::string::npos);
}

TEST(AttentionWork, AsByHand) {
  EXPECT_EQ(visible_pairs(4, 4, mask(true)), 10);
  EXPECT_EQ(visible_pairs(4, 4, mask(false)), 16);
  EXPECT_EQ(visible_pairs(2, 6, mask(true)), 5 + 6);
  EXPECT_EQ(visible_pairs(5, 5, mask(true, 2)), 1 + 2 + 2 + 2 + 2);
  EXPECT_EQ(visible_pairs(5, 3, mask(true)), 0 + 0 + 1 + 2 + 3);
  const View<const float> q(nullptr, {2, 2, 6, 8}), k(nullptr, {2, 9, 3, 8});
  const Work forward = attention_work<float>(q, k, true, mask(true, 4));
  EXPECT_DOUBLE_EQ(forward.flops, 4.0 * 8 * (4 + 4) * 2 * 6);
  EXPECT_DOUBLE_EQ(forward.bytes, 4 * (2 * 192 + 2 * 2 * 5 * 3 * 8 + 2 * 2 * 6));  // 5 keys are seen
  const Work backward = attention_backward_work<float>(q, k, mask(true, 4));
  EXPECT_DOUBLE_EQ(backward.flops, 2.5 * forward.flops);
  EXPECT_DOUBLE_EQ(backward.bytes, 4 * (4 * 192 + 2 * 2 * 5 * 3 * 8 + 2 * 432 + 2 * 2 * 6));
}

TEST(AttentionWork, IsWhatTheLaunchStates) {
  Stream meta(Device::meta, "meta");
  meta.meta_ceilings = {1, 1e30, 1e30};
  const View<float> x(nullptr, {1, 64, 4, 32}), lse(nullptr, {1, 4, 64});
  attention<float>(meta, x, x, x, x, lse, {});
  EXPECT_DOUBLE_EQ(meta.virtual_seconds, 4.0 * 32 * 4 * (64 * 65 / 2));
  meta.virtual_seconds = 0;
  attention_backward<float>(meta, x, x, x, x, x, lse, x, x, x, {});
  EXPECT_DOUBLE_EQ(meta.virtual_seconds, 10.0 * 32 * 4 * (64 * 65 / 2));
}

}  // namespace
}  // namespace ridge::kernels
