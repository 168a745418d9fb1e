#include "parallel/pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/autograd.h"
#include "core/base/error.h"
#include "core/base/stream.h"
#include "core/ops/elementwise.h"
#include "core/ops/linear.h"
#include "core/ops/reduce.h"
#include "core/random_state.h"
#include "tests/core/ops/jacobian.h"
#include "tests/test_device.h"

namespace ridge::parallel {
namespace {

using test::random_tensor;

constexpr std::int64_t kWidth = 7;

struct Layer {
  Tensor weight_CC, bias_C;
};

struct Shaped {
  DType dtype = DType::f64;
  Device device = test::test_device();
  double dropout = 0;
  bool frozen_start = false;  // the first layers' weights are constants
};

// Values alike on every device; none on meta.
Tensor values_of(const Shape& shape, std::uint64_t stream, const Shaped& how) {
  if (how.device == Device::meta) return Tensor::empty(shape, how.dtype, how.device);
  return random_tensor(shape, stream, -1, 1, how.dtype, Device::cpu).on(how.device);
}

// tanh layers of kWidth, alike wherever they are built, and a sum of squares at the end.
class Mlp {
 public:
  Mlp(int layers, const Shaped& how) : how_(how) {
    for (int l = 0; l < layers; ++l) {
      const auto stream = static_cast<std::uint64_t>(10 * l);
      Layer layer{values_of({kWidth, kWidth}, stream, how), values_of({kWidth}, stream + 1, how)};
      const bool frozen = how.frozen_start && l < 2;
      for (Tensor* t : {&layer.weight_CC, &layer.bias_C}) autograd::set_requires_grad(*t, !frozen);
      layers_.push_back(layer);
    }
  }

  // Micro-batches differ in size.
  static std::int64_t rows(int micro) { return 2 + micro % 3; }

  Tensor data(int micro, std::uint64_t what) const {
    const auto stream = 1000 + 2 * static_cast<std::uint64_t>(micro) + what;
    return values_of({rows(micro), kWidth}, stream, how_);
  }
  // Layers first .. end - 1, and what goes with the model's ends.
  Tensor forward(int first, int end, int micro, Tensor x) const {
    random_state() = {7, 1, 100 * micro, static_cast<std::uint64_t>(first)};
    if (first == 0) x = data(micro, 0);
    for (int l = first; l < end; ++l) {
      const Layer& layer = layers_[static_cast<std::size_t>(l)];
      x = ops::tanh(ops::linear(x, layer.weight_CC, layer.bias_C));
      if (how_.dropout > 0) x = ops::dropout(x, how_.dropout);
    }
    if (end < static_cast<int>(layers_.size())) return x;
    const Tensor difference = ops::sub(x, data(micro, 1));
    return ops::sum(ops::mul(difference, difference));
  }
  std::vector<std::vector<double>> gradients(int first, int end) const {
    std::vector<std::vector<double>> all;
    for (int l = first; l < end; ++l) {
      const Layer& layer = layers_[static_cast<std::size_t>(l)];
      for (const Tensor& t : {layer.weight_CC, layer.bias_C}) {
        const Tensor grad = autograd::grad_of(t);
        std::vector<double> values;
        if (grad.defined()) {
          const Tensor wide = grad.to(DType::f64).as_contiguous().on(Device::cpu);
          values.assign(wide.span<double>().begin(), wide.span<double>().end());
        }
        all.push_back(values);
      }
    }
    return all;
  }
  int layers() const { return static_cast<int>(layers_.size()); }

