// Products beside copies between peers that are threads: what comes out is what collectives give, whoever is
// late, and nobody waits for ever.
#include "parallel/peer_pieces.h"

#include <atomic>

#include "parallel/overlapped_linear.h"
#include "tests/parallel/tensor_parallel_run.h"
#include "tests/parallel/thread_peers.h"

namespace ridge::parallel {
namespace {

using test::HerePeers;
using test::SharedFlags;
using test::ThreadPeers;
using test::TpCase;

Tensor random(const Shape& shape, std::uint64_t seed, DType dtype = DType::f64) {
  const Tensor t = Tensor::empty(shape, dtype);
  visit_compute(dtype, [&]<class T>(std::type_identity<T>) {
    kernels::normal<T>(current_stream(Device::cpu), t.view<T>(), 0, 1, {seed, 0});
  });
  return t;
}

/// Two layers of one rank and their gradients.
class Layers {
 public:
  Layers(int rank, DType dtype) : rank_(static_cast<std::uint64_t>(rank)), dtype_(dtype) {
    a_ = random({3, 6}, 20 + rank_, dtype);
    b_ = random({4, 6}, 30 + rank_, dtype);
    bias_ = random({4}, 40 + rank_, dtype);
    w_ = random({5, 7}, 50 + rank_, dtype);
    row_bias_ = random({5}, 60, dtype);
    for (Tensor* leaf : leaves()) autograd::set_requires_grad(*leaf, true);
  }

  /// y and the gradient of x [B, t, 6].
  std::vector<Tensor> pass(const TensorParallelism& how, std::int64_t B, std::int64_t t, std::uint64_t seed) {
    Tensor x = random({B, t, 6}, 1000 * seed + rank_, dtype_);
    autograd::set_requires_grad(x, true);
    const Tensor y = column_linear(how, x, {a_, b_}, {Tensor(), bias_}).first;
    const Tensor z = row_linear(how, y, w_, row_bias_);
    autograd::backward(z, random(z.shape(), 2000 * seed + rank_, dtype_));
    return {z.detached(), autograd::grad_of(x)};
  }
  Tensor evaluate(const TensorParallelism& how, std::int64_t B, std::int64_t t, std::uint64_t seed) {
    const autograd::NoGradScope no_grad;
    const Tensor x = random({B, t, 6}, 3000 * seed + rank_, dtype_);
    return row_linear(how, column_linear(how, x, {a_, b_}, {Tensor(), bias_}).first, w_, row_bias_);
  }
  std::vector<Tensor> gradients() {
    std::vector<Tensor> all;
    for (const Tensor* leaf : leaves()) all.push_back(autograd::grad_of(*leaf));
    return all;
  }

 private:
  std::vector<Tensor*> leaves() { return {&a_, &b_, &bias_, &w_, &row_bias_}; }

  std::uint64_t rank_;
  DType dtype_;
  Tensor a_, b_, bias_, w_, row_bias_;
};

/// Steps of changing sizes whose gradients add up, with evaluation between; `late` may keep a rank back.
std::vector<Tensor> run_steps(const TensorParallelism& how, DType dtype, const std::function<void()>& late) {
  Layers layers(how.tp->rank(), dtype);
  std::vector<Tensor> all;
  std::uint64_t seed = 1;
  for (const std::int64_t B : {1, 2, 3, 2, 1, 2, 2}) {
    for (const std::int64_t t : {2, 5, 3}) {
      late();
      for (const Tensor& got : layers.pass(how, B, t, ++seed)) all.push_back(got);
      if (seed % 3 == 0) all.push_back(layers.evaluate(how, B, 2 * t, seed));
    }
  }
  for (const Tensor& gradient : layers.gradients()) all.push_back(gradient);
  return all;
}

class PiecesOfPeers : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Queues, PiecesOfPeers, ::testing::Values(false, true),
                         [](const auto& info) { return info.param ? "Serial" : "Parallel"; });

void expect_plain_sums(int size, bool serial, int chunks, DType dtype, double bound) {
  run_ranks(size, [&](Communicator& tp) {
    std::mt19937_64 engine(static_cast<std::uint64_t>(tp.rank()));
    const auto late = [&] {
      if (tp.rank() == 0 && engine() % 3 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds(engine() % 2000));
    };
    const auto want = run_steps({&tp, true, 1}, dtype, [] {});
    const auto peers = std::make_shared<PeerPieces>(std::make_shared<HerePeers>(tp, serial));
    const auto got = run_steps({&tp, true, chunks, peers}, dtype, late);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i)
      ASSERT_LT(test::normalized_error(got[i], want[i]), bound)
          << "tensor " << i << " of rank " << tp.rank() << " of " << size << ", chunks " << chunks;
  });
}

