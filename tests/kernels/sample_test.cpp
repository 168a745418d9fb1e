// Against the reference on the host, which sorts and adds in f64 (inference/sampling.h).
#include "kernels/sample.h"

#include <set>

#include "inference/sampling.h"
#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class T>
struct Batch {
  std::int64_t batch, count, words = (count + 31) / 32;
  Array<T> logits;
  Memory<SampleParameters> parameters;
  Memory<std::int64_t> steps;
  Memory<std::uint32_t> seen;
  Memory<std::int32_t> out;

  Batch(std::int64_t b, std::int64_t v, std::int64_t gap = 0)
      : batch(b),
        count(v),
        logits(Array<T>::gapped({b, v}, gap)),
        parameters(static_cast<std::size_t>(b)),
        steps(static_cast<std::size_t>(b)),
        seen(static_cast<std::size_t>(b * words)),
        out(static_cast<std::size_t>(b), -9) {}

  void set(std::int64_t b, std::int64_t id, float x) { logits.view()(b, id) = T(x); }
  std::vector<std::int32_t> run(bool with_seen = true) {
    sample_ids<T>(test_stream(), logits.in(), View<const SampleParameters>(parameters.data(), {batch}),
                  View<const std::int64_t>(steps.data(), {batch}),
                  with_seen ? View<std::uint32_t>(seen.data(), {batch, words}) : View<std::uint32_t>(),
                  View<std::int32_t>(out.data(), {batch}));
    wait_for_device();
    return {out.begin(), out.end()};
  }
  std::int32_t expected(std::int64_t b, bool with_seen = true) const {
    std::vector<float> row;
    for (std::int64_t id = 0; id < count; ++id)
      row.push_back(static_cast<float>(get(logits.in(), b * count + id)));
    const SampleParameters& p = parameters[static_cast<std::size_t>(b)];
    inference::SamplingOptions options;
    options.temperature = p.temperature, options.top_k = p.top_k, options.top_p = p.top_p;
    options.min_p = p.min_p, options.repetition_penalty = p.repetition_penalty, options.seed = p.seed;
    const std::uint32_t* bits = seen.data() + b * words;
    return inference::sample(
        row, options, static_cast<std::uint64_t>(steps[static_cast<std::size_t>(b)]),
        with_seen ? std::span(bits, static_cast<std::size_t>(words)) : std::span<const std::uint32_t>());
  }
};

template <class T>
class SampleIds : public ::testing::Test {};
using Types = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(SampleIds, Types);

float one_of(std::mt19937_64& engine, std::initializer_list<float> from) {
  return *(from.begin() + static_cast<std::ptrdiff_t>(engine() % from.size()));
}

template <class T>
void randomize(Batch<T>& x, std::mt19937_64& engine) {
  const float deviation = one_of(engine, {0.01f, 1, 3, 12}), mean = one_of(engine, {-7, 0, 5, 30});
  const bool coarse = engine() % 3 == 0;  // many ties
  std::normal_distribution<float> normal(mean, deviation);
  for (std::int64_t b = 0; b < x.batch; ++b) {
    for (std::int64_t id = 0; id < x.count; ++id) {
      const float logit = normal(engine);
      x.set(b, id, engine() % 50 == 0 ? -kInfinity : (coarse ? std::round(2 * logit) / 2 : logit));
    }
    auto& p = x.parameters[static_cast<std::size_t>(b)];
    p.temperature = one_of(engine, {0.0f, 0.3f, 0.7f, 1, 1, 2.5f});
    p.top_k = static_cast<std::int32_t>(one_of(engine, {0, 0, 1, 5, 40, 1000, 1e6f}));
    p.top_p = one_of(engine, {1, 1, 0.95f, 0.5f, 0.01f});
    p.min_p = one_of(engine, {0, 0, 0.02f, 0.3f, 1});
    p.repetition_penalty = one_of(engine, {1, 1, 1.3f, 0.6f});
    p.seed = engine();
    x.steps[static_cast<std::size_t>(b)] = static_cast<std::int64_t>(engine() >> 2);
  }
  for (std::uint32_t& word : x.seen) word = static_cast<std::uint32_t>(engine() & engine());
}

TYPED_TEST(SampleIds, ChoosesAsTheHostDoes) {
  std::mt19937_64 engine(7);
  for (const std::int64_t count : {1, 2, 31, 32, 33, 257, 1000, 4099, 32000}) {
    const int rounds = count > 4000 ? 6 : 60;
    for (int round = 0; round < rounds; ++round) {
      Batch<TypeParam> x(5, count, round % 2 == 0 ? 0 : 3);
      randomize(x, engine);
      const bool with_seen = round % 4 != 0;
      std::vector<std::int32_t> want;
      for (std::int64_t b = 0; b < x.batch; ++b) want.push_back(x.expected(b, with_seen));
      EXPECT_EQ(x.run(with_seen), want) << count << " ids, round " << round;
    }
  }
}

TYPED_TEST(SampleIds, OfALargeVocabulary) {
  std::mt19937_64 engine(8);
  for (int round = 0; round < 3; ++round) {
    Batch<TypeParam> x(3, 128256);
    randomize(x, engine);
    for (auto& p : x.parameters) p.temperature = 1;
    std::vector<std::int32_t> want;
    for (std::int64_t b = 0; b < x.batch; ++b) want.push_back(x.expected(b));
    EXPECT_EQ(x.run(), want) << round;
  }
}

