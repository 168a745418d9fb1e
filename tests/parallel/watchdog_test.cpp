#include "parallel/watchdog.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>

namespace ridge::parallel {
namespace {

using std::chrono::milliseconds;

// What a watchdog was told, and said.
class Watched {
 public:
  explicit Watched(milliseconds timeout, milliseconds grace = milliseconds(20))
      : dog_(
            Watchdog::Options{timeout, milliseconds(1), grace},
            [this] {
              const std::lock_guard lock(mutex_);
              return wrong_;
            },
            [this](const std::string& reason) {
              const std::lock_guard lock(mutex_);
              reasons_.push_back(reason);
            }) {}

  Watchdog& dog() { return dog_; }
  void go_wrong(const std::string& what) {
    const std::lock_guard lock(mutex_);
    wrong_ = what;
  }
  std::vector<std::string> reasons() {
    const std::lock_guard lock(mutex_);
    return reasons_;
  }
  // Until there is a reason, or a second has gone.
  std::vector<std::string> reasons_in_time() {
    for (int i = 0; i < 1000 && reasons().empty(); ++i) std::this_thread::sleep_for(milliseconds(1));
    return reasons();
  }
  bool empty_in_time() {
    for (int i = 0; i < 1000 && dog_.under_way() > 0; ++i) std::this_thread::sleep_for(milliseconds(1));
    return dog_.under_way() == 0;
  }

 private:
  std::mutex mutex_;
  std::string wrong_;
  std::vector<std::string> reasons_;
  Watchdog dog_;
};

constexpr milliseconds kLong(100000), kShort(30);

TEST(Watchdog, WhatIsDoneIsForgotten) {
  Watched watched(kLong);
  std::atomic<bool> first{false}, second{false};
  watched.dog().queued(*watched.dog().begin("all_reduce", 8, DType::f32), [&] { return first.load(); });
  watched.dog().queued(*watched.dog().begin("broadcast", 8, DType::f32), [&] { return second.load(); });
  second = true;  // it cannot have ended before the first
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(watched.dog().under_way(), 2u);
  first = true;
  EXPECT_TRUE(watched.empty_in_time());
  EXPECT_TRUE(watched.reasons().empty());
}

TEST(Watchdog, OneThatIsNotDoneIsNamedOnce) {
  Watched watched(kShort);
  watched.dog().queued(*watched.dog().begin("all_gather", 3, DType::i64), [] { return true; });
  watched.dog().queued(*watched.dog().begin("all_reduce", 1048576, DType::bf16), [] { return false; });
  watched.dog().begin("broadcast", 8, DType::f32);
  const auto reasons = watched.reasons_in_time();
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_EQ(
      reasons[0],
      "all_reduce #2 of 1048576 bf16 is not done after 0.03 s: another rank did not come to it, or hangs");
  std::this_thread::sleep_for(2 * kShort);
  EXPECT_EQ(watched.reasons().size(), 1u);
}

TEST(Watchdog, OneThatCannotEvenBeQueuedIsNamed) {
  Watched watched(kShort);
  watched.dog().begin("all_reduce", 5, DType::f64);
  const auto reasons = watched.reasons_in_time();
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_NE(reasons[0].find("all_reduce #1 of 5 f64"), std::string::npos) << reasons[0];
}

TEST(Watchdog, OneThatIsForgottenIsNotMissed) {
  Watched watched(kShort);
  watched.dog().forget(*watched.dog().begin("all_reduce", 5, DType::f64));
  std::this_thread::sleep_for(3 * kShort);
  EXPECT_TRUE(watched.reasons().empty());
}

TEST(Watchdog, WhatGoesWrongBesideIsSaidWithTheOldest) {
  Watched watched(kLong);
  watched.go_wrong("the network is gone");
  EXPECT_EQ(watched.reasons_in_time(), std::vector<std::string>{"the network is gone"});
  Watched busy(kLong);
  busy.dog().queued(*busy.dog().begin("all_reduce", 5, DType::f32), [] { return false; });
  busy.go_wrong("the network is gone");
  EXPECT_EQ(busy.reasons_in_time(), std::vector<std::string>{"all_reduce #1 of 5 f32: the network is gone"});
}

TEST(Watchdog, AnErrorOfTheDeviceIsLeftToTheCallerForAWhile) {
  const auto broken = []() -> bool { throw std::runtime_error("illegal address"); };
  {
    Watched watched(kLong, kLong);
    watched.dog().queued(*watched.dog().begin("all_reduce", 5, DType::f32), broken);
    std::this_thread::sleep_for(milliseconds(30));
    EXPECT_TRUE(watched.reasons().empty());
  }  // and ends at once
  Watched watched(kLong);
  watched.dog().queued(*watched.dog().begin("all_reduce", 5, DType::f32), broken);
  EXPECT_EQ(watched.reasons_in_time(), std::vector<std::string>{"illegal address"});
}

}  // namespace
}  // namespace ridge::parallel
