// Gathers and sums among peers that are threads: nobody sees half a change, and nobody waits for ever.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "core/base/dtype.h"
#include "parallel/peer_gather.h"
#include "parallel/peer_reduce.h"
#include "tests/parallel/thread_peers.h"

namespace ridge::parallel {
namespace {

using test::SharedFlags;
using test::ThreadPeers;

constexpr std::size_t kShard = 257;

int value_of(int rank, int version) { return rank * 1000 + version; }

/// This rank's shard, the gathered whole, and what comes of it.
class Gathering {
 public:
  Gathering(Communicator& ranks, SharedFlags& flags, bool serial, std::uint64_t seed)
      : size_(static_cast<std::size_t>(ranks.size())),
        mine_(kShard),
        whole_(kShard * size_),
        engine_(seed * 77 + static_cast<std::uint64_t>(ranks.rank())),
        peers_(ranks, flags, serial, seed),
        gather_(peers_),
        source_(*peers_.share(mine_.data(), kShard * sizeof(int))) {}

  // As an optimizer does: element by element.
  void change(int version) {
    gather_.before_change();
    const int value = value_of(peers_.rank(), version);
    peers_.run([this, value] { std::fill_n(mine_.begin(), kShard / 2, value); });
    lag();
    peers_.run([this, value] { std::fill(mine_.begin() + kShard / 2, mine_.end(), value); });
  }
  void publish() { gather_.sources_changed(); }
  void gather(int version) {
    peers_.run([this] { std::fill(whole_.begin(), whole_.end(), -1); });  // what others use it for meanwhile
    auto pending = gather_.start(source_, whole_.data());
    lag();
    if (engine_() % 4 != 0) pending->wait();
    pending.reset();  // waits too
    peers_.run([this, version] { look(version); });
  }
  void lag() {
    if (engine_() % 5 == 0) std::this_thread::sleep_for(std::chrono::microseconds(engine_() % 2000));
  }
  int draw(int most) { return static_cast<int>(engine_() % static_cast<std::uint64_t>(most)); }
  int wrong() {
    peers_.finish();
    return wrong_;
  }

 private:
  void look(int version) {
    for (std::size_t i = 0; i < whole_.size(); ++i)
      wrong_ += whole_[i] == value_of(static_cast<int>(i / kShard), version) ? 0 : 1;
  }