TEST_P(PiecesOfPeers, ProductsAreThoseBesideCollectives) {
  for (const int size : {2, 4, 8}) {
    for (const int chunks : {2, 3, 16}) expect_plain_sums(size, GetParam(), chunks, DType::f64, 1e-12);
    expect_plain_sums(size, GetParam(), 4, DType::f32, 1e-5);
    expect_plain_sums(size, GetParam(), 4, DType::bf16, 3e-2);
  }
}

TEST_P(PiecesOfPeers, TheSameBitsEachTime) {
  run_ranks(4, [&](Communicator& tp) {
    std::vector<std::vector<Tensor>> runs;
    for (int i = 0; i < 2; ++i) {
      const auto peers = std::make_shared<PeerPieces>(std::make_shared<HerePeers>(tp, GetParam()));
      runs.push_back(run_steps({&tp, true, 4, peers}, DType::bf16, [] {}));
    }
    for (std::size_t i = 0; i < runs[0].size(); ++i)
      EXPECT_EQ(test::values_of(runs[0][i]), test::values_of(runs[1][i])) << i;
  });
}

void expect_one_rank(const TpCase& c, const test::TpLayout& layout, double bound) {
  const test::Tensors weights = test::weights_of(c);
  const test::TpResult want = test::run_whole(c, weights);
  std::string where;
  double error = 0;
  run_ranks(layout.tp, [&](Communicator& tp) {
    const test::TpResult got = test::run_rank(c, weights, layout, tp, tp, Device::cpu);
    if (tp.rank() == 0) error = test::worst_of(got, want, where);
  });
  EXPECT_LT(error, bound) << c.name << ", tp " << layout.tp << ", chunks " << layout.chunks << ": " << where;
}

TEST_P(PiecesOfPeers, ModelsAreThoseOfOneRank) {
  TpCase plain{"plain"}, again{"recompute"}, adapted{"adapters"}, later{"weights later"}, one{"one sample"},
      three{"three samples"};
  again.recompute = models::Recompute::blocks;
  again.config.tied = again.config.qkv_bias = again.config.output_bias = again.config.mlp_bias = true;
  adapted.lora = true;
  later.defer = true;
  one.batch = 1;
  three.batch = 3;
  const auto peers = [](Communicator& tp) { return std::make_shared<HerePeers>(tp, GetParam()); };
  for (const TpCase& c : {plain, again, adapted, later, one, three}) {
    for (const int size : {2, 4, 8})
      expect_one_rank(c, {size, true, size == 8 ? 3 : 4, peers}, c.lora ? 1e-6 : 1e-10);
  }
  expect_one_rank(plain, {4, false, 4, peers}, 1e-10);  // no pieces: not used
}

/// Refuses memory above a size.
class SmallPeers final : public PeerGroup {
 public:
  SmallPeers(Communicator& ranks, std::int64_t most) : inner_(ranks), most_(most) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  std::optional<PeerBuffer> share(void* data, std::int64_t bytes) override {
    ++asked;
    return bytes > most_ ? std::nullopt : inner_.share(data, bytes);
  }
  PeerQueue& compute() override { return inner_.compute(); }
  std::unique_ptr<PeerQueue> make_queue() override { return inner_.make_queue(); }

  int asked = 0;

 private:
  HerePeers inner_;
  std::int64_t most_;
};

