#include "parallel/context_parallel.h"

#include <set>

#include "core/base/error.h"
#include "parallel/context_benchmark.h"
#include "parallel/ring_attention.h"
#include "tests/parallel/context_attention.h"

namespace ridge::parallel {
namespace {

using test::ContextCase;
using test::expect_as_on_one_rank;
using test::PartResult;
using test::run_part;
using test::same_bits;
using test::WholeAttention;

template <class E, class Run>
std::string message_of(const Run& run) {
  try {
    run();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "no exception";
  return {};
}

TEST(Zigzag, RanksHoldEveryPositionOnceAndSeeEquallyMuch) {
  for (const int cp : {1, 2, 3, 4, 8}) {
    const std::int64_t T = 48;
    std::set<std::int64_t> held;
    for (int rank = 0; rank < cp; ++rank) {
      std::int64_t tokens = 0, pairs = 0;
      for (const auto& [begin, end] : zigzag_ranges(T, cp, rank)) {
        for (std::int64_t t = begin; t < end; ++t) {
          EXPECT_TRUE(held.insert(t).second) << "position " << t;
          pairs += t + 1;
          ++tokens;
        }
      }
      EXPECT_EQ(tokens, T / cp);
      EXPECT_EQ(pairs, T * (T + 1) / 2 / cp);
    }
    EXPECT_EQ(held.size(), 48u);
  }
}

TEST(Zigzag, PartsOfABatchAreItsTokensInTheOrderOfTheRanges) {
  std::vector<std::int32_t> ids(2 * 12);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
  const Tensor batch = Tensor::from(ids, {2, 12});
  const Tensor part = zigzag_part(batch, 3, 1);
  ASSERT_EQ(part.shape(), Shape({2, 4}));
  const std::vector<std::int32_t> want{2, 3, 8, 9, 14, 15, 20, 21};
  EXPECT_TRUE(std::equal(want.begin(), want.end(), part.span<std::int32_t>().begin()));
  EXPECT_TRUE(same_bits(zigzag_part(batch, 1, 0), batch));
}

TEST(Zigzag, LengthsThatCannotBeCutAreUserErrors) {
  const auto message = message_of<UserError>([] { check_context(1000, 16); });
  EXPECT_NE(message.find("1000"), std::string::npos) << message;
  EXPECT_NE(message.find("multiple of 32"), std::string::npos) << message;
  EXPECT_THROW(check_context(0, 2), UserError);
  EXPECT_THROW(check_context(8, 0), UserError);
  EXPECT_THROW(zigzag_ranges(10, 4, 0), UserError);
  EXPECT_THROW(zigzag_ranges(16, 4, 4), Error);
  EXPECT_NO_THROW(check_context(7, 1));
  EXPECT_NO_THROW(check_context(1024, 16));
}

TEST(ContextKinds, AreNamedAndCheckHeads) {
  EXPECT_EQ(parse_context_kind("ring"), ContextKind::ring);
  EXPECT_EQ(parse_context_kind("ulysses"), ContextKind::ulysses);
  EXPECT_NE(message_of<UserError>([] { parse_context_kind("star"); }).find("star"), std::string::npos);
  EXPECT_NO_THROW(check_context_heads(ContextKind::ring, 3, 1, 8));
  EXPECT_NO_THROW(check_context_heads(ContextKind::ulysses, 8, 4, 4));
  EXPECT_NO_THROW(check_context_heads(ContextKind::ulysses, 8, 2, 4));
  EXPECT_THROW(check_context_heads(ContextKind::ulysses, 6, 2, 4), UserError);
  EXPECT_THROW(check_context_heads(ContextKind::ulysses, 12, 3, 4), UserError);
}

// The global position of a rank's token.
std::int64_t position(std::int64_t tokens, int cp, int rank, std::int64_t t) {
  const auto ranges = zigzag_ranges(tokens * cp, cp, rank);
  return t < tokens / 2 ? ranges[0].first + t : ranges[1].first + t - tokens / 2;
}

// How often each (query, key) of two ranks is visible in the blocks between them.
std::vector<int> seen_in_blocks(std::int64_t tokens, int cp, int rank, int owner, std::int64_t window) {
  kernels::AttentionOptions options;
  options.window = window;
  std::vector<int> seen(static_cast<std::size_t>(tokens * tokens));
  for (const RingBlock& b : ring_blocks(tokens, cp, rank, owner, options)) {
    for (std::int64_t q = b.q_begin; q < b.q_end; ++q) {
      for (std::int64_t k = b.k_begin; k < b.k_end; ++k) {
        const std::int64_t i = b.options.q_offset + q - b.q_begin, j = k - b.k_begin;
        const bool visible =
            !b.options.causal || (j <= i && (b.options.window == 0 || j > i - b.options.window));
        seen[static_cast<std::size_t>(q * tokens + k)] += visible ? 1 : 0;
      }
    }
  }
  return seen;
}

TEST(RingBlocks, ShowEveryVisiblePairOnce) {
  const std::int64_t tokens = 6;
  for (const int cp : {2, 3, 4}) {
    for (const std::int64_t window : {0, 1, 2, 3, 4, 5, 8, 13, 23, 24, 100}) {
      for (int rank = 0; rank < cp; ++rank) {
        for (int owner = 0; owner < cp; ++owner) {
          const auto seen = seen_in_blocks(tokens, cp, rank, owner, window);
          for (std::int64_t q = 0; q < tokens; ++q) {
            for (std::int64_t k = 0; k < tokens; ++k) {
              const std::int64_t i = position(tokens, cp, rank, q), j = position(tokens, cp, owner, k);
              const int want = j <= i && (window == 0 || j > i - window) ? 1 : 0;
              ASSERT_EQ(seen[static_cast<std::size_t>(q * tokens + k)], want)
                  << "query " << i << ", key " << j << ", window " << window << ", " << cp << " ranks";
            }
          }
        }
      }
    }
  }
}

TEST(RingBlocks, WithoutAWindowAStepIsOneBlockAndAllRanksDoTheSame) {
  for (int rank = 0; rank < 4; ++rank) {
    for (int owner = 0; owner < 4; ++owner) {
      const auto blocks = ring_blocks(64, 4, rank, owner, {});
      ASSERT_EQ(blocks.size(), 1u);
      const RingBlock& b = blocks[0];
      if (rank != owner) {
        EXPECT_EQ((b.q_end - b.q_begin) * (b.k_end - b.k_begin), 64 * 32);
        EXPECT_FALSE(b.options.causal);
      }
    }
  }
}

class ContextAttention : public ::testing::TestWithParam<std::tuple<ContextKind, ContextCase>> {
 protected:
  // Ring attention takes any number of ranks whose chunks fit.
  static bool fits(ContextKind kind, const ContextCase& c, int cp) {
    if (c.T % (2 * cp) != 0) return false;
    return kind == ContextKind::ring || (c.H % cp == 0 && (c.G % cp == 0 || cp % c.G == 0));
  }
};

TEST_P(ContextAttention, OutputsAndGradientsAreThoseOfOneRank) {
  const auto& [kind, c] = GetParam();
  const WholeAttention whole(c);
  int runs = 0;
  for (const int cp : {1, 2, 3, 4, 8}) {
    if (!fits(kind, c, cp)) continue;
    ++runs;
    run_ranks(cp, [&, k = kind, with = c](Communicator& ranks) {
      expect_as_on_one_rank(ranks, k, with, whole, DType::f64, Device::cpu, 1e-10);
      expect_as_on_one_rank(ranks, k, with, whole, DType::f32, Device::cpu, 1e-5);
      expect_as_on_one_rank(ranks, k, with, whole, DType::bf16, Device::cpu, 3e-2);
    });
  }
  EXPECT_GE(runs, 2) << "a case that no group of ranks takes";
}

const ContextCase kRing[] = {{"plain", 1, 48, 2, 2, 4},        {"grouped", 2, 48, 6, 2, 6},
                             {"multi_query", 3, 48, 3, 1, 10}, {"one_token_a_chunk", 2, 16, 2, 1, 2},
                             {"odd_chunks", 1, 144, 5, 5, 14}, {"longer_than_a_tile", 1, 384, 2, 1, 34}};
const ContextCase kWindowed[] = {{"window_of_one", 1, 48, 2, 1, 4, 1},
                                 {"within_a_chunk", 2, 48, 2, 2, 4, 3},
                                 {"over_chunks", 1, 96, 3, 1, 6, 17},
                                 {"window_of_nearly_all", 1, 48, 2, 1, 4, 47},
                                 {"window_of_all", 1, 48, 2, 1, 4, 48}};
const ContextCase kUlysses[] = {{"every_head_its_own", 1, 48, 8, 8, 4},
                                {"grouped_heads", 2, 48, 24, 8, 6},
                                {"shared_key_heads", 3, 48, 8, 2, 4},
                                {"one_key_head", 1, 80, 8, 1, 10},
                                {"windowed", 2, 48, 8, 4, 2, 11}};

std::string name_of_case(const ::testing::TestParamInfo<std::tuple<ContextKind, ContextCase>>& info) {
  return std::get<1>(info.param).name;
}
INSTANTIATE_TEST_SUITE_P(Ring, ContextAttention,
                         ::testing::Combine(::testing::Values(ContextKind::ring), ::testing::ValuesIn(kRing)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(RingWindow, ContextAttention,
                         ::testing::Combine(::testing::Values(ContextKind::ring),
                                            ::testing::ValuesIn(kWindowed)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(Ulysses, ContextAttention,
                         ::testing::Combine(::testing::Values(ContextKind::ulysses),
                                            ::testing::ValuesIn(kUlysses)),
                         name_of_case);

class BothKinds : public ::testing::TestWithParam<ContextKind> {
 protected:
  const ContextCase c{"both", 2, 64, 4, 2, 8};
  const WholeAttention whole{c};
};
INSTANTIATE_TEST_SUITE_P(Kinds, BothKinds, ::testing::Values(ContextKind::ring, ContextKind::ulysses));

TEST_P(BothKinds, GiveTheSameBitsEveryTime) {
  std::vector<PartResult> first(4);
  for (int again = 0; again < 3; ++again) {
    run_ranks(4, [&](Communicator& ranks) {
      PartResult& kept = first[static_cast<std::size_t>(ranks.rank())];
      const PartResult got = run_part(ranks, GetParam(), c, whole, DType::bf16, Device::cpu);
      if (again == 0) kept = got;
      EXPECT_TRUE(same_bits(got.y, kept.y));
      EXPECT_TRUE(same_bits(got.dqkv, kept.dqkv));
    });
  }
}

TEST_P(BothKinds, MayBeRecomputed) {
  run_ranks(4, [&](Communicator& ranks) {
    const PartResult plain = run_part(ranks, GetParam(), c, whole, DType::f32, Device::cpu);
    const auto attention = context_attention(GetParam(), ranks);
    Tensor x = test::part_of(whole.qkv, ranks).to(DType::f32);
    autograd::set_requires_grad(x, true);
    const Tensor y = autograd::recompute(
        [&](const std::vector<Tensor>& in) {
          return attention->forward(ops::scale(in[0], 1), c.heads(), c.tables(Device::cpu), c.options());
        },
        {x});
    autograd::backward(y, test::part_of(whole.dy, ranks).to(DType::f32));
    EXPECT_TRUE(same_bits(y.detached(), plain.y));
    EXPECT_TRUE(same_bits(autograd::grad_of(x), plain.dqkv));
  });
}

TEST_P(BothKinds, RunWithoutGradients) {
  run_ranks(4, [&](Communicator& ranks) {
    const PartResult plain = run_part(ranks, GetParam(), c, whole, DType::f32, Device::cpu);
    const autograd::NoGradScope no_grad;
    const Tensor y = context_attention(GetParam(), ranks)
                         ->forward(test::part_of(whole.qkv, ranks).to(DType::f32), c.heads(),
                                   c.tables(Device::cpu), c.options());
    EXPECT_FALSE(y.requires_grad());
    EXPECT_TRUE(same_bits(y, plain.y));
  });
}

TEST_P(BothKinds, NeedOnlyShapesOnMeta) {
  run_ranks(4, [&](Communicator& ranks) {
    Tensor x = Tensor::empty({c.B, c.T / 4, (c.H + 2 * c.G) * c.D}, DType::bf16, Device::meta);
    autograd::set_requires_grad(x, true);
    const Tensor y = context_attention(GetParam(), ranks)
                         ->forward(ops::scale(x, 1), c.heads(), c.tables(Device::meta), c.options());
    EXPECT_EQ(y.shape(), Shape({c.B, c.T / 4, c.H * c.D}));
    EXPECT_EQ(y.device(), Device::meta);
    autograd::backward(y, Tensor::empty(y.shape(), DType::bf16, Device::meta));
    EXPECT_EQ(autograd::grad_of(x).shape(), x.shape());
  });
}

TEST_P(BothKinds, RefuseWhatTheyCannotDo) {
  run_ranks(4, [&](Communicator& ranks) {
    const auto attention = context_attention(GetParam(), ranks);
    const auto run = [&](std::int64_t tokens, std::int64_t features, std::int64_t rows) {
      nn::RotaryTable::Tables tables = c.tables(Device::cpu);
      tables = {tables.cos.sliced(0, 0, rows), tables.sin.sliced(0, 0, rows)};
      attention->forward(Tensor::zeros({1, tokens, features}, DType::f32), c.heads(), tables, c.options());
    };
    EXPECT_THROW(run(15, 64, 64), UserError);  // two chunks of 7 and a half
    EXPECT_THROW(run(16, 63, 64), Error);
    EXPECT_THROW(run(16, 64, 63), Error);  // too short a table
  });
}

TEST_P(BothKinds, AreTimedBesideOneRank) {
  run_ranks(2, [&](Communicator& ranks) {
    ContextBenchmark benchmark{GetParam(), 1, 64, {4, 2, 16}, DType::f32, Device::cpu, true, 2};
    const ContextTiming timing = benchmark_context(ranks, benchmark);
    EXPECT_EQ(timing.flops, 14.0 * (64 * 65 / 2) * 4 * 16);
    EXPECT_GT(timing.seconds, 0);
    EXPECT_GT(timing.whole_seconds, 0);
    EXPECT_DOUBLE_EQ(timing.efficiency(), timing.whole_seconds / timing.seconds / 2);
    benchmark.repeats = 0;
    EXPECT_THROW(benchmark_context(ranks, benchmark), UserError);
  });
}

TEST(Ulysses, HeadsThatCannotBeDividedAreUserErrors) {
  const ContextCase c{"three heads", 1, 16, 3, 1, 4};
  run_ranks(2, [&](Communicator& ranks) {
    const Tensor qkv = Tensor::zeros({1, 8, 5 * 4}, DType::f32);
    const auto attention = context_attention(ContextKind::ulysses, ranks);
    EXPECT_THROW(attention->forward(qkv, c.heads(), c.tables(Device::cpu), c.options()), UserError);
  });
}

}  // namespace
}  // namespace ridge::parallel