 private:
  Shaped how_;
  std::vector<Layer> layers_;
};

struct Result {
  std::vector<double> losses;
  std::vector<std::vector<double>> gradients;  // of the layers in order
};

// Stage s begins at this layer: stages have 1, 2 or 3 layers.
int first_layer(int stage) {
  int layer = 0;
  for (int s = 0; s < stage; ++s) layer += 1 + (s * s + 1) % 3;
  return layer;
}

Result one_rank(int stages, int micros, const Shaped& how) {
  const Mlp mlp(first_layer(stages), how);
  Result result;
  for (int i = 0; i < micros; ++i) {
    Tensor x;
    for (int s = 0; s < stages; ++s) x = mlp.forward(first_layer(s), first_layer(s + 1), i, x);
    result.losses.push_back(x.item());
    autograd::backward(x);
  }
  result.gradients = mlp.gradients(0, mlp.layers());
  return result;
}

struct Case {
  Schedule kind;
  int ranks, chunks, micros;
};

PipelineWork work_of(const Mlp& mlp) {
  PipelineWork work;
  work.forward = [&](int stage, int micro, const Tensor& x) {
    EXPECT_EQ(x.defined(), stage > 0);
    return mlp.forward(first_layer(stage), first_layer(stage + 1), micro, x);
  };
  work.shape = [](int micro) { return Shape{Mlp::rows(micro), kWidth}; };
  return work;
}

std::vector<double> values(const std::vector<Tensor>& losses) {
  std::vector<double> result;
  for (const Tensor& loss : losses) result.push_back(loss.item());
  return result;
}

Result pipelined(const Case& c, const Shaped& how, int runs = 1) {
  Result result;
  std::mutex mutex;
  const int layers = first_layer(c.ranks * c.chunks);
  result.gradients.resize(static_cast<std::size_t>(2 * layers));
  run_ranks(c.ranks, [&](Communicator& pp) {
    Mlp mlp(layers, how);
    Pipeline pipeline(pp, {c.kind, c.chunks, how.dtype, how.device});
    std::vector<double> losses;
    for (int run = 0; run < runs; ++run) losses = values(pipeline.run(c.micros, work_of(mlp)));
    const std::lock_guard lock(mutex);
    EXPECT_EQ(losses.empty(), pp.rank() != pipeline.loss_rank());
    if (!losses.empty()) result.losses = losses;
    std::vector<std::vector<double>> mine = mlp.gradients(0, layers);
    for (int s = 0; s < pipeline.stages(); ++s) {
      for (int l = 2 * first_layer(s); l < 2 * first_layer(s + 1); ++l) {
        auto& grad = mine[static_cast<std::size_t>(l)];
        if (pipeline.rank_of(s) != pp.rank()) {
          EXPECT_TRUE(grad.empty()) << "stage " << s << " is not on rank " << pp.rank();
        } else {
          result.gradients[static_cast<std::size_t>(l)] = grad;
        }
      }
    }
  });
  return result;
}

// Every stage adds up micro-batches in their order, whatever the schedule: the same bits.
void expect_same(const Result& got, const Result& one) {
  EXPECT_EQ(got.losses, one.losses);
  EXPECT_EQ(got.gradients, one.gradients);
}

std::vector<Case> cases(const std::vector<int>& micros) {
  std::vector<Case> all;
  for (const int ranks : test::on_gpu() ? std::vector<int>{1} : std::vector<int>{1, 2, 3, 4, 8}) {
    for (const int m : micros) {
      for (const Schedule kind : {Schedule::gpipe, Schedule::one_f_one_b, Schedule::zb_h1}) {
        all.push_back({kind, ranks, 1, m});
      }
      all.push_back({Schedule::zero_bubble, ranks, 2, m});
      all.push_back({Schedule::interleaved, ranks, 2, m});
      if (ranks <= 3) all.push_back({Schedule::interleaved, ranks, 3, m});
    }
  }
  return all;
}

std::string name_of(const Case& c) {
  return fmt::format("{}, {} ranks, {} chunks, {} micro-batches", parallel::name_of(c.kind), c.ranks,
                     c.chunks, c.micros);
}

TEST(Pipeline, GivesTheLossesAndEveryGradientOfOneRankToTheBit) {
  for (const Case& c : cases({1, 2, 5, 8, 11})) {
    SCOPED_TRACE(name_of(c));
    const Result one = one_rank(c.ranks * c.chunks, c.micros, {});
    ASSERT_EQ(one.losses.size(), static_cast<std::size_t>(c.micros));
    ASSERT_NE(one.gradients.front(), std::vector<double>(kWidth * kWidth, 0.0));
    expect_same(pipelined(c, {}), one);
  }
}

// What passes between stages is bf16, gradients too; those of weights are f32.
TEST(Pipeline, CarriesBf16WithDropoutAsOneRank) {
  const Shaped how{DType::bf16, test::test_device(), 0.25, false};
  for (const Case& c : cases({5})) {
    SCOPED_TRACE(name_of(c));
    expect_same(pipelined(c, how), one_rank(c.ranks * c.chunks, c.micros, how));
  }
}

TEST(Pipeline, StagesWithNothingToTrainPassOn) {
  const Shaped how{DType::f64, test::test_device(), 0, true};
  for (const Case& c : cases({4})) {
    if (c.ranks * c.chunks == 1) continue;  // all of it would be constant
    SCOPED_TRACE(name_of(c));
    const Result one = one_rank(c.ranks * c.chunks, c.micros, how);
    EXPECT_TRUE(one.gradients.front().empty());
    expect_same(pipelined(c, how), one);
  }
}

TEST(Pipeline, RunsAgainAndAddsToTheGradients) {
  for (const Case& c : cases({3})) {
    if (c.ranks > 4) continue;
    SCOPED_TRACE(name_of(c));
    const Result once = pipelined(c, {}), twice = pipelined(c, {}, 2);
    EXPECT_EQ(twice.losses, once.losses);
    for (std::size_t i = 0; i < once.gradients.size(); ++i) {
      for (std::size_t j = 0; j < once.gradients[i].size(); ++j) {
        EXPECT_NEAR(twice.gradients[i][j], 2 * once.gradients[i][j], 1e-12);
      }
    }
  }
}

TEST(Pipeline, EvaluatesWithoutGradients) {
  for (const Case& c : cases({1, 20})) {
    SCOPED_TRACE(name_of(c));
    const int stages = c.ranks * c.chunks;
    const Result one = one_rank(stages, c.micros, {});
    run_ranks(c.ranks, [&](Communicator& pp) {
      const Mlp mlp(first_layer(stages), {});
      Pipeline pipeline(pp, {c.kind, c.chunks, DType::f64, test::test_device()});
      PipelineWork work = work_of(mlp);
      work.after = [](const Action& a) { EXPECT_EQ(a.act, Act::forward); };
      const std::vector<Tensor> losses = pipeline.evaluate(c.micros, work);
      EXPECT_EQ(losses.empty(), pp.rank() != pipeline.loss_rank());
      for (const Tensor& loss : losses) EXPECT_FALSE(loss.requires_grad());
      if (!losses.empty()) {
        EXPECT_EQ(values(losses), one.losses);
      }
      for (const auto& grad : mlp.gradients(0, mlp.layers())) EXPECT_TRUE(grad.empty());
      EXPECT_EQ(pipeline.run(c.micros, work_of(mlp)).size(), losses.size());  // trains after it
    });
  }
}

TEST(Pipeline, TellsOfTheListsComputeAndDoesItAll) {
  for (const Case& c : cases({6})) {
    if (c.ranks > 4) continue;
    SCOPED_TRACE(name_of(c));
    run_ranks(c.ranks, [&](Communicator& pp) {
      const Mlp mlp(first_layer(c.ranks * c.chunks), {});
      Pipeline pipeline(pp, {c.kind, 0, DType::f64, test::test_device()});
      if (pipeline.stages() != c.ranks * c.chunks) return;  // 3 chunks are not the default
      PipelineWork work = work_of(mlp);
      std::vector<Action> before, after, expected;
      work.before = [&](const Action& a) { before.push_back(a); };
      work.after = [&](const Action& a) { after.push_back(a); };
      pipeline.run(c.micros, work);
      for (const Action& a : schedule(c.kind, c.ranks, c.chunks, c.micros, pp.rank())) {
        if (is_compute(a.act)) expected.push_back(a);
      }
      EXPECT_EQ(before, expected);
      EXPECT_EQ(after, expected);
    });
  }
}

// Weight gradients that are put off are not there after backward_input.
TEST(Pipeline, PutsWeightGradientsOff) {
  const Case c{Schedule::zero_bubble, test::on_gpu() ? 1 : 2, 2, 4};
  run_ranks(c.ranks, [&](Communicator& pp) {
    const Mlp mlp(first_layer(c.ranks * c.chunks), {});
    Pipeline pipeline(pp, {c.kind, c.chunks, DType::f64, test::test_device()});
    PipelineWork work = work_of(mlp);
    std::vector<double> seen;
    int changes = 0;
    const auto gradient = [&](int stage) {
      return mlp.gradients(first_layer(stage), first_layer(stage) + 1)[0];
    };
    work.before = [&](const Action& a) { seen = gradient(a.stage); };
    work.after = [&](const Action& a) {
      const std::vector<double> now = gradient(a.stage);
      if (a.act == Act::backward_input && !seen.empty()) {
        EXPECT_EQ(now, seen) << describe(a);
      }
      if (a.act == Act::backward_weight) {
        EXPECT_NE(now, seen) << describe(a);
        ++changes;
      }
    };
    pipeline.run(c.micros, work);
    EXPECT_EQ(changes, 2 * c.micros);
  });
}

// Carries messages as late as a GPU may: what is sent must be the same memory with the same values until
// wait(). Writes down receives that are asked for.
class LateCommunicator final : public Communicator {
 public:
  LateCommunicator(std::unique_ptr<Communicator> own, Communicator& inner, std::vector<std::string>& log)
      : own_(std::move(own)), inner_(inner), log_(log) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  void barrier() override { inner_.barrier(); }
  void abort(const std::string& reason, int code) noexcept override { inner_.abort(reason, code); }
  std::unique_ptr<Communicator> split(int color) override {
    std::unique_ptr<Communicator> part = inner_.split(color);
    if (part == nullptr) return nullptr;
    Communicator& inner = *part;
    return std::make_unique<LateCommunicator>(std::move(part), inner, log_);
  }

