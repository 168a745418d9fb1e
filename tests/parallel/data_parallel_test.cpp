#include "parallel/data_parallel.h"

#include <gtest/gtest.h>

#include "core/base/stream.h"
#include "core/ops/elementwise.h"
#include "core/ops/linear.h"
#include "core/ops/reduce.h"
#include "core/ops/shape.h"
#include "tests/core/ops/jacobian.h"
#include "tests/parallel/training_run.h"

namespace ridge::parallel {
namespace {

using test::Layout;
using test::random_tensor;
using test::Trained;
using test::TrainingRun;

constexpr auto kBlocks = models::Recompute::blocks;

// The stream of the tiny Llama cut for a batch of 12.
TrainingRun run_of_twelve(const std::string& name) {
  TrainingRun run = test::training_run(name);
  run.batch = 12;
  run.micro_batch = 12;
  run.steps = 4;
  return run;
}

class Cuts : public ::testing::TestWithParam<std::tuple<const char*, Layout>> {
 protected:
  void SetUp() override {
    if (test::on_gpu()) GTEST_SKIP() << test::kRanksAreOnTheCpu;
  }
};

TEST_P(Cuts, GiveTheLossesAndEveryGradientOfOneRank) {
  const TrainingRun run = run_of_twelve(std::get<0>(GetParam()));
  const Layout& layout = std::get<1>(GetParam());
  Layout alone = layout;
  alone.ranks = 1;
  const Trained one = test::train(run, alone, run.steps)[0];
  EXPECT_EQ(one.buckets, 0);
  const bool same_pieces = run.batch / layout.ranks % layout.micro_batch == 0;
  for (const Trained& rank : test::train(run, layout, run.steps)) {
    EXPECT_LE(test::relative_difference(rank.losses, one.losses), 1e-6);
    EXPECT_LE(test::relative_difference(rank.grad_norms, one.grad_norms), 1e-5);
    EXPECT_EQ(rank.first_grads.size(), run.first_grads.size());
    EXPECT_LE(test::worst_error(rank.first_grads, one.first_grads, test::norm_error),
              same_pieces ? 1e-6 : 1e-5);
    const auto parameters = static_cast<std::int64_t>(run.first_grads.size());
    const std::int64_t least = layout.bucket_bytes == 1 ? parameters : layout.bucket_bytes == 1 << 12 ? 3 : 1;
    const std::int64_t most = layout.bucket_bytes == 1 << 30 ? 1 : parameters;
    EXPECT_TRUE(rank.buckets >= least && rank.buckets <= most) << rank.buckets << " buckets";
  }
}

// Micro-batch 2 of 4 ranks is accumulation 1.5: the last is smaller. Micro-batch 1 of 4 ranks is
// accumulation 3.
INSTANTIATE_TEST_SUITE_P(All, Cuts,
                         ::testing::Combine(::testing::Values("llama3", "qwen2", "llama3_all_linear"),
                                            ::testing::Values(Layout{2, 6, 1 << 12}, Layout{2, 2, 1},
                                                              Layout{4, 1, 1 << 12}, Layout{4, 1, 1, kBlocks},
                                                              Layout{4, 2, 1 << 30}, Layout{3, 4, 1 << 12},
                                                              Layout{3, 1, 1 << 30, kBlocks},
                                                              Layout{12, 1, 1 << 12})),
                         [](const auto& test) {
                           const Layout& l = std::get<1>(test.param);
                           return fmt::format("{}_{}_ranks_micro_{}_bucket_{}{}", std::get<0>(test.param),
                                              l.ranks, l.micro_batch, l.bucket_bytes,
                                              l.recompute == kBlocks ? "_recompute" : "");
                         });

TEST(DataParallel, DropoutsMasksDoNotDependOnTheLayout) {
  const TrainingRun run = run_of_twelve("llama3");
  Layout layout;
  layout.dropout = 0.3;
  layout.micro_batch = 1;
  const Trained one = test::train(run, layout, run.steps)[0];
  Layout plain = layout;
  plain.dropout = 1e-30;
  const Trained whole = test::train(run, plain, 1)[0];
  EXPECT_GT(test::worst_error(whole.first_grads, one.first_grads, test::norm_error), 0.1);  // it does drop
  for (const auto& [ranks, micro, blocks] : {std::tuple(4, 1, false), {2, 6, false}, {3, 2, true}}) {
    layout.ranks = test::on_gpu() ? 1 : ranks;
    layout.micro_batch = micro;
    layout.recompute = blocks ? kBlocks : models::Recompute::none;
    const Trained got = test::train(run, layout, run.steps).back();
    EXPECT_LE(test::relative_difference(got.losses, one.losses), 1e-6) << ranks << " ranks";
    EXPECT_LE(test::worst_error(got.first_grads, one.first_grads, test::norm_error), 1e-5)
        << ranks << " ranks";
  }
}

// On a GPU one rank has buckets as many have, so that gradients of neighbours are one product.
TEST(DataParallel, OneRanksBucketsDoNotChangeItsNumbers) {
  for (const char* name : {"llama3", "qwen2", "llama3_all_linear"}) {
    const TrainingRun run = run_of_twelve(name);
    const Trained one = test::train(run, Layout{1, 6, 1 << 30}, run.steps)[0];
    EXPECT_EQ(one.buckets, test::on_gpu() ? 1 : 0);
    for (const std::int64_t bytes : {1, 1 << 12}) {
      const Trained cut = test::train(run, Layout{1, 6, bytes}, run.steps)[0];
      EXPECT_EQ(cut.buckets > 1, test::on_gpu());
      EXPECT_LE(test::relative_difference(cut.losses, one.losses), 1e-6) << name;
      EXPECT_LE(test::worst_error(cut.first_grads, one.first_grads, test::norm_error), 1e-5) << name;
    }
  }
}

// Reads what it was given when the all-reduce starts, and writes the sum when it is waited for: the widest
// freedom of one that runs beside the caller.
template <class T>
class Lazy final : public Pending {
 public:
  Lazy(Communicator& ranks, std::span<T> values)
      : ranks_(ranks), to_(values), copy_(values.begin(), values.end()) {}
  void wait() override {
    ranks_.all_reduce(std::span<T>(copy_));
    std::copy(copy_.begin(), copy_.end(), to_.begin());
  }