TEST(PeerPieces, WhatCannotBeSharedGoesThroughCollectives) {
  for (const std::int64_t most : {0, 700, 2000}) {  // bytes
    run_ranks(2, [&](Communicator& tp) {
      const auto want = run_steps({&tp, true, 1}, DType::f64, [] {});
      const auto group = std::make_shared<SmallPeers>(tp, most);
      SmallPeers& asked = *group;
      const auto peers = std::make_shared<PeerPieces>(group);
      const auto got = run_steps({&tp, true, 4, peers}, DType::f64, [] {});
      for (std::size_t i = 0; i < want.size(); ++i)
        ASSERT_LT(test::normalized_error(got[i], want[i]), 1e-12) << i;
      EXPECT_LE(asked.asked, 30);  // growing sizes, of a gather and of a sum
    });
  }
}

TEST(PeerPieces, MemoryIsSharedWhereASizeGrowsAndNotAgain) {
  run_ranks(2, [&](Communicator& tp) {
    const auto group = std::make_shared<SmallPeers>(tp, 1 << 30);
    SmallPeers& asked = *group;
    const TensorParallelism how{&tp, true, 4, std::make_shared<PeerPieces>(group)};
    Layers layers(tp.rank(), DType::f64);
    layers.pass(how, 2, 5, 1);
    const int first = asked.asked;
    EXPECT_GE(first, 4);
    for (std::uint64_t i = 0; i < 10; ++i) layers.pass(how, 2, 5, i);
    layers.pass(how, 1, 3, 1);
    EXPECT_EQ(asked.asked, first);
    layers.pass(how, 3, 5, 1);
    EXPECT_EQ(asked.asked, 2 * first);
  });
}

TEST(PeerPieces, OneGatherAndOneSumAtATime) {
  run_ranks(2, [&](Communicator& tp) {
    PeerPieces pieces(std::make_shared<HerePeers>(tp));
    const Tensor piece = random({1, 2, 3}, 1), whole = Tensor::zeros({1, 4, 3}, DType::f64);
    const auto make = [](const RowSelection&, const Tensor& to) { to.copy_from(random(to.shape(), 2)); };
    {
      const auto pull = PeerPull::start(pieces, piece, whole, 2, true);
      const auto sum = PeerSum::start(pieces, piece, make);
      EXPECT_THROW(PeerPull::start(pieces, piece, whole, 2, true), Error);
      EXPECT_THROW(PeerSum::start(pieces, piece, make), Error);
    }
    EXPECT_NE(PeerPull::start(pieces, piece, whole, 2, true), nullptr);
    EXPECT_NE(PeerSum::start(pieces, piece, make), nullptr);
  });
}

// The compute stream is a thread of its own from here on: the host is ahead of it.

constexpr std::int64_t kTokens = 3, kChannels = 41;

float value_of(int rank, int use, std::int64_t sample) {
  return static_cast<float>(rank * 10000 + use * 10 + static_cast<int>(sample));
}

/// One rank of many gathers and sums that follow each other; memory is used again at once.
class Rank {
 public:
  Rank(Communicator& ranks, SharedFlags& flags, bool serial)
      : size_(ranks.size()),
        rank_(ranks.rank()),
        engine_(static_cast<std::uint64_t>(ranks.rank()) + 17),
        group_(std::make_shared<ThreadPeers>(ranks, flags, serial, 3)),
        peers_(*group_),
        pieces_(std::make_unique<PeerPieces>(std::move(group_))) {
    piece_ = Tensor::zeros({kSamples, kTokens, kChannels}, DType::f32);
    sum_ = Tensor::zeros(piece_.shape(), DType::f32);
    whole_ = Tensor::zeros({kSamples, kTokens * size_, kChannels}, DType::f32);
  }

