#include "parallel/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "core/base/error.h"
#include "parallel/schedule_price.h"

namespace ridge::parallel {
namespace {

using Lists = std::vector<std::vector<Action>>;

constexpr Schedule kAll[] = {Schedule::gpipe, Schedule::one_f_one_b, Schedule::interleaved, Schedule::zb_h1,
                             Schedule::zero_bubble};

std::vector<int> legal_chunks(Schedule kind) {
  if (kind == Schedule::interleaved) return {2, 3, 4};
  return {chunks_of(kind, 0)};
}

template <class F>
void for_every_shape(F&& f) {
  for (const Schedule kind : kAll) {
    for (const int chunks : legal_chunks(kind)) {
      for (const int ranks : {1, 2, 3, 4, 8}) {
        for (int micros = 1; micros <= 17; ++micros) {
          SCOPED_TRACE(
              fmt::format("{} ranks {} chunks {} micro-batches {}", name_of(kind), ranks, chunks, micros));
          f(kind, ranks, chunks, micros);
        }
      }
    }
  }
}

TEST(Schedule, EveryKindRunsAndDoesAllWorkOnce) {
  for_every_shape([](Schedule kind, int ranks, int chunks, int micros) {
    const Lists lists = schedules(kind, ranks, chunks, micros);
    EXPECT_NO_THROW(check_schedule(lists, ranks * chunks, micros));
    Lists forwards;
    for (const auto& list : lists) forwards.push_back(forward_only(list));
    EXPECT_NO_THROW(check_schedule(forwards, ranks * chunks, micros, false));
    for (int r = 0; r < ranks; ++r) {
      for (const Action& a : lists[static_cast<std::size_t>(r)]) {
        ASSERT_EQ(rank_of_stage(kind, ranks, chunks, a.stage), r) << describe(a);
      }
    }
  });
}

TEST(Schedule, StagesArePlacedAsTheSchedulesSay) {
  EXPECT_EQ(stages_of_rank(Schedule::one_f_one_b, 4, 1, 2), (std::vector<int>{2}));
  EXPECT_EQ(stages_of_rank(Schedule::interleaved, 4, 3, 1), (std::vector<int>{1, 5, 9}));
  EXPECT_EQ(stages_of_rank(Schedule::zero_bubble, 4, 2, 0), (std::vector<int>{0, 7}));
  EXPECT_EQ(stages_of_rank(Schedule::zero_bubble, 4, 2, 3), (std::vector<int>{3, 4}));
}

TEST(Schedule, ListsOfAPublishedFigure) {
  using enum Act;
  // PipeDream-Flush, rank 1 of 2, and ZB-H1's last rank of 2: its first weight gradient is put off.
  EXPECT_EQ(schedule(Schedule::one_f_one_b, 2, 1, 2, 1), (std::vector<Action>{{receive_activation, 1, 0},
                                                                              {forward, 1, 0},
                                                                              {backward, 1, 0},
                                                                              {send_gradient, 1, 0},
                                                                              {receive_activation, 1, 1},
                                                                              {forward, 1, 1},
                                                                              {backward, 1, 1},
                                                                              {send_gradient, 1, 1}}));
  EXPECT_EQ(schedule(Schedule::zb_h1, 2, 1, 2, 1), (std::vector<Action>{{receive_activation, 1, 0},
                                                                        {forward, 1, 0},
                                                                        {backward_input, 1, 0},
                                                                        {send_gradient, 1, 0},
                                                                        {receive_activation, 1, 1},
                                                                        {forward, 1, 1},
                                                                        {backward_input, 1, 1},
                                                                        {send_gradient, 1, 1},
                                                                        {backward_weight, 1, 0},
                                                                        {backward_weight, 1, 1}}));
}

// Narayanan et al., 2021, figure 4: device 1 of 4 with 2 chunks and 8 micro-batches.
TEST(Schedule, InterleavedIsThePapersOrder) {
  std::string order;
  for (const Action& a : schedule(Schedule::interleaved, 4, 2, 8, 0)) {
    if (is_compute(a.act))
      order += fmt::format("{}{}{} ", a.act == Act::forward ? "F" : "B", a.stage / 4, a.micro + 1);
  }
  EXPECT_EQ(order,
            "F01 F02 F03 F04 F11 F12 F13 F14 F05 F06 F07 B11 F08 B12 F15 B13 F16 B14 F17 B01 F18 B02 B03 B04 "
            "B15 B16 B17 B18 B05 B06 B07 B08 ");
}

TEST(Schedule, AtTheEndOfTheVNoMessagePasses) {
  for (const Action& a : schedule(Schedule::zero_bubble, 4, 2, 5, 3)) {
    EXPECT_FALSE(a.act == Act::send_activation && a.stage == 3) << describe(a);
    EXPECT_FALSE(a.act == Act::receive_activation && a.stage == 4) << describe(a);
    EXPECT_FALSE(a.act == Act::send_gradient && a.stage == 4) << describe(a);
  }
}

TEST(Schedule, MemoryIsBoundedAsTheSchedulesPromise) {
  for_every_shape([](Schedule kind, int ranks, int chunks, int micros) {
    for (int r = 0; r < ranks; ++r) {
      const int peak = peak_in_flight(schedule(kind, ranks, chunks, micros, r));
      const int interleaved = 2 * (ranks - 1 - r) + (chunks - 1) * ranks + 1;
      const std::map<Schedule, int> most{{Schedule::gpipe, micros},
                                         {Schedule::one_f_one_b, ranks - r},
                                         {Schedule::zb_h1, ranks},
                                         {Schedule::zero_bubble, 2 * ranks},
                                         {Schedule::interleaved, interleaved}};
      EXPECT_LE(peak, most.at(kind));
      if (kind <= Schedule::one_f_one_b) {
        EXPECT_EQ(peak, std::min(micros, most.at(kind)));
      }
    }
  });
}

double bubble(Schedule kind, int ranks, int chunks, int micros, StageTimes t = {}) {
  return price(schedules(kind, ranks, chunks, micros), {{t}}).bubble_share;
}

TEST(SchedulePrice, BubblesAreTheClosedForms) {
  const StageTimes uneven{1, 1.5, 0.75};
  for (const int p : {1, 2, 3, 4, 8}) {
    for (const int m : {1, 2, 5, 8, 16, 17}) {
      SCOPED_TRACE(fmt::format("{} ranks {} micro-batches", p, m));
      const double one = (p - 1.0) / (m + p - 1.0);
      for (const StageTimes& t : {StageTimes{}, uneven}) {
        EXPECT_NEAR(bubble(Schedule::gpipe, p, 1, m, t), one, 1e-12);
        EXPECT_NEAR(bubble(Schedule::one_f_one_b, p, 1, m, t), one, 1e-12);
        for (const int v : {2, 3, 4}) {
          if (m % p != 0) continue;
          EXPECT_NEAR(bubble(Schedule::interleaved, p, v, m, t), (p - 1.0) / (v * m + p - 1.0), 1e-12);
        }
      }
      if (m < 2 * p) continue;
      EXPECT_NEAR(bubble(Schedule::zb_h1, p, 1, m), (p - 1.0) / (3 * m + p - 1.0), 1e-12);
      EXPECT_NEAR(bubble(Schedule::zero_bubble, p, 2, m), (p - 1.0) / (6 * m + p - 1.0), 1e-12);
    }
  }
}

TEST(SchedulePrice, ZeroBubbleIsUnderFivePercentOfFourRanks) {
  EXPECT_LT(bubble(Schedule::zero_bubble, 4, 2, 16), 0.05);
  EXPECT_LT(bubble(Schedule::zb_h1, 4, 1, 16), bubble(Schedule::one_f_one_b, 4, 1, 16));
}

TEST(SchedulePrice, LinksThatHoldFewMessagesSlowNothingDown) {
  for_every_shape([](Schedule kind, int ranks, int chunks, int micros) {
    Lists lists = schedules(kind, ranks, chunks, micros);
    PipelineTimes times{{}, 0.2, 0.1};
    for (int s = 0; s < ranks * chunks; ++s) times.stages.push_back({1, 1 + s % 2 * 0.1, 0.9 - s % 3 * 0.1});
    for (int round = 0; round < 2; ++round) {  // then of the forwards alone
      EXPECT_DOUBLE_EQ(price(lists, times).makespan, price(lists, times, 1000).makespan);
      for (auto& list : lists) list = forward_only(list);
    }
  });
}

TEST(SchedulePrice, AFullLinkHoldsItsSenderBack) {
  Lists lists = schedules(Schedule::gpipe, 2, 1, 3);
  for (auto& list : lists) list = forward_only(list);
  const PipelineTimes times{{{1, 1, 1}, {0, 1, 1}}, 100, 0};
  // Sent at 1, 2 and 3; on a link for one message at 1, 101 and 201.
  EXPECT_DOUBLE_EQ(price(lists, times, 3).makespan, 103);
  EXPECT_DOUBLE_EQ(price(lists, times, 1).makespan, 301);
  EXPECT_THROW(price(lists, times, 0), Error);
}

TEST(SchedulePrice, MessagesAndUnevenStagesTakeTheirTime) {
  // 2 ranks, 1 micro-batch: F0 message F1 B1 message B0, nothing beside another.
  const Lists two = schedules(Schedule::one_f_one_b, 2, 1, 1);
  const PipelineTimes times{{{1, 2, 3}, {10, 20, 30}}, 0.25, 0.5};
  const PipelinePrice got = price(two, times);
  EXPECT_DOUBLE_EQ(got.makespan, 1 + 0.75 + 10 + 50 + 0.75 + 5);
  EXPECT_EQ(got.busy, (std::vector<double>{6, 60}));
  EXPECT_DOUBLE_EQ(got.bubble_share, 1 - 66 / (2 * got.makespan));
  // A link that takes longer than a forward: messages queue. The 3rd arrives after 1 + 3 * 4.
  const PipelinePrice slow = price(schedules(Schedule::gpipe, 2, 1, 3), {{{1, 0, 0}}, 0, 4});
  EXPECT_DOUBLE_EQ(slow.makespan, 1 + 3 * 4 + 1 + 3 * 4);
}

TEST(SchedulePrice, TransfersGoBesideComputeWhereWorkIsAhead) {
  const auto makespan = [](Schedule kind, double transfer) {
    return price(schedules(kind, 4, 1, 64), {{{1, 1, 1}}, 0, transfer}).makespan;
  };
  // GPipe shows a message's way in the first and the last micro-batch alone. 1F1B's ranks have no work ahead:
  // two micro-batches go round two ranks in 2 messages' time more.
  EXPECT_NEAR(makespan(Schedule::gpipe, 0.25), makespan(Schedule::gpipe, 0) + 2 * 3 * 0.25, 1e-9);
  EXPECT_GT(makespan(Schedule::one_f_one_b, 0.25), makespan(Schedule::one_f_one_b, 0) + 60 * 0.25);
  EXPECT_THROW(price(schedules(Schedule::gpipe, 3, 1, 1), {{{1, 1, 1}, {1, 1, 1}}, 0, 0}), Error);
}

TEST(Schedule, TheCheckFindsWhatIsWrong) {
  using enum Act;
  const auto broken = [](auto&& change) {
    Lists lists = schedules(Schedule::one_f_one_b, 2, 1, 3);
    change(lists);
    return lists;
  };
  const auto at = [](std::vector<Action>& list, const Action& a) {
    return std::find(list.begin(), list.end(), a);
  };
  const auto message = [](const Lists& lists) -> std::string {
    try {
      check_schedule(lists, 2, 3);
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing";
  };
  EXPECT_EQ(message(broken([](Lists&) {})), "nothing");
  // Each wants the other's message first.
  const Lists deadlock = broken([&](Lists& l) {
    l[0].erase(at(l[0], {receive_gradient, 0, 0}));
    l[0].insert(l[0].begin(), {receive_gradient, 0, 0});
  });
  EXPECT_NE(message(deadlock).find("deadlock"), std::string::npos) << message(deadlock);
  const Lists missing = broken([&](Lists& l) { l[1].erase(at(l[1], {backward, 1, 2})); });
  EXPECT_NE(message(missing).find("send_gradient of stage 1, micro-batch 2"), std::string::npos)
      << message(missing);
  const Lists unsent = broken([&](Lists& l) { l[1].erase(at(l[1], {receive_activation, 1, 2})); });
  EXPECT_NE(message(unsent).find("before its input"), std::string::npos) << message(unsent);
  const Lists twice = broken([&](Lists& l) { l[0].insert(at(l[0], {forward, 0, 1}), {forward, 0, 1}); });
  EXPECT_NE(message(twice).find("twice"), std::string::npos) << message(twice);
  const Lists early = broken([&](Lists& l) {
    std::iter_swap(at(l[1], {forward, 1, 0}), at(l[1], {backward, 1, 0}));
  });
  EXPECT_NE(message(early).find("before its input"), std::string::npos) << message(early);
  const Lists overtaking = broken([&](Lists& l) {
    std::iter_swap(at(l[1], {receive_activation, 1, 0}), at(l[1], {receive_activation, 1, 1}));
  });
  EXPECT_NE(message(overtaking).find("overtakes"), std::string::npos) << message(overtaking);
  const Lists lonely = broken([&](Lists& l) {
    l[1].resize(static_cast<std::size_t>(at(l[1], {receive_activation, 1, 2}) - l[1].begin()));
    l[0].resize(static_cast<std::size_t>(at(l[0], {receive_gradient, 0, 2}) - l[0].begin()));
  });
  EXPECT_NE(message(lonely).find("never received"), std::string::npos) << message(lonely);
  const Lists last_backward = broken([&](Lists& l) { l[0].erase(at(l[0], {backward, 0, 2})); });
  EXPECT_NE(message(last_backward).find("stage 0, micro-batch 2"), std::string::npos)
      << message(last_backward);
  const Lists moved = broken([&](Lists& l) { l[1].push_back({forward, 0, 1}); });
  EXPECT_NE(message(moved).find("stage 0 is on ranks"), std::string::npos) << message(moved);
  EXPECT_THROW(check_schedule(schedules(Schedule::gpipe, 2, 1, 4), 2, 3), Error);  // one too many
  EXPECT_THROW(check_schedule(schedules(Schedule::gpipe, 2, 1, 4), 3, 4), Error);  // a stage that nobody has
}

TEST(Schedule, NamesAndChunksAreChecked) {
  for (const Schedule kind : kAll) EXPECT_EQ(parse_schedule(name_of(kind)), kind);
  EXPECT_THROW(parse_schedule("1F1B"), UserError);
  EXPECT_EQ(chunks_of(Schedule::interleaved, 0), 2);
  EXPECT_EQ(chunks_of(Schedule::interleaved, 3), 3);
  EXPECT_EQ(chunks_of(Schedule::zero_bubble, 2), 2);
  EXPECT_THROW(chunks_of(Schedule::interleaved, 1), UserError);
  EXPECT_THROW(chunks_of(Schedule::one_f_one_b, 2), UserError);
  EXPECT_THROW(chunks_of(Schedule::zero_bubble, 3), UserError);
  EXPECT_THROW(chunks_of(Schedule::gpipe, -1), UserError);
  EXPECT_THROW(schedule(Schedule::gpipe, 2, 1, 0, 0), Error);
}

}  // namespace
}  // namespace ridge::parallel