  std::size_t size_;
  std::vector<int> mine_, whole_;
  std::mt19937_64 engine_;
  std::atomic<int> wrong_ = 0;  // elements
  ThreadPeers peers_;           // ends before the memory does
  PeerGather gather_;
  PeerBuffer source_;
};

class PeerProtocol : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Queues, PeerProtocol, ::testing::Values(false, true),
                         [](const auto& info) { return info.param ? "Serial" : "Parallel"; });

TEST_P(PeerProtocol, EveryGatherSeesOneVersionOfEveryShard) {
  for (const int size : {2, 3, 4}) {
    SharedFlags flags;
    run_ranks(size, [&](Communicator& ranks) {
      Gathering run(ranks, flags, GetParam(), 5);
      for (int version = 1; version <= 60; ++version) {
        run.change(version);
        run.publish();
        run.lag();
        for (int n = run.draw(4); n > 0; --n) run.gather(version);  // each rank as often as it likes
      }
      EXPECT_EQ(run.wrong(), 0) << size << " ranks";
    });
  }
}

TEST_P(PeerProtocol, TheFirstGatherPublishes) {
  SharedFlags flags;
  run_ranks(3, [&](Communicator& ranks) {
    Gathering run(ranks, flags, GetParam(), 6);
    for (int version = 1; version <= 20; ++version) {
      run.change(version);
      if (version % 3 == 0) run.change(version);  // such as a checkpoint's parameters, one after another
      run.gather(version);
      run.gather(version);
    }
    EXPECT_EQ(run.wrong(), 0);
  });
}

TEST_P(PeerProtocol, ChangesThatNobodySeesAndRanksThatEndAtOnce) {
  SharedFlags flags;
  run_ranks(4, [&](Communicator& ranks) {
    Gathering run(ranks, flags, GetParam(), 7);
    for (int version = 1; version <= 30; ++version) {
      run.change(version);
      run.publish();
    }
    run.gather(30);
    EXPECT_EQ(run.wrong(), 0);
    run.gather(30);
  });
}

TEST_P(PeerProtocol, ShardsOfAWholeThatAllKeep) {
  SharedFlags flags;
  run_ranks(3, [&](Communicator& ranks) {
    std::vector<int> whole(kShard * 3);
    std::atomic<int> wrong = 0;
    ThreadPeers peers(ranks, flags, GetParam(), 8);
    PeerGather gather(peers);
    int* mine = whole.data() + static_cast<std::size_t>(ranks.rank()) * kShard;
    const PeerBuffer source = *peers.share(mine, kShard * sizeof(int));
    for (int version = 1; version <= 40; ++version) {
      gather.before_change();
      peers.run([&, version] { std::fill_n(mine, kShard, value_of(ranks.rank(), version)); });
      gather.start(source, whole.data())->wait();
      peers.run([&, version] {
        for (std::size_t i = 0; i < whole.size(); ++i)
          wrong += whole[i] == value_of(static_cast<int>(i / kShard), version) ? 0 : 1;
      });
    }
    peers.finish();
    EXPECT_EQ(wrong, 0);
  });
}

float term(int rank, int step, std::size_t i) {
  return 1.0F / (1.0F + static_cast<float>(rank + step) + static_cast<float>(i % 91));
}

/// The sum over ranks of one element, in their order.
template <class T>
float sum_of(int size, int step, std::size_t i) {
  float sum = static_cast<float>(T(term(0, step, i)));
  for (int r = 1; r < size; ++r) sum += static_cast<float>(T(term(r, step, i)));
  return sum;
}

template <class T>
void expect_sums(Communicator& ranks, SharedFlags& flags, bool serial, std::size_t buffers) {
  const auto size = static_cast<std::size_t>(ranks.size()),
             first = static_cast<std::size_t>(ranks.rank()) * kShard;
  std::vector<std::vector<T>> staging(buffers, std::vector<T>(size * kShard));
  std::vector<T> landing((size - 1) * kShard);
  std::vector<float> y(kShard);
  std::atomic<int> wrong = 0;
  ThreadPeers peers(ranks, flags, serial, 9);
  PeerReduceScatter reduce(peers);
  std::vector<std::unique_ptr<PeerReduceScatter::Staging>> shared;
  for (auto& values : staging)
    shared.push_back(reduce.share(values.data(), static_cast<std::int64_t>(values.size() * sizeof(T))));
  for (int step = 0; step < 60; ++step) {
    const std::size_t b = static_cast<std::size_t>(step) % buffers;
    PeerReduceScatter::Staging& buffer = *shared[b];
    reduce.before_write(buffer);
    peers.run([&, step, b] {
      for (std::size_t i = 0; i < staging[b].size(); ++i) staging[b][i] = T(term(ranks.rank(), step, i));
    });
    reduce.start(buffer, landing.data())->wait();
    const bool adds = step % 3 == 2;
    peers.run([&, step, adds] {
      const std::vector<float> before = y;
      reduce.sum<T>(current_stream(Device::cpu), buffer, landing.data(), View<float>(y.data(), {kShard}),
                    adds);
      for (std::size_t i = 0; i < kShard; ++i) {
        const float sum = sum_of<T>(ranks.size(), step, first + i);
        wrong += y[i] == (adds ? before[i] + sum : sum) ? 0 : 1;
      }
    });
  }
  peers.finish();
  EXPECT_EQ(wrong, 0);
}

TEST_P(PeerProtocol, SumsAreThoseOfTheRanksInOrder) {
  for (const int size : {2, 3, 4}) {
    std::array<SharedFlags, 3> flags;
    run_ranks(size, [&](Communicator& ranks) {
      expect_sums<float>(ranks, flags[0], GetParam(), 1);
      expect_sums<float>(ranks, flags[1], GetParam(), 2);
      expect_sums<bf16>(ranks, flags[2], GetParam(), 1);
    });
  }
}

TEST(PeerGroup, NoneWithoutAGpuOrWithOneRank) {
  std::string why;
  EXPECT_EQ(peer_group(*self_communicator(), &why), nullptr);
  EXPECT_NE(why, "");
}

}  // namespace
}  // namespace ridge::parallel
