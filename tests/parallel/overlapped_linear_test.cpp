// What products hide of their collectives, on the clock of simulated ranks, and that cutting changes no sums.
#include "parallel/overlapped_linear.h"

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/fill.h"
#include "parallel/simulated_communicator.h"
#include "parallel/tensor_parallel_benchmark.h"
#include "tests/core/models/reference.h"

namespace ridge::test {
namespace {

using parallel::SimulatedCommunicator;
using parallel::TensorParallelism;

constexpr std::int64_t kTokens = 4096, kInputs = 1024, kOutputs = 512;  // outputs: of one rank
constexpr int kRanks = 4;
constexpr double kProduct = 1e-3;  // s, of x w'; as long as either product of the backward pass

// Products last as stated, whatever they read.
class Overlap : public ::testing::Test {
 protected:
  void SetUp() override {
    Stream& stream = current_stream(Device::meta);
    before_ = {stream.meta_ceilings, stream.meta_device};
    const double flops = 2.0 * kTokens * kInputs * kOutputs;
    stream.meta_ceilings = {flops / kProduct, 1e18, 1e18};
    stream.meta_device = Device::cuda;
    stream.virtual_seconds = 0;
  }
  void TearDown() override {
    Stream& stream = current_stream(Device::meta);
    std::tie(stream.meta_ceilings, stream.meta_device) = before_;
    stream.virtual_seconds = 0;
  }

  // A network on which an all-reduce of [kTokens, columns] f32 lasts `seconds`.
  static parallel::SimulatedNetwork network(std::int64_t columns, double seconds) {
    return {2 * 0.75 * static_cast<double>(kTokens * columns) * 4 / seconds, 0};
  }

  struct Exposed {
    double forward, backward;  // s
  };
  static Exposed column(SimulatedCommunicator& ranks, bool sequence_parallel, int chunks) {
    const TensorParallelism how{&ranks, sequence_parallel, chunks};
    Tensor x =
        Tensor::empty({1, sequence_parallel ? kTokens / kRanks : kTokens, kInputs}, DType::f32, Device::meta);
    return measure(ranks, x, {kOutputs, kInputs},
                   [&](const Tensor& w) { return parallel::column_linear(how, x, {w}, {Tensor()}).first; });
  }
  static Exposed row(SimulatedCommunicator& ranks, bool sequence_parallel, int chunks) {
    const TensorParallelism how{&ranks, sequence_parallel, chunks};
    Tensor x = Tensor::empty({1, kTokens, kOutputs}, DType::f32, Device::meta);
    return measure(ranks, x, {kInputs, kOutputs},
                   [&](const Tensor& w) { return parallel::row_linear(how, x, w, {}); });
  }

 private:
  template <class F>
  static Exposed measure(SimulatedCommunicator& ranks, Tensor& x, const Shape& weight, const F& run) {
    Tensor w = Tensor::empty(weight, DType::f32, Device::meta);
    autograd::set_requires_grad(x, true);
    autograd::set_requires_grad(w, true);
    const Tensor y = run(w);
    const double forward = ranks.time().exposed_seconds;
    autograd::backward(y, Tensor::empty(y.shape(), DType::f32, Device::meta));
    return {forward, ranks.time().exposed_seconds - forward};
  }

