#include "tests/parallel/messages.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "core/base/error.h"

namespace ridge::parallel {
namespace {

class Messages : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, Messages, ::testing::Range(1, 9));

TEST_P(Messages, OfEveryType) {
  run_ranks(GetParam(), [](Communicator& ranks) { test::expect_messages(ranks, Device::cpu); });
}

TEST_P(Messages, ASendWaitsForNobody) {
  run_ranks(GetParam(), [](Communicator& ranks) { test::expect_sends_are_buffered(ranks, 1 << 16); });
}

TEST_P(Messages, GroupsSplit) {
  run_ranks(GetParam(), [](Communicator& ranks) { test::expect_splits(ranks, Device::cpu); });
}

TEST_P(Messages, EveryCollectiveInASplitOfASplit) {
  run_ranks(GetParam(), [](Communicator& ranks) {
    const auto half = ranks.split(ranks.rank() % 2);
    const auto part = half->split(half->rank() / 2);
    test::expect_collectives(*part, Device::cpu);
    test::expect_messages(*part, Device::cpu);
  });
}

TEST_P(Messages, MetaMovesNothing) {
  std::atomic<int> passed{0};
  run_ranks(GetParam(), [&](Communicator& ranks) {
    if (ranks.rank() > 0) return;  // nobody is waited for
    const std::size_t all = 4 * static_cast<std::size_t>(ranks.size());
    const DeviceSpan<float> whole{nullptr, all, Device::meta};
    const int last = ranks.size() - 1;
    ranks.exchange({ranks.send_to(last, whole), ranks.receive_from(last, whole)});
    ranks.all_to_all(whole, whole);
    ++passed;
  });
  EXPECT_EQ(passed.load(), 1);
}

TEST_P(Messages, BadOnesAreErrors) {
  run_ranks(GetParam(), [](Communicator& ranks) {
    std::vector<float> values(3 * static_cast<std::size_t>(ranks.size()) + 1);
    const std::span<float> span(values);
    ranks.exchange({});
    EXPECT_THROW(ranks.exchange({ranks.send_to(ranks.size(), span)}), Error);
    EXPECT_THROW(ranks.exchange({ranks.receive_from(-1, span)}), Error);
    const DeviceSpan<float> here{values.data(), values.size(), Device::cpu}, meta{nullptr, 4, Device::meta},
        gpu{nullptr, 4, Device::cuda}, fewer{values.data(), values.size() - 1, Device::cpu};
    EXPECT_THROW(ranks.exchange({ranks.send_to(0, here), ranks.receive_from(0, meta)}), Error);
    EXPECT_THROW(ranks.exchange({ranks.send_to(0, gpu)}), Error);
    EXPECT_THROW(ranks.all_to_all(fewer, here), Error);
    if (ranks.size() == 1) return;
    EXPECT_THROW(ranks.all_to_all(here, here), Error);  // no equal pieces
  });
}

TEST_P(Messages, WhatIsNotExpectedIsAnError) {
  const int last = GetParam() - 1;
  const auto send_three = [&](auto expected) {
    run_ranks(GetParam(), [&](Communicator& ranks) {
      std::vector<float> three(3);
      std::vector<Message> messages;
      if (ranks.rank() == 0) messages.push_back(ranks.send_to(last, std::span(three)));
      if (ranks.rank() == last) messages.push_back(ranks.receive_from(0, std::span(expected)));
      ranks.exchange(messages);
    });
  };
  send_three(std::vector<float>(3));
  EXPECT_THROW(send_three(std::vector<float>(2)), Error);
  EXPECT_THROW(send_three(std::vector<float>(4)), Error);
  EXPECT_THROW(send_three(std::vector<std::int32_t>(3)), Error);
}

// The error of the rank that failed, not an echo of it.
void expect_the_cause(int ranks, const std::function<void(Communicator&)>& body) {
  try {
    run_ranks(ranks, body);
    FAIL() << "no error";
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), "out of paper");
  }
}

TEST(MessagesAbort, EndsThoseWhoWaitForAMessage) {
  expect_the_cause(3, [](Communicator& ranks) {
    float value = 0;
    if (ranks.rank() == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      fail_user("out of paper");
    }
    ranks.exchange({ranks.receive_from(1, std::span(&value, 1))});
  });
}

TEST(MessagesAbort, EndsThoseWhoWaitInAnotherGroup) {
  expect_the_cause(4, [](Communicator& ranks) {
    const auto pair = ranks.split(ranks.rank() / 2);
    float value = 0;
    if (ranks.rank() == 3) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      fail_user("out of paper");
    }
    if (ranks.rank() == 0) pair->exchange({pair->receive_from(1, std::span(&value, 1))});
    if (ranks.rank() == 1) pair->split(0);
    pair->barrier();
  });
}

TEST(MessagesAbort, OfASplitEndsTheWhole) {
  const auto body = [](Communicator& ranks) {
    const auto alone = ranks.split(ranks.rank());
    if (ranks.rank() == 2) {
      alone->abort("out of paper", 1);
      return;
    }
    float value = 0;
    ranks.exchange({ranks.receive_from(2, std::span(&value, 1))});
  };
  try {
    run_ranks(3, body);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("out of paper"), std::string::npos) << error.what();
  }
}

TEST(MessagesAbort, IsSeenByGroupsThatAreMadeLater) {
  expect_the_cause(2, [](Communicator& ranks) {
    if (ranks.rank() == 1) fail_user("out of paper");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ranks.split(-1);
  });
}

TEST(SelfMessages, AreCopiedInPairs) {
  const auto self = self_communicator();
  test::expect_messages(*self, Device::cpu);
  test::expect_splits(*self, Device::cpu);
  std::vector<float> values(3), two(2);
  EXPECT_THROW(self->exchange({self->send_to(0, std::span(values))}), Error);
  EXPECT_THROW(self->exchange({self->send_to(0, std::span(values)), self->receive_from(0, std::span(two))}),
               Error);
  std::vector<std::int32_t> other(3);
  EXPECT_THROW(self->exchange({self->send_to(0, std::span(values)), self->receive_from(0, std::span(other))}),
               Error);
}

}  // namespace
}  // namespace ridge::parallel