 private:
  Communicator& ranks_;
  std::span<T> to_;
  std::vector<T> copy_;
};

// Notes the all-reduces that are started, and calls `seen` at each.
class Watched final : public Communicator {
 public:
  Watched(Communicator& inner, std::function<void()> seen) : inner_(inner), seen_(std::move(seen)) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  void barrier() override { inner_.barrier(); }
  void abort(const std::string& reason, int code) noexcept override { inner_.abort(reason, code); }
  std::unique_ptr<Communicator> split(int) override { fail("not used"); }
  std::vector<std::size_t> sent;  // elements, in order

 protected:
  void do_all_reduce(Span, Reduce) override { fail("gradients go by all_reduce_async"); }
  std::unique_ptr<Pending> do_all_reduce_async(Span values) override {
    sent.push_back(values.count);
    seen_();
    if (values.dtype == DType::f64) return lazy<double>(values);
    return lazy<float>(values);
  }
  void do_all_gather(Span, Span) override { fail("not used"); }
  std::unique_ptr<Pending> do_all_gather_async(Span, Span) override { fail("not used"); }
  std::unique_ptr<Pending> do_reduce_scatter_async(Span, Span) override { fail("not used"); }
  void do_broadcast(Span, int) override { fail("not used"); }
  std::unique_ptr<Pending> do_exchange_async(const std::vector<Message>&) override { fail("not used"); }