TYPED_TEST(SampleIds, MarksTheChosenAsSeen) {
  Batch<TypeParam> x(2, 70);
  x.logits.randomize(1);
  x.set(0, 69, 9);
  x.set(1, 3, 9);
  x.seen = {0u, 4u, 0u, 0u, 0u, 1u};
  EXPECT_EQ(x.run(), (std::vector<std::int32_t>{69, 3}));
  EXPECT_EQ(std::vector(x.seen.begin(), x.seen.end()),
            (std::vector<std::uint32_t>{0u, 4u, 1u << 5, 8u, 0u, 1u}));
}

TYPED_TEST(SampleIds, ThePenaltyTurnsTheGreedyChoice) {
  Batch<TypeParam> x(1, 40);
  for (std::int64_t id = 0; id < 40; ++id) x.set(0, id, -1);
  x.set(0, 35, 4);
  x.set(0, 12, 3);
  x.parameters[0].repetition_penalty = 1.5f;
  EXPECT_EQ(x.run(), std::vector<std::int32_t>{35});
  EXPECT_EQ(x.run(), std::vector<std::int32_t>{12});  // 4 / 1.5 < 3
  EXPECT_EQ(x.run(), std::vector<std::int32_t>{35});  // 3 / 1.5 < 4 / 1.5
  EXPECT_EQ(x.run(false), std::vector<std::int32_t>{35});
}

TYPED_TEST(SampleIds, TiesGoToTheLowestId) {
  Batch<TypeParam> x(2, 3000);
  for (std::int64_t id = 0; id < 3000; ++id) x.set(0, id, 1.5f), x.set(1, id, id % 7 == 6 ? 2.0f : 0.0f);
  EXPECT_EQ(x.run(), (std::vector<std::int32_t>{0, 6}));
  x.parameters[0] = {.temperature = 1, .top_k = 3};
  x.parameters[1] = {.temperature = 1, .top_p = 0.001f};
  std::set<std::int32_t> ids;
  for (int step = 0; step < 100; ++step) {
    x.steps = {step, step};
    const auto out = x.run(false);
    ids.insert(out[0]);
    EXPECT_EQ(out[1] % 7, 6);
  }
  EXPECT_EQ(ids, (std::set<std::int32_t>{0, 1, 2}));
}

TYPED_TEST(SampleIds, SaysWhichLogitsHaveNoOrder) {
  for (const float bad : {NAN, kInfinity, -NAN}) {
    for (const float temperature : {0.0f, 1.0f}) {
      Batch<TypeParam> x(4, 2050);
      x.logits.randomize(3);
      for (auto& p : x.parameters) p.temperature = temperature;
      x.set(1, 2049, bad);
      x.steps[2] = -1;  // no sequence here
      for (std::int64_t id = 0; id < x.count; ++id) x.set(3, id, -kInfinity);
      const auto want = x.expected(0);
      EXPECT_EQ(x.run(), (std::vector<std::int32_t>{want, -1, -1, 0}));
      for (std::int64_t w = x.words; w < 3 * x.words; ++w) EXPECT_EQ(x.seen[static_cast<std::size_t>(w)], 0u);
    }
  }
}

TYPED_TEST(SampleIds, DoesNotDependOnTheBatch) {
  std::mt19937_64 engine(9);
  Batch<TypeParam> all(6, 500);
  randomize(all, engine);
  const auto seen = all.seen;
  const auto together = all.run();
  for (std::int64_t b = 0; b < 6; ++b) {
    Batch<TypeParam> alone(1, 500);
    for (std::int64_t id = 0; id < 500; ++id)
      alone.set(0, id, static_cast<float>(get(all.logits.in(), b * 500 + id)));
    alone.parameters[0] = all.parameters[static_cast<std::size_t>(b)];
    alone.steps[0] = all.steps[static_cast<std::size_t>(b)];
    std::copy_n(seen.begin() + b * all.words, all.words, alone.seen.begin());
    EXPECT_EQ(alone.run()[0], together[static_cast<std::size_t>(b)]);
  }
}

TEST(SampleIdsWork, ReadsTheLogits) {
  const auto record = launched_on_meta([](Stream& stream) {
    sample_ids<bf16>(stream, meta_view<const bf16>({3, 100}), meta_view<const SampleParameters>({3}),
                     meta_view<const std::int64_t>({3}), {}, meta_view<std::int32_t>({3}));
  });
  EXPECT_EQ(record.bytes, 3 * 100 * 2 + 3 * (32 + 8 + 4));
}

TEST(SampleIdsErrors, TooManyIds) {
  Stream stream(Device::meta, "meta");
  EXPECT_NE(message_of<Error>([&] {
              sample_ids<bf16>(stream, meta_view<const bf16>({1, kMostIds + 1}),
                               meta_view<const SampleParameters>({1}), meta_view<const std::int64_t>({1}), {},
                               meta_view<std::int32_t>({1}));
            }).find("2^20"),
            std::string::npos);
}

}  // namespace
}  // namespace ridge::kernels::testing