  std::pair<Ceilings, Device> before_;
};

// The gradient of x is summed while that of the weight is computed.
TEST_F(Overlap, TheSumOfInputGradientsRunsBesideTheWeightsProduct) {
  for (const double seconds : {0.5 * kProduct, 3 * kProduct}) {
    SimulatedCommunicator ranks(network(kInputs, seconds), kRanks, 1);
    const Exposed exposed = column(ranks, false, 1);
    EXPECT_EQ(exposed.forward, 0);
    EXPECT_NEAR(exposed.backward, std::max(0.0, seconds - kProduct), 1e-9);
  }
}

// The last of n stages is all that is waited for.
TEST_F(Overlap, StagesOfARowsSumHideAllButTheLast) {
  for (const int chunks : {1, 2, 4, 8}) {
    SimulatedCommunicator ranks(network(kInputs, kProduct), kRanks, 1);
    const Exposed exposed = row(ranks, false, chunks);
    EXPECT_NEAR(exposed.forward, kProduct / chunks, 1e-9);
    EXPECT_EQ(exposed.backward, 0);
  }
}

TEST_F(Overlap, StagesOfASequenceHideGatheringAndScattering) {
  for (const int chunks : {2, 3, 6}) {
    SimulatedCommunicator plain(network(kInputs, kProduct), kRanks, 1),
        cut(network(kInputs, kProduct), kRanks, 1);
    const Exposed columns = column(plain, true, 1), columns_cut = column(cut, true, chunks);
    EXPECT_NEAR(columns.forward, kProduct / 2, 1e-9);  // an all-gather is half of an all-reduce
    // This rank's own rows are multiplied first; the others' come meanwhile.
    EXPECT_LT(columns_cut.forward, columns.forward / 2);
    EXPECT_LE(columns_cut.backward, columns.backward + 1e-12);
    SimulatedCommunicator plain_rows(network(kInputs, kProduct), kRanks, 1),
        cut_rows(network(kInputs, kProduct), kRanks, 1);
    const Exposed rows = row(plain_rows, true, 1), rows_cut = row(cut_rows, true, chunks);
    EXPECT_NEAR(rows.forward, kProduct / 2, 1e-9);
    EXPECT_NEAR(rows_cut.forward, kProduct / 2 / chunks, 1e-6);  // parts differ by a row
    EXPECT_NEAR(rows.backward, kProduct / 2, 1e-9);
    EXPECT_LT(rows_cut.backward, rows.backward / 2);
  }
}

// On a GPU: as many products as stages, and one more for this rank's own rows or a wrap-around.
TEST_F(Overlap, LaunchesStayFew) {
  Profiler profiler;
  current_stream(Device::meta).profiler = &profiler;
  SimulatedCommunicator ranks(network(kInputs, kProduct), kRanks, 1);
  const autograd::NoGradScope no_grad;
  const TensorParallelism how{&ranks, true, 2};
  const Tensor x = Tensor::empty({1, kTokens / kRanks, kInputs}, DType::f32, Device::meta);
  const Tensor w = Tensor::empty({kOutputs, kInputs}, DType::f32, Device::meta);
  const Tensor y = parallel::column_linear(how, x, {w}, {Tensor()}).first;
  parallel::row_linear(how, y, w.transposed(0, 1).contiguous_copy(), {});
  current_stream(Device::meta).profiler = nullptr;
  int products = 0;
  for (const LaunchRecord& record : profiler.records())
    products += std::string(record.op).starts_with("matmul") ? 1 : 0;
  EXPECT_LE(products, 4 + 2);
}

// More chunks than there are rows, samples of any number, several weights and biases: the plain sums.
TEST(OverlappedLinear, StagesChangeNothing) {
  const auto random = [](const Shape& shape, std::uint64_t seed) {
    const Tensor t = Tensor::empty(shape, DType::f64);
    kernels::normal<double>(current_stream(Device::cpu), t.view<double>(), 0, 1, {seed, 0});
    return t;
  };
  for (const std::int64_t B : {1, 2, 3}) {
    for (const bool sequence_parallel : {false, true}) {
      std::vector<Tensor> plain;
      for (const int chunks : {1, 2, 3, 4, 7, 50}) {
        std::vector<Tensor> got(2);
        parallel::run_ranks(2, [&](parallel::Communicator& tp) {
          const TensorParallelism how{&tp, sequence_parallel, chunks};
          const auto r = static_cast<std::uint64_t>(tp.rank());
          Tensor x = random({B, sequence_parallel ? 5 : 10, 6}, sequence_parallel ? 10 + r : 10);
          Tensor a = random({3, 6}, 20 + r), b = random({4, 6}, 30 + r), bias = random({4}, 40 + r);
          Tensor w = random({5, 7}, 50 + r), row_bias = random({5}, 60);
          for (Tensor* leaf : {&x, &a, &b, &bias, &w, &row_bias}) autograd::set_requires_grad(*leaf, true);
          const Tensor y = parallel::column_linear(how, x, {a, b}, {Tensor(), bias}).first;
          const Tensor z = parallel::row_linear(how, y, w, row_bias);
          autograd::backward(z, random(z.shape(), sequence_parallel ? 70 + r : 70));
          std::vector<double> all = values_of(z);
          for (const Tensor* leaf : {&x, &a, &b, &bias, &w, &row_bias}) {
            const auto gradient = values_of(autograd::grad_of(*leaf));
            all.insert(all.end(), gradient.begin(), gradient.end());
          }
          got[r] = Tensor::from(all, {static_cast<std::int64_t>(all.size())});
        });
        if (chunks == 1) plain = got;
        for (std::size_t r = 0; r < 2; ++r)
          EXPECT_LT(normalized_error(got[r], plain[r]), 1e-14) << B << " samples, " << chunks << " chunks";
      }
    }
  }
}

TEST(OverlappedLinear, OneRankIsAPlainLinear) {
  const auto self = parallel::self_communicator();
  const Tensor x = Tensor::full({2, 3, 4}, 0.5, DType::f64), w = Tensor::full({5, 4}, 2, DType::f64);
  for (const bool sequence_parallel : {false, true}) {
    const TensorParallelism how{self.get(), sequence_parallel, 3};
    const auto [y, whole] = parallel::column_linear(how, x, {w}, {Tensor()}, true);
    EXPECT_EQ(values_of(y), std::vector<double>(30, 4));
    EXPECT_EQ(whole.data(), x.data());
    EXPECT_EQ(values_of(parallel::row_linear(how, x, w, {})), std::vector<double>(30, 4));
  }
}

TEST(OverlappedLinear, IsTimedBesideItsProducts) {
  parallel::run_ranks(2, [&](parallel::Communicator& tp) {
    parallel::TensorParallelBenchmark benchmark{2, 8, 16, 24, true, 2, DType::f32, Device::cpu, 2};
    const parallel::TensorParallelTiming timing = parallel::benchmark_tensor_parallel(tp, benchmark);
    EXPECT_EQ(timing.flops, 18.0 * 2 * 8 * 16 * 12);
    EXPECT_GT(std::min({timing.products, timing.plain, timing.overlapped}), 0);
    benchmark.tokens = 7;
    EXPECT_THROW(parallel::benchmark_tensor_parallel(tp, benchmark), UserError);
  });
}

}  // namespace
}  // namespace ridge::test