 private:
  template <class T>
  std::unique_ptr<Pending> lazy(Span values) {
    return std::make_unique<Lazy<T>>(inner_, std::span(static_cast<T*>(values.data), values.count));
  }
  Communicator& inner_;
  std::function<void()> seen_;
};

// Of ranks that are threads: on the CPU.
Tensor leaf(const Shape& shape, std::uint64_t stream, DType dtype = DType::f32, Device device = Device::cpu) {
  Tensor t = random_tensor(shape, stream, -1, 1, dtype, device);
  autograd::set_requires_grad(t, true);
  return t;
}

// sum(x) * factor reaches every element of x with `factor`.
void pass(const std::vector<Tensor>& used, double factor) {
  Tensor total;
  for (const Tensor& x : used) {
    const Tensor part = ops::cast(ops::sum(ops::scale(x, factor)), DType::f32);
    total = total.defined() ? ops::add(total, part) : part;
  }
  autograd::backward(total);
}

void expect_all(const Tensor& parameter, double value, const char* what) {
  const Tensor grad = autograd::grad_of(parameter);
  ASSERT_TRUE(grad.defined()) << what;
  for (const double g : test::values_of(grad)) ASSERT_EQ(g, value) << what;
}

TEST(GradientReducer, OnlyTheLastMicroBatchIsSentAndWhileBackwardRuns) {
  run_ranks(2, [](Communicator& ranks) {
    const Tensor early = leaf({3}, 1),
                 late = leaf({5}, 2);  // early comes first on the tape, so last in backward
    int unfinished = 0;
    Watched watched(ranks, [&] { unfinished += autograd::grad_of(early).defined() ? 0 : 1; });
    GradientReducer reducer({early, late}, watched, 1);
    const auto chain = [&] {
      const Tensor h = ops::sum(ops::mul(early, early));
      autograd::backward(ops::add(h, ops::sum(late)));
    };
    reducer.begin(false);
    chain();
    EXPECT_TRUE(watched.sent.empty());
    optim::clear_gradients({{"early", early}, {"late", late}});
    reducer.begin(true);
    chain();
    EXPECT_EQ(watched.sent, (std::vector<std::size_t>{5, 3}));  // the last parameter's bucket first
    EXPECT_EQ(unfinished, 1);                                   // late's went before early's was there
    reducer.finish();
    EXPECT_EQ(watched.sent.size(), 2u);
    expect_all(late, 2, "late");
  });
}

TEST(GradientReducer, ParametersWithoutAGradientCountZero) {
  run_ranks(3, [](Communicator& ranks) {
    const Tensor a = leaf({2, 3}, 1), unused = leaf({4}, 2), c = leaf({5}, 3);
    for (const std::int64_t bytes : {1, 1 << 20}) {
      GradientReducer reducer({a, unused, c}, ranks, bytes);
      for (int step = 0; step < 3; ++step) {
        reducer.begin(true);
        pass({a, c}, ranks.rank() + 1);
        reducer.finish();
        expect_all(a, 6, "a");
        expect_all(unused, 0, "unused");
        expect_all(c, 6, "c");
        for (const Tensor& p : {a, unused, c}) autograd::leaf_of(p).grad = {};
      }
      for (const Tensor& p : {a, unused, c}) {
        autograd::leaf_of(p).hooks.clear();
        autograd::leaf_of(p).buffer = {};
      }
    }
  });
}

// Ranks may disagree on what was used: an expert that no token of a rank chose.
TEST(GradientReducer, AParameterUsedOnOneRankAloneGetsItsGradientEverywhere) {
  run_ranks(3, [](Communicator& ranks) {
    const Tensor a = leaf({2}, 1), b = leaf({3}, 2), c = leaf({4}, 3);
    GradientReducer reducer({a, b, c}, ranks, 1);
    for (int step = 0; step < 2; ++step) {
      reducer.begin(true);
      pass(ranks.rank() == 1 ? std::vector<Tensor>{a, b, c} : std::vector<Tensor>{a, c}, 2);
      reducer.finish();
      expect_all(a, 6, "a");
      expect_all(b, 2, "b");
      expect_all(c, 6, "c");
      for (const Tensor& p : {a, b, c}) autograd::leaf_of(p).grad = {};
    }
  });
}

TEST(GradientReducer, MicroBatchesAddUpBeforeTheyAreSent) {
  run_ranks(2, [](Communicator& ranks) {
    const Tensor a = leaf({2}, 1), b = leaf({3}, 2);
    GradientReducer reducer({a, b}, ranks, 1);
    reducer.begin(false);
    pass({a, b}, 1);
    reducer.begin(false);
    pass({b}, 10);  // a is left out
    reducer.begin(true);
    pass({a}, 100);  // b is left out of the last one
    reducer.finish();
    expect_all(a, 2 * 101, "a");
    expect_all(b, 2 * 11, "b");
  });
}

// An input that is on the tape but gets nothing.
struct Ignores {
  static constexpr const char* kName = "ignores";
  Tensor forward(const Tensor& x, const Tensor&) { return x.contiguous_copy(); }
  autograd::Grads vjp(const Tensor& dy, const autograd::Needs&) { return {dy, Tensor()}; }
};

TEST(GradientReducer, AParameterOnTheTapeWithoutAGradientDoesNotSendOldNumbers) {
  run_ranks(2, [](Communicator& ranks) {
    const Tensor x = leaf({3}, 1), ignored = leaf({4}, 2);
    Watched watched(ranks, [] {});
    GradientReducer reducer({ignored, x}, watched, 1);
    reducer.begin(true);
    pass({x, ignored}, 5);  // leaves a gradient in the bucket's memory
    reducer.finish();
    expect_all(ignored, 10, "ignored");
    for (const Tensor& p : {x, ignored}) autograd::leaf_of(p).grad = {};
    reducer.begin(true);
    autograd::backward(ops::sum(autograd::apply(Ignores{}, x, ignored)));
    reducer.finish();
    expect_all(x, 2, "x");
    expect_all(ignored, 0, "ignored");
  });
}

TEST(GradientReducer, TypesDoNotShareABucket) {
  run_ranks(2, [](Communicator& ranks) {
    const Tensor a = leaf({2}, 1), wide = leaf({3}, 2, DType::f64), half = leaf({4}, 3, DType::bf16),
                 b = leaf({5}, 4);
    Watched watched(ranks, [] {});
    GradientReducer reducer({a, wide, half, b}, watched, 1 << 20);
    EXPECT_EQ(reducer.buckets(), 3);
    reducer.begin(true);
    pass({a, wide, half, b}, 0.5);
    reducer.finish();
    EXPECT_EQ(watched.sent, (std::vector<std::size_t>{9, 3, 2}));  // half's gradient is f32, as b's
    for (const Tensor& p : {a, wide, half, b}) expect_all(p, 1, "gradient");
    EXPECT_EQ(autograd::grad_of(wide).dtype(), DType::f64);
    EXPECT_EQ(autograd::grad_of(half).dtype(), DType::f32);
  });
}

// Where a gradient's memory begins, in bytes from the first of its bucket.
std::int64_t place_of(const Tensor& parameter, const Tensor& first) {
  return static_cast<const char*>(autograd::leaf_of(parameter).buffer.data()) -
         static_cast<const char*>(autograd::leaf_of(first).buffer.data());
}

TEST(GradientReducer, NeighboursLieSideBySideInTheirOwnOrder) {
  run_ranks(2, [](Communicator& ranks) {
    const Tensor q = leaf({4, 3}, 1), k = leaf({2, 4}, 2), v = leaf({8}, 3);
    const GradientReducer reducer({q, k, v}, ranks, 1 << 20);
    EXPECT_EQ(reducer.buckets(), 1);
    EXPECT_EQ(place_of(k, q), 4 * 12);
    EXPECT_EQ(place_of(v, q), 4 * (12 + 8));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(autograd::leaf_of(q).buffer.data()) % 16, 0u);
    EXPECT_EQ(autograd::leaf_of(k).buffer.storage(), autograd::leaf_of(q).buffer.storage());
  });
}

TEST(GradientReducer, OddSizesBeginAtMultiplesOf16BytesAndTheGapsAreZero) {
  run_ranks(2, [](Communicator& ranks) {
    const Tensor a = leaf({3}, 1), b = leaf({5}, 2), wide = leaf({3}, 3, DType::f64),
                 wider = leaf({1}, 4, DType::f64);
    Watched watched(ranks, [] {});
    GradientReducer reducer({a, b, wide, wider}, watched, 1 << 20);
    EXPECT_EQ(place_of(b, a), 16);
    EXPECT_EQ(place_of(wider, wide), 32);
    reducer.begin(true);
    pass({a, b, wide, wider}, 3);
    reducer.finish();
    EXPECT_EQ(watched.sent, (std::vector<std::size_t>{5, 9}));
    for (const Tensor& p : {a, b, wide, wider}) expect_all(p, 6, "gradient");
    EXPECT_EQ(static_cast<const float*>(autograd::leaf_of(a).buffer.data())[3], 0);
    EXPECT_EQ(static_cast<const double*>(autograd::leaf_of(wide).buffer.data())[3], 0);
  });
}

TEST(GradientReducer, BucketsFillFromTheLastParameter) {
  run_ranks(2, [](Communicator& ranks) {
    const Tensor a = leaf({4}, 1), b = leaf({4}, 2), c = leaf({4}, 3);
    Watched watched(ranks, [] {});
    GradientReducer reducer({a, b, c}, watched, 32);
    EXPECT_EQ(reducer.buckets(), 2);
    EXPECT_EQ(place_of(c, b), 16);
    reducer.begin(true);
    pass({a, b, c}, 1);
    reducer.finish();
    EXPECT_EQ(watched.sent, (std::vector<std::size_t>{8, 4}));
  });
}

Tensor meta_leaf(const Shape& shape) {
  Tensor t = Tensor::empty(shape, DType::f32, Device::meta);
  autograd::set_requires_grad(t, true);
  return t;
}

// Meta stands for a device during a scope.
class StandsFor {
 public:
  explicit StandsFor(Device device)
      : other_(std::exchange(current_stream(Device::meta).meta_device, device)) {}
  ~StandsFor() { current_stream(Device::meta).meta_device = other_; }
  StandsFor(const StandsFor&) = delete;
  StandsFor& operator=(const StandsFor&) = delete;

