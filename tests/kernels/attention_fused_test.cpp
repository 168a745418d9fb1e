// cuDNN's attention against the reference, on views of one packed projection in the device's own memory. On
// the CPU the same shapes run through the CPU's kernels.
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "core/base/memory.h"
#include "kernels/attention.h"
#include "kernels/attention_cudnn.h"
#include "kernels/attention_problem.h"
#include "tests/kernels/attention_reference.h"

namespace ridge::kernels {
namespace {

using reference::Array;
using reference::error_of;
using test::on_gpu;
using test::test_stream;
using test::wait_for_device;

struct Case {
  const char* what;
  std::int64_t B, T, H, G, D;
  AttentionOptions options = {};
};

AttentionOptions mask(bool causal, std::int64_t window = 0) { return {1, window, causal, -1}; }

void move_bytes(void* to, const void* from, std::int64_t bytes) {
  if (on_gpu()) {
    ridge::cuda::copy(to, from, bytes, test_stream());
    wait_for_device();
  } else {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
}

// [B, T, N, D] in the device's memory.
struct OnDevice {
  std::int64_t B, T, N, D;
  Storage memory{test::test_device(), B* T* N* D* static_cast<std::int64_t>(sizeof(bf16))};

  View<bf16> heads(std::int64_t first, std::int64_t count) const {
    return {static_cast<bf16*>(memory.data()) + first * D, {B, T, count, D}, {T * N * D, N * D, D, 1}};
  }
  std::int64_t bytes() const { return B * T * N * D * static_cast<std::int64_t>(sizeof(bf16)); }
  Array<bf16> read(std::int64_t first, std::int64_t count) const {
    Array<bf16> all(B, T, N, D), part(B, T, count, D);
    move_bytes(all.data.data(), memory.data(), bytes());
    for (std::int64_t i = 0; i < B * T; ++i) {
      std::memcpy(part.data.data() + i * count * D, all.data.data() + (i * N + first) * D,
                  static_cast<std::size_t>(count * D) * sizeof(bf16));
    }
    return part;
  }
  void randomize(unsigned seed) {
    Array<bf16> all(B, T, N, D);
    all.randomize(seed);
    move_bytes(memory.data(), all.data.data(), bytes());
  }
};

struct Packed {
  Case c;
  OnDevice qkv{c.B, c.T, c.H + 2 * c.G, c.D}, d_qkv{c.B, c.T, c.H + 2 * c.G, c.D}, o{c.B, c.T, c.H, c.D},
      grad{c.B, c.T, c.H, c.D};
  Storage lse{test::test_device(), c.B* c.H* c.T* static_cast<std::int64_t>(sizeof(float))};

  explicit Packed(const Case& with) : c(with) {
    c.options.scale = 1.7 / std::sqrt(static_cast<double>(c.D));
    qkv.randomize(1);
    grad.randomize(2);
    o.randomize(3);  // must be overwritten
    d_qkv.randomize(4);
  }
  View<float> lse_view() const { return {static_cast<float*>(lse.data()), {c.B, c.H, c.T}}; }
  View<bf16> q() const { return qkv.heads(0, c.H); }
  View<bf16> k() const { return qkv.heads(c.H, c.G); }
  View<bf16> v() const { return qkv.heads(c.H + c.G, c.G); }
  void forward(bool with_lse = true) {
    attention<bf16>(test_stream(), q(), k(), v(), o.heads(0, c.H), with_lse ? lse_view() : View<float>(),
                    c.options);
  }
  void backward() {
    attention_backward<bf16>(test_stream(), grad.heads(0, c.H), q(), k(), v(), o.heads(0, c.H), lse_view(),
                             d_qkv.heads(0, c.H), d_qkv.heads(c.H, c.G), d_qkv.heads(c.H + c.G, c.G),
                             c.options);
  }
  std::vector<float> lse_values() const {
    std::vector<float> values(static_cast<std::size_t>(c.B * c.H * c.T));
    move_bytes(values.data(), lse.data(), static_cast<std::int64_t>(values.size() * sizeof(float)));
    return values;
  }
};

bool cudnn_serves() { return on_gpu() && cuda::fused_available(); }

void expect_served(const cuda::FusedReport& before, std::int64_t calls, const char* what) {
  const cuda::FusedReport now = cuda::fused_report();
  if (!cudnn_serves()) return;
  EXPECT_EQ(now.served - before.served, calls) << what << ": " << now.last_refusal;
  EXPECT_EQ(now.over_planned, before.over_planned) << what << ": cuDNN takes " << now.workspace << " bytes";
}

double lse_error(const Packed& run, const reference::Result& expected) {
  const std::vector<float> lse = run.lse_values();
  double worst = 0;
  for (std::size_t i = 0; i < lse.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(lse[i]) - expected.lse[i]));
  return worst;
}

void expect_matches(const Case& c) {
  const cuda::FusedReport before = cuda::fused_report();
  Packed run(c);
  run.forward();
  run.backward();
  wait_for_device();
  expect_served(before, 2, c.what);
  Array<bf16> q = run.qkv.read(0, c.H), k = run.qkv.read(c.H, c.G), v = run.qkv.read(c.H + c.G, c.G),
              grad = run.grad.read(0, c.H);
  auto expected = reference::attention(q, k, v, grad, run.c.options);
  Array<bf16> o = run.o.read(0, c.H), dq = run.d_qkv.read(0, c.H), dk = run.d_qkv.read(c.H, c.G),
              dv = run.d_qkv.read(c.H + c.G, c.G);
  constexpr double kBound = 1.2e-2;
  EXPECT_LT(error_of(o, expected.o), kBound) << "o of " << c.what;
  EXPECT_LT(lse_error(run, expected), 1e-3) << "lse of " << c.what;
  EXPECT_LT(error_of(dq, expected.dq), kBound) << "dq of " << c.what;
  EXPECT_LT(error_of(dk, expected.dk), kBound) << "dk of " << c.what;
  EXPECT_LT(error_of(dv, expected.dv), kBound) << "dv of " << c.what;
}

TEST(FusedAttention, CausalAndNot) {
  expect_matches({"causal 128", 2, 128, 4, 4, 64, mask(true)});
  expect_matches({"causal 256, D of 128", 1, 256, 2, 2, 128, mask(true)});
  expect_matches({"full 192", 2, 192, 2, 2, 64, mask(false)});
  expect_matches({"a length of 64", 1, 64, 2, 2, 128, mask(true)});
}

TEST(FusedAttention, OddLengths) {
  expect_matches({"causal 129", 1, 129, 3, 3, 64, mask(true)});
  expect_matches({"causal 200", 2, 200, 3, 1, 128, mask(true)});
  expect_matches({"causal 299", 1, 299, 2, 1, 128, mask(true)});
  expect_matches({"full 131", 1, 131, 5, 1, 64, mask(false)});
}

TEST(FusedAttention, GroupedQueries) {
  expect_matches({"GQA 2", 2, 130, 4, 2, 64, mask(true)});
  expect_matches({"GQA 4", 1, 256, 8, 2, 128, mask(true)});
  expect_matches({"MQA", 2, 160, 5, 1, 64, mask(true)});
}

TEST(FusedAttention, Windows) {
  for (const std::int64_t window : {1, 2, 63, 64, 65, 100, 128, 199, 1000}) {
    const std::string what = "window " + std::to_string(window);
    expect_matches({what.c_str(), 1, 200, 4, 2, 64, mask(true, window)});
  }
  expect_matches({"window, D of 128", 2, 300, 4, 2, 128, mask(true, 77)});
}

TEST(FusedAttention, OtherHeadDims) {
  expect_matches({"D of 96", 1, 160, 4, 2, 96, mask(true)});
  expect_matches({"D of 256", 1, 150, 4, 2, 256, mask(true)});
  expect_matches({"D of 256 in a window", 1, 150, 2, 2, 256, mask(true, 40)});
}

// T queries that see all of S keys, in views of longer rows: a step of ring attention.
void expect_rectangle(const char* what, std::int64_t B, std::int64_t T, std::int64_t S, std::int64_t H,
                      std::int64_t G, std::int64_t D) {
  const cuda::FusedReport before = cuda::fused_report();
  OnDevice q{B, T, H + 1, D}, kv{B, S, 2 * G, D}, grad{B, T, H, D}, o{B, T, H, D}, dq{B, T, H, D},
      dkv{B, S, 2 * G, D};
  q.randomize(1), kv.randomize(2), grad.randomize(3);
  const Storage lse(test::test_device(), B * H * T * static_cast<std::int64_t>(sizeof(float)));
  const View<float> lse_BHT(static_cast<float*>(lse.data()), {B, H, T});
  AttentionOptions options = mask(false);
  options.scale = 1.7 / std::sqrt(static_cast<double>(D));
  attention<bf16>(test_stream(), q.heads(1, H), kv.heads(0, G), kv.heads(G, G), o.heads(0, H), lse_BHT,
                  options);
  attention_backward<bf16>(test_stream(), grad.heads(0, H), q.heads(1, H), kv.heads(0, G), kv.heads(G, G),
                           o.heads(0, H), lse_BHT, dq.heads(0, H), dkv.heads(0, G), dkv.heads(G, G), options);
  wait_for_device();
  expect_served(before, 2, what);
  Array<bf16> q_read = q.read(1, H), k = kv.read(0, G), v = kv.read(G, G), grad_read = grad.read(0, H);
  auto expected = reference::attention(q_read, k, v, grad_read, options);
  Array<bf16> got[] = {o.read(0, H), dq.read(0, H), dkv.read(0, G), dkv.read(G, G)};
  Array<double>* want[] = {&expected.o, &expected.dq, &expected.dk, &expected.dv};
  for (int i = 0; i < 4; ++i)
    EXPECT_LT(error_of(got[i], *want[i]), 1.2e-2) << "result " << i << " of " << what;
}

TEST(FusedAttention, MoreOrFewerKeysThanQueriesWithoutAMask) {
  expect_rectangle("half of the keys", 2, 256, 128, 4, 2, 64);
  expect_rectangle("half of the queries", 2, 128, 256, 4, 4, 128);
  expect_rectangle("odd lengths", 1, 130, 67, 6, 2, 64);
  expect_rectangle("odd lengths the other way", 3, 65, 200, 2, 1, 128);
}

TEST(FusedAttention, TheSameWithoutLse) {
  for (const std::int64_t T : {200, 256}) {  // without lse an odd length goes to our own kernel
    Packed run({"with", 1, T, 4, 2, 64, mask(true)});
    run.forward();
    wait_for_device();
    const Array<bf16> with = run.o.read(0, 4);
    run.o.randomize(9);
    run.forward(false);
    wait_for_device();
    const Array<bf16> without = run.o.read(0, 4);
    for (std::size_t i = 0; i < with.data.size(); ++i)
      ASSERT_NEAR(static_cast<float>(with.data[i]), static_cast<float>(without.data[i]), 0.03)
          << T << ", " << i;
  }
}

TEST(FusedAttention, SameBitsAgain) {
  Packed run({"twice", 2, 300, 8, 2, 128, mask(true)});
  run.forward();
  run.backward();
  wait_for_device();
  const Array<bf16> first = run.d_qkv.read(0, 12);
  for (int again = 0; again < 5; ++again) {
    run.d_qkv.randomize(5);
    run.backward();
    wait_for_device();
    const Array<bf16> other = run.d_qkv.read(0, 12);
    EXPECT_EQ(std::memcmp(first.data.data(), other.data.data(), first.data.size() * sizeof(bf16)), 0);
  }
}

// One key-value head of one batch entry at a time, against all in the calls that the workspace is cut for.
void expect_cut_keeps_bits(const Case& c) {
  Packed run(c);
  run.forward();
  run.backward();
  wait_for_device();
  const std::int64_t N = c.H + 2 * c.G, share = c.H / c.G;
  const Array<bf16> whole = run.d_qkv.read(0, N);
  run.d_qkv.randomize(5);
  for (std::int64_t b = 0; b < c.B; ++b) {
    for (std::int64_t g = 0; g < c.G; ++g) {
      const auto one = [&](View<bf16> x, std::int64_t heads) {
        x.data += b * x.strides[0] + g * heads * x.strides[2];
        x.shape = {1, c.T, heads, c.D};
        return x;
      };
      const View<const float> lse(run.lse_view().data + (b * c.H + g * share) * c.T, {1, share, c.T});
      attention_backward<bf16>(test_stream(), one(run.grad.heads(0, c.H), share), one(run.q(), share),
                               one(run.k(), 1), one(run.v(), 1), one(run.o.heads(0, c.H), share), lse,
                               one(run.d_qkv.heads(0, c.H), share), one(run.d_qkv.heads(c.H, c.G), 1),
                               one(run.d_qkv.heads(c.H + c.G, c.G), 1), run.c.options);
    }
  }
  wait_for_device();
  const Array<bf16> pieces = run.d_qkv.read(0, N);
  EXPECT_EQ(std::memcmp(whole.data.data(), pieces.data.data(), whole.data.size() * sizeof(bf16)), 0)
      << c.what;
}

TEST(FusedAttention, CutsKeepTheBits) {
  if (!cudnn_serves()) GTEST_SKIP() << "cuDNN's own";
  expect_cut_keeps_bits({"by batch entries", 5, 4096, 8, 2, 64, mask(true)});
  expect_cut_keeps_bits({"by key-value heads", 1, 4096, 40, 5, 64, mask(true)});
}

using attention_detail::fused_backward_cut;
using attention_detail::fused_fits;
using attention_detail::Problem;

TEST(FusedCut, IsWithinTheBoundAndWhole) {
  const auto cut_of = [](std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t G, std::int64_t D) {
    return fused_backward_cut(Problem{B, T, T, H, G, D, mask(true)});
  };
  // As cuDNN 9.19 says on an H200.
  EXPECT_EQ(cut_of(2, 2048, 16, 4, 128).bytes, 302252288);
  EXPECT_EQ(cut_of(1, 129, 4, 2, 64).bytes, 527632);
  EXPECT_EQ(cut_of(3, 65, 5, 5, 64).bytes, 495676);
  AttentionOptions any_order = mask(true);
  any_order.deterministic = false;
  EXPECT_EQ(fused_backward_cut(Problem{2, 2048, 2048, 16, 4, 128, any_order}).bytes, 67371264);
  const auto batches = cut_of(8, 2048, 16, 8, 128);
  EXPECT_EQ(batches.batch, 4);
  EXPECT_EQ(batches.groups, 8);
  const auto heads = cut_of(4, 8192, 32, 8, 128);
  EXPECT_EQ(heads.batch, 1);
  EXPECT_EQ(heads.groups, 1);
  EXPECT_EQ(heads.bytes, 553779456);
  EXPECT_EQ(cut_of(1, 1 << 17, 32, 8, 128).batch, 0);
}

TEST(FusedCut, TakesWhatCudnnCan) {
  Problem p{2, 128, 128, 4, 2, 64, mask(true)};
  p.options.q_offset = 0;
  const View<const bf16> good(nullptr, {2, 128, 4, 64}, {128 * 512, 512, 64, 1});
  const View<const bf16> odd(nullptr, {2, 128, 4, 64}, {128 * 260, 260, 64, 1});
  const View<const float> other(nullptr, {2, 128, 4, 64});
  EXPECT_TRUE(fused_fits<bf16>(p, {good, good}));
  EXPECT_FALSE(fused_fits<bf16>(p, {good, odd}));
  EXPECT_FALSE(fused_fits<float>(p, {other}));
  Problem cached = p, short_one = p, narrow = p;
  cached.keys = 256;
  short_one.queries = short_one.keys = 32;
  narrow.head_dim = 80;
  EXPECT_FALSE(fused_fits<bf16>(cached, {good}));
  cached.options.causal = false;
  EXPECT_TRUE(fused_fits<bf16>(cached, {good}));
  cached.keys = 32;
  EXPECT_FALSE(fused_fits<bf16>(cached, {good}));
  EXPECT_FALSE(fused_fits<bf16>(short_one, {good}));
  EXPECT_FALSE(fused_fits<bf16>(narrow, {good}));
}

}  // namespace
}  // namespace ridge::kernels
