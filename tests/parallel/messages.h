// Messages and splits against values that all ranks can compute, in the memory of any device.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <set>
#include <vector>

#include "tests/parallel/collectives.h"

namespace ridge::test {

/// `shift` places further in the ring.
inline int neighbour(const parallel::Communicator& ranks, int shift) {
  return (ranks.rank() + shift + ranks.size()) % ranks.size();
}

/// Elements that tell apart who sent them, and as which of his messages.
template <class T>
std::vector<T> letter(int from, int number, std::size_t count) {
  return elements<T>(from * 5 + number, count);
}

template <class T>
void expect_equal(const std::vector<T>& got, const std::vector<T>& want, const char* what) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_EQ(to_double(got[i]), to_double(want[i])) << what << ", element " << i;
}

template <class T>
void expect_ring(parallel::Communicator& ranks, std::size_t count, Device device) {
  const int next = neighbour(ranks, 1), before = neighbour(ranks, -1);
  Values<T> mine(letter<T>(ranks.rank(), 0, count), device), got(std::vector<T>(count), device);
  ranks.exchange({ranks.send_to(next, mine.view()), ranks.receive_from(before, got.span())});
  expect_equal(got.read(), letter<T>(before, 0, count), "one way");
  // Both ways at once; of two ranks both are the same neighbour, and order tells the messages apart.
  Values<T> up(letter<T>(ranks.rank(), 1, count + 3), device),
      down(letter<T>(ranks.rank(), 2, count), device);
  Values<T> from_below(std::vector<T>(count + 3), device), from_above(std::vector<T>(count), device);
  ranks.exchange({ranks.send_to(next, up.span()), ranks.send_to(before, down.span()),
                  ranks.receive_from(before, from_below.span()),
                  ranks.receive_from(next, from_above.span())});
  expect_equal(from_below.read(), letter<T>(before, 1, count + 3), "up");
  expect_equal(from_above.read(), letter<T>(next, 2, count), "down");
}

template <class T>
void expect_all_to_all(parallel::Communicator& ranks, std::size_t count, Device device) {
  const auto size = static_cast<std::size_t>(ranks.size());
  const auto me = static_cast<std::size_t>(ranks.rank());
  Values<T> in(elements<T>(ranks.rank(), count * size), device), out(std::vector<T>(count * size), device);
  ranks.all_to_all(in.view(), out.span());
  std::vector<T> want;
  for (int r = 0; r < ranks.size(); ++r) {
    const std::vector<T> whole = elements<T>(r, count * size);
    for (std::size_t i = 0; i < count; ++i) want.push_back(whole[me * count + i]);
  }
  expect_equal(out.read(), want, "all_to_all");
}

template <class T>
void expect_messages_of(parallel::Communicator& ranks, Device device) {
  for (const std::size_t count : {0, 1, 7, 1001}) {
    expect_ring<T>(ranks, count, device);
    expect_all_to_all<T>(ranks, count, device);
  }
}

/// Many batches under way, waited for in another order than they were begun in, beside collectives.
inline void expect_batches_in_order(parallel::Communicator& ranks, Device device) {
  const int next = neighbour(ranks, 1), before = neighbour(ranks, -1);
  std::deque<Values<float>> sent, received;
  std::vector<std::unique_ptr<parallel::Pending>> pending;
  Values<float> sum(elements<float>(ranks.rank(), 5), device);
  for (int b = 0; b < 12; ++b) {
    sent.emplace_back(letter<float>(ranks.rank(), b, 40000), device);
    received.emplace_back(std::vector<float>(40000), device);
    pending.push_back(ranks.exchange_async(
        {ranks.send_to(next, sent.back().view()), ranks.receive_from(before, received.back().span())}));
    if (b == 6) ranks.all_reduce(sum.span());
  }
  for (auto it = pending.rbegin(); it != pending.rend(); ++it) (*it)->wait();
  for (int b = 0; b < 12; ++b)
    expect_equal(received[static_cast<std::size_t>(b)].read(), letter<float>(before, b, 40000), "a batch");
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(sum.read()[i], sum_of<float>(ranks.size(), i));
}

/// Messages in every type.
inline void expect_messages(parallel::Communicator& ranks, Device device) {
  expect_messages_of<float>(ranks, device);
  expect_messages_of<double>(ranks, device);
  expect_messages_of<bf16>(ranks, device);
  expect_messages_of<f16>(ranks, device);
  expect_messages_of<std::int32_t>(ranks, device);
  expect_messages_of<std::int64_t>(ranks, device);
  expect_messages_of<std::uint8_t>(ranks, device);
  expect_batches_in_order(ranks, device);
}

/// What is sent may be written over at once, and a send waits for nobody: host memory only. `count` elements.
inline void expect_sends_are_buffered(parallel::Communicator& ranks, std::size_t count) {
  const int next = neighbour(ranks, 1), before = neighbour(ranks, -1);
  std::vector<double> got(count), more(2), mine(count);
  const auto later = ranks.exchange_async({ranks.receive_from(before, std::span(got))});
  for (const int number : {1, 2}) {
    mine = letter<double>(ranks.rank(), number, number == 1 ? count : 2);
    ranks.exchange({ranks.send_to(next, std::span(mine))});
    std::fill(mine.begin(), mine.end(), -1.0);
  }
  ranks.exchange({ranks.receive_from(before, std::span(more))});
  later->wait();
  EXPECT_EQ(got, letter<double>(before, 1, count));
  EXPECT_EQ(more, letter<double>(before, 2, 2));
}

/// Sums over `group` the ranks in `world` of its members, which have to be `members`.
inline void expect_group(parallel::Communicator& group, int world_rank, const std::vector<int>& members,
                         Device device) {
  ASSERT_EQ(group.size(), static_cast<int>(members.size()));
  ASSERT_EQ(members[static_cast<std::size_t>(group.rank())], world_rank);
  std::vector<std::int64_t> all(members.size(), -1);
  Values<std::int64_t> mine({world_rank}, device), gathered(all, device);
  group.all_gather(mine.view(), gathered.span());
  EXPECT_EQ(gathered.read(), std::vector<std::int64_t>(members.begin(), members.end()));
  expect_ring<float>(group, 33, device);
  group.barrier();
}

inline std::vector<int> every(int step, int begin, int end) {
  std::vector<int> ranks;
  for (int r = begin; r < end; r += step) ranks.push_back(r);
  return ranks;
}

/// By remainder, by halves, of nobody, and of a part again; the whole goes on.
inline void expect_splits(parallel::Communicator& ranks, Device device) {
  const int me = ranks.rank(), n = ranks.size();
  const auto thirds = ranks.split(me % 3);
  expect_group(*thirds, me, every(3, me % 3, n), device);
  const auto upper = ranks.split(me == 0 ? -1 : 7);
  ASSERT_EQ(upper == nullptr, me == 0);
  if (upper) expect_group(*upper, me, every(1, 1, n), device);
  expect_group(ranks, me, every(1, 0, n), device);
  const auto halves = ranks.split_by([&](int r) { return r < n / 2 ? 4 : 2; });
  const int begin = me < n / 2 ? 0 : n / 2, end = me < n / 2 ? n / 2 : n;
  expect_group(*halves, me, every(1, begin, end), device);
  const auto part = halves->split(halves->rank() % 2);
  expect_group(*part, me, every(2, begin + halves->rank() % 2, end), device);
  expect_group(*thirds, me, every(3, me % 3, n), device);
}

}  // namespace ridge::test