 private:
  Device other_;
};

// Bytes of gradients on meta after a step over `ranks`.
std::int64_t meta_gradient_bytes(Communicator& ranks, bool buckets) {
  const auto gradients = static_cast<std::size_t>(Purpose::gradients);
  const std::int64_t before = memory_stats(Device::meta).live_by_purpose[gradients];
  const Tensor a = meta_leaf({1 << 10}), b = meta_leaf({1 << 12}), unused = meta_leaf({1 << 10});
  GradientReducer reducer({a, b, unused}, ranks, 1 << 20);
  EXPECT_EQ(reducer.buckets(), buckets ? 1 : 0);
  reducer.begin(true);
  autograd::backward(ops::add(ops::sum(ops::mul(a, a)), ops::sum(b)));
  reducer.finish();
  EXPECT_EQ(autograd::grad_of(b).storage() == autograd::leaf_of(b).buffer.storage(), buckets);
  return memory_stats(Device::meta).live_by_purpose[gradients] - before;
}

TEST(GradientReducer, MetaHasTheMemoryOfManyRanksAndSendsNothing) {
  const std::int64_t want = 4 * ((1 << 12) + (2 << 10));
  for (const Device device : {Device::cpu, Device::cuda}) {
    run_ranks(2, [&](Communicator& ranks) {
      if (ranks.rank() > 0) return;
      const StandsFor stand(device);
      EXPECT_EQ(meta_gradient_bytes(ranks, true), want);
    });
  }
}

TEST(GradientReducer, MetaHasTheMemoryOfOneRankOfWhatItStandsFor) {
  const auto self = self_communicator();
  const StandsFor gpu(Device::cuda);
  EXPECT_EQ(meta_gradient_bytes(*self, true), 4 * ((1 << 12) + (2 << 10)));
  const StandsFor cpu(Device::cpu);
  EXPECT_EQ(meta_gradient_bytes(*self, false), 4 * ((1 << 12) + (1 << 10)));  // none for what is unused
}

TEST(GradientReducer, OneRankKeepsItsGradientsWhereTheyAre) {
  const auto self = self_communicator();
  const Tensor a = leaf({2}, 1);
  GradientReducer reducer({a}, *self, 1);
  EXPECT_EQ(reducer.buckets(), 0);
  EXPECT_FALSE(autograd::leaf_of(a).buffer.defined());
  reducer.begin(true);
  pass({a}, 3);
  reducer.finish();
  expect_all(a, 3, "a");
}

TEST(GradientReducer, OneRankOnAGpuFillsItsBucketsAndSendsNothing) {
  if (!test::on_gpu()) GTEST_SKIP() << "the device under test is no GPU";
  const auto self = self_communicator();
  const auto there = [](const Shape& shape) { return leaf(shape, 1, DType::f32, Device::cuda); };
  const Tensor a = there({2}), unused = there({3}), c = there({5});
  GradientReducer reducer({a, unused, c}, *self, 1 << 20);
  ASSERT_EQ(reducer.buckets(), 1);
  ASSERT_EQ(reducer.flat().size(), 1u);
  for (int step = 0; step < 2; ++step) {
    reducer.begin(true);
    pass({a, c}, 3);
    reducer.finish();
    expect_all(a, 3, "a");
    expect_all(c, 3, "c");
    EXPECT_FALSE(autograd::grad_of(unused).defined());
    EXPECT_EQ(autograd::grad_of(c).storage(), reducer.flat()[0].storage());
    EXPECT_NEAR(optim::norm_of(reducer.flat()).item(), std::sqrt(9.0 * 7), 1e-12);  // all else is zero
    for (const Tensor& p : {a, c}) autograd::leaf_of(p).grad = {};
  }
}

TEST(GradientReducer, BucketsCountAsGradients) {
  run_ranks(2, [](Communicator& ranks) {
    const Tensor a = leaf({1 << 12}, 1);
    ranks.barrier();
    const auto gradients = static_cast<std::size_t>(Purpose::gradients);
    const std::int64_t before = memory_stats(Device::cpu).live_by_purpose[gradients];
    ranks.barrier();
    const GradientReducer reducer({a}, ranks, 1 << 20);
    ranks.barrier();
    EXPECT_EQ(memory_stats(Device::cpu).live_by_purpose[gradients] - before, 2 * 4 << 12);  // one a rank
    ranks.barrier();
  });
}

TEST(GradientReducer, AnErrorInOneRanksBackwardEndsAll) {
  const auto body = [](Communicator& ranks) {
    const Tensor a = leaf({2}, 1);
    GradientReducer reducer({a}, ranks, 1);
    reducer.begin(true);
    if (ranks.rank() == 1) fail_user("rank 1 has no batch");
    pass({a}, 1);
    reducer.finish();
  };
  try {
    run_ranks(3, body);
    FAIL() << "no error";
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), "rank 1 has no batch");
  }
}

}  // namespace
}  // namespace ridge::parallel