 protected:
  class Late final : public Pending {
   public:
    Late(std::unique_ptr<Pending> inner, const std::vector<Message>& messages) : inner_(std::move(inner)) {
      for (const Message& m : messages) {
        if (m.way == Message::Way::send) sent_.push_back({m.values, bytes(m.values)});
      }
    }
    void wait() override {
      for (const auto& [values, before] : sent_) EXPECT_EQ(bytes(values), before) << "sent and then changed";
      inner_->wait();
    }

   private:
    static std::string bytes(const AnySpan& values) {
      return {static_cast<const char*>(values.data), values.bytes()};
    }
    std::unique_ptr<Pending> inner_;
    std::vector<std::pair<AnySpan, std::string>> sent_;
  };
  std::unique_ptr<Pending> do_exchange_async(const std::vector<Message>& messages) override {
    if (messages.size() == 1 && messages[0].way == Message::Way::receive) log_.push_back("ask");
    return std::make_unique<Late>(inner_.exchange_async(messages), messages);
  }
  void do_all_reduce(Span, Reduce) override { unused(); }
  std::unique_ptr<Pending> do_all_reduce_async(Span) override { unused(); }
  void do_all_gather(Span, Span) override { unused(); }
  std::unique_ptr<Pending> do_all_gather_async(Span, Span) override { unused(); }
  std::unique_ptr<Pending> do_reduce_scatter_async(Span, Span) override { unused(); }
  void do_broadcast(Span, int) override { unused(); }