  void gather(int use, int stages, bool own, bool with_sum) {
    run([this, use] {
      for (std::int64_t b = 0; b < kSamples; ++b) set(piece_.sliced(0, b, b + 1), value_of(rank_, use, b));
      set(whole_, -1);  // what others use it for meanwhile
    });
    const auto pull = PeerPull::start(*pieces_, piece_, whole_, stages, own);
    if (with_sum) sum(use);
    for (int stage = 0; stage < pull->stages(); ++stage) {
      lag();
      pull->wait(stage, [&](const Tensor& rows, const RowSelection& where) {
        const bool mine = rows.data() == piece_.data();
        run([this, rows, use, mine, place = where.of(whole_)] { look(rows, place, use, mine); });
      });
    }
    if (!own) return;
    pull->wait();
    run([this, use] { look(whole_, whole_, use, false); });
  }

  void sum(int use) {
    run([this] { set(sum_, -1); });
    const auto sum = PeerSum::start(*pieces_, sum_, [&](const RowSelection& where, const Tensor& to) {
      const auto rank = first_token(where.of(whole_)) / kTokens;
      lag();
      run([this, to, use, rank] {
        for (std::int64_t b = 0; b < kSamples; ++b)
          set(to.sliced(0, b, b + 1), term(rank_, static_cast<int>(rank), use, b));
      });
    });
    lag();
    sum->wait_for_parts();
    run([this, use, parts = sum->parts()] {
      for (int r = 0; r < size_; ++r) {
        for (std::int64_t b = 0; b < kSamples; ++b) {
          const Tensor part = parts[static_cast<std::size_t>(r)].reshaped(piece_.shape()).sliced(0, b, b + 1);
          for (const double v : test::values_of(part)) wrong_ += v == term(r, rank_, use, b) ? 0 : 1;
        }
      }
    });
  }

  int wrong() {
    peers_.finish();
    return wrong_;
  }

  static constexpr std::int64_t kSamples = 2;

 private:
  static float term(int from, int to, int use, std::int64_t b) {
    return value_of(from, use, b) + static_cast<float>(to) * 1000;
  }
  void run(std::function<void()> what) { peers_.run(std::move(what)); }
  static void set(const Tensor& t, float value) {
    for (std::int64_t i = 0; i < t.dim(0); ++i) {
      const Tensor row = t.sliced(0, i, i + 1);
      row.copy_from(Tensor::full(row.shape(), value, DType::f32));
    }
  }
  std::int64_t first_token(const Tensor& part) const {
    return (part.view<float>().data - whole_.view<float>().data) / kChannels;
  }
  void look(const Tensor& rows, const Tensor& place, int use, bool mine) {
    const std::int64_t first = first_token(place);
    for (std::int64_t b = 0; b < kSamples; ++b) {
      for (std::int64_t t = 0; t < rows.dim(1); ++t) {
        const int rank = mine ? rank_ : static_cast<int>((first + t) / kTokens);
        const Tensor row = rows.sliced(0, b, b + 1).sliced(1, t, t + 1);
        for (const double v : test::values_of(row)) wrong_ += v == value_of(rank, use, b) ? 0 : 1;
      }
    }
  }
  void lag() {
    if (engine_() % 5 == 0) std::this_thread::sleep_for(std::chrono::microseconds(engine_() % 1500));
  }

  int size_, rank_;
  std::mt19937_64 engine_;
  std::atomic<int> wrong_ = 0;  // elements
  Tensor piece_, sum_, whole_;
  std::shared_ptr<ThreadPeers> group_;
  ThreadPeers& peers_;
  std::unique_ptr<PeerPieces> pieces_;
};

TEST_P(PiecesOfPeers, EveryUseSeesItsOwnValues) {
  for (const int size : {2, 3, 4, 8}) {
    SharedFlags flags;
    run_ranks(size, [&](Communicator& ranks) {
      Rank rank(ranks, flags, GetParam());
      for (int use = 1; use <= (size == 8 ? 20 : 60); ++use) {
        if (use % 3 != 0) rank.gather(use, 2 + use % 4, use % 2 == 0, use % 5 == 0);
        if (use % 4 != 0) rank.sum(use);
      }
      EXPECT_EQ(rank.wrong(), 0) << size << " ranks";
    });
  }
}

}  // namespace
}  // namespace ridge::parallel
