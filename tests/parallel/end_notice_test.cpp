#include "parallel/end_notice.h"

#include <gtest/gtest.h>

#include <memory>

namespace ridge::parallel {
namespace {

TEST(EndNoticeDeathTest, SaysItsLineAndLetsTheSignalEndTheProcess) {
  const auto body = [] {
    const EndNotice notice("rank 0 ended from outside");
    ::raise(SIGTERM);
  };
  EXPECT_EXIT(body(), ::testing::KilledBySignal(SIGTERM), "^rank 0 ended from outside\n$");
}

TEST(EndNoticeDeathTest, IsSilentOnceGone) {
  const auto body = [] {
    { const EndNotice notice("rank 0 ended from outside"); }
    ::raise(SIGTERM);
  };
  EXPECT_EXIT(body(), ::testing::KilledBySignal(SIGTERM), "^$");
}

TEST(EndNoticeDeathTest, OfSeveralTheOldestSpeaks) {
  const auto body = [] {
    auto first = std::make_unique<EndNotice>("the first");
    const EndNotice second("the second"), third("the third");
    first.reset();
    ::raise(SIGTERM);
  };
  EXPECT_EXIT(body(), ::testing::KilledBySignal(SIGTERM), "^the second\n$");
}

TEST(EndNoticeDeathTest, AProcessThatKnowsWhyItEndsSaysThatAlone) {
  const auto body = [] {
    const EndNotice first("the first"), second("the second");
    EndNotice::say("the network is gone");
    EndNotice::say("again");
    ::raise(SIGTERM);
  };
  EXPECT_EXIT(body(), ::testing::KilledBySignal(SIGTERM), "^the network is gone\n$");
}

TEST(EndNotice, LeavesAHandlerOfTheProgramAlone) {
  static volatile std::sig_atomic_t seen = 0;
  const auto before = ::signal(SIGTERM, [](int) { seen = 1; });
  {
    const EndNotice notice("not said");
    ::raise(SIGTERM);
  }
  EXPECT_EQ(seen, 1);
  ::raise(SIGTERM);  // still the program's
  ::signal(SIGTERM, before);
}

}  // namespace
}  // namespace ridge::parallel