 private:
  [[noreturn]] static void unused() { fail("a pipeline sends and receives alone"); }
  std::unique_ptr<Communicator> own_;
  Communicator& inner_;
  std::vector<std::string>& log_;
};

TEST(Pipeline, KeepsWhatIsSentAndAsksAhead) {
  if (test::on_gpu()) GTEST_SKIP() << "ranks are threads, which have one GPU";
  for (const Case& c : cases({7})) {
    SCOPED_TRACE(name_of(c));
    run_ranks(c.ranks, [&](Communicator& threads) {
      std::vector<std::string> log, expected;
      LateCommunicator pp(nullptr, threads, log);
      const Mlp mlp(first_layer(c.ranks * c.chunks), {});
      Pipeline pipeline(pp, {c.kind, c.chunks, DType::f64, Device::cpu});
      PipelineWork work = work_of(mlp);
      work.before = [&](const Action& a) { log.push_back(describe(a)); };
      pipeline.run(c.micros, work);
      // A receive is asked for before the forward or backward that precedes its own.
      std::string last;
      for (const Action& a : schedule(c.kind, c.ranks, c.chunks, c.micros, pp.rank())) {
        if (a.act == Act::receive_activation || a.act == Act::receive_gradient) expected.push_back("ask");
        if (!is_compute(a.act)) continue;
        if (!last.empty()) expected.push_back(last);
        last = describe(a);
      }
      expected.push_back(last);
      EXPECT_EQ(log, expected);
      log.clear();
      pipeline.evaluate(c.micros, work);
    });
  }
}

TEST(Pipeline, HasTheLayoutOfItsSchedule) {
  if (test::on_gpu()) GTEST_SKIP() << "ranks are threads, which have one GPU";
  run_ranks(3, [](Communicator& pp) {
    const Pipeline v(pp, {Schedule::zero_bubble, 0, DType::f64, Device::cpu});
    EXPECT_EQ(v.stages(), 6);
    EXPECT_EQ(v.local_stages(), (std::vector<int>{pp.rank(), 5 - pp.rank()}));
    EXPECT_EQ(v.loss_rank(), 0);
    const Pipeline plain(pp, {Schedule::one_f_one_b, 0, DType::f64, Device::cpu});
    EXPECT_EQ(plain.local_stages(), (std::vector<int>{pp.rank()}));
    EXPECT_EQ(plain.loss_rank(), 2);
    EXPECT_THROW(Pipeline(pp, {Schedule::one_f_one_b, 2, DType::f64, Device::cpu}), UserError);
  });
}

TEST(Pipeline, RunsOnMetaInVirtualTime) {
  const Shaped how{DType::f32, Device::meta, 0, false};
  run_ranks(4, [&](Communicator& pp) {
    current_stream(Device::meta).meta_ceilings = {1e9, 1e9, 1e9};
    const Mlp mlp(first_layer(8), how);
    Pipeline pipeline(pp, {Schedule::zero_bubble, 0, how.dtype, how.device});
    pipeline.measure(true);
    PipelineWork work = work_of(mlp);
    const std::vector<Tensor> losses = pipeline.run(5, work);
    EXPECT_EQ(losses.size(), pp.rank() == 0 ? 5U : 0U);
    EXPECT_EQ(pipeline.timeline().size(), 2U * 3U * 5U);
    for (const TimedAction& a : pipeline.timeline()) EXPECT_GT(a.end, a.begin) << describe(a.action);
    current_stream(Device::meta).meta_ceilings = {};
  });
}

// What the stages of all ranks slept, by one clock: a machine that is late wakes them late, and both count
// it.
class Naps {
 public:
  void nap(int rank) {
    const double begin = now();
    std::this_thread::sleep_for(std::chrono::duration<double>(kNap));
    const double end = now();
    const std::lock_guard lock(mutex_);
    of_[rank].push_back({begin, end});
  }
  void clear() {
    const std::lock_guard lock(mutex_);
    of_.clear();
  }
  std::pair<double, double> first(int rank) { return of_.at(rank).front(); }
  // Both ranks', awake and asleep, from `start` to the last one's end; and what of it they were awake.
  double seconds(double start) const {
    double end = start;
    for (const auto& [rank, naps] : of_) end = std::max(end, naps.back().second);
    return static_cast<double>(of_.size()) * (end - start);
  }
  double awake(double start) const {
    double rest = seconds(start);
    for (const auto& [rank, naps] : of_) {
      for (const auto& [begin, end] : naps) rest -= end - begin;
    }
    return rest;
  }

  static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  static constexpr double kNap = 0.04;

 private:
  std::mutex mutex_;
  std::map<int, std::vector<std::pair<double, double>>> of_;
};

// Stages that sleep need no core: GPipe's bubble of 2 ranks and 2 micro-batches is a third.
TEST(Pipeline, MeasuresItsBubble) {
  if (test::on_gpu()) GTEST_SKIP() << "ranks are threads, which have one GPU";
  Naps naps;
  run_ranks(2, [&](Communicator& pp) {
    const Mlp mlp(first_layer(2), {});
    Pipeline pipeline(pp, {Schedule::gpipe, 0, DType::f64, Device::cpu});
    const auto nap = [&] { naps.nap(pp.rank()); };
    PipelineWork work = work_of(mlp);
    const auto forward = work.forward;
    work.forward = [&](int stage, int micro, const Tensor& x) {
      nap();
      return autograd::when_backward(forward(stage, micro, x), nap);
    };
    EXPECT_EQ(pipeline.bubble_share(), 0);
    pipeline.run(2, work);
    EXPECT_TRUE(pipeline.timeline().empty());
    pp.barrier();
    naps.clear();
    pp.barrier();
    pipeline.measure(true);
    double start = Naps::now();
    pipeline.run(2, work);
    pp.barrier();
    ASSERT_EQ(pipeline.timeline().size(), 4U);
    double last = 0;
    for (const TimedAction& a : pipeline.timeline()) {
      EXPECT_GE(a.begin, last);
      EXPECT_GE(a.end - a.begin, Naps::kNap) << describe(a.action);
      last = a.end;
    }
    EXPECT_LE(pipeline.timeline().front().begin, naps.first(pp.rank()).first - start);
    EXPECT_GE(naps.first(1).first, naps.first(0).second);
    pp.all_reduce(std::span(&start, 1), Reduce::max);  // the step began when the last rank came
    // Rank 1 waits for the first forward and for the last backward, rank 0 for two of rank 1's in between.
    EXPECT_GE(naps.awake(start), 4 * Naps::kNap);
    EXPECT_NEAR(pipeline.bubble_share(), naps.awake(start) / naps.seconds(start), 0.12);
  });
}

std::string error_of(const std::function<void(PipelineWork&)>& spoil) {
  try {
    run_ranks(3, [&](Communicator& pp) {
      const Mlp mlp(first_layer(3), {});
      Pipeline pipeline(pp, {Schedule::one_f_one_b, 0, DType::f64, Device::cpu});
      PipelineWork work = work_of(mlp);
      spoil(work);
      pipeline.run(4, work);
    });
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing";
}

TEST(Pipeline, SaysWhatAStageGotWrong) {
  if (test::on_gpu()) GTEST_SKIP() << "ranks are threads, which have one GPU";
  const auto spoil_stage = [](int bad, const std::function<Tensor(const Tensor&)>& change) {
    return error_of([=](PipelineWork& work) {
      work.forward = [=, forward = work.forward](int stage, int micro, const Tensor& x) {
        const Tensor y = forward(stage, micro, x);
        return stage == bad && micro == 2 ? change(y) : y;
      };
    });
  };
  EXPECT_EQ(spoil_stage(-1, {}), "nothing");
  const std::string shape = spoil_stage(1, [](const Tensor& y) { return y.sliced(0, 0, 1); });
  EXPECT_NE(shape.find("stage 1 gave f64 [1, 7]"), std::string::npos) << shape;
  const std::string dtype = spoil_stage(0, [](const Tensor& y) { return y.to(DType::f32); });
  EXPECT_NE(dtype.find("stage 0 gave f32"), std::string::npos) << dtype;
  const std::string no_loss = spoil_stage(2, [](const Tensor&) { return Tensor::zeros({2}, DType::f64); });
  EXPECT_NE(no_loss.find("and not a loss"), std::string::npos) << no_loss;
  const std::string cut = spoil_stage(2, [](const Tensor& y) { return y.detached(); });
  EXPECT_NE(cut.find("stage 2 gives its input no gradient"), std::string::npos) << cut;
  const std::string thrown = spoil_stage(1, [](const Tensor&) -> Tensor { fail("a stage that breaks"); });
  EXPECT_NE(thrown.find("a stage that breaks"), std::string::npos) << thrown;
}

}  // namespace
}  // namespace ridge::parallel
