// Ranks as threads with a stream each, for kernels of ranks that share memory; on a GPU their kernels run
// beside each other.
#pragma once

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "kernels/all_reduce_small.h"
#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {

/// The regions of all ranks, as of the time when each has made `uses` sums.
class Regions {
  using Layout = small_sum::Layout;

 public:
  Regions(int ranks, std::int64_t bytes, std::uint32_t uses = 0) : layout_(Layout::of(bytes)) {
    for (int r = 0; r < ranks; ++r) {
      regions_.emplace_back(static_cast<std::size_t>(layout_.bytes()));
      auto* words = reinterpret_cast<std::uint32_t*>(regions_.back().data());
      for (int c = 0; c < small_sum::kChannels; ++c) {
        words[Layout::use_word(c)] = uses;
        for (int from = 0; from < ranks; ++from) words[Layout::flag_word(c, from)] = uses;
      }
    }
  }
  SmallSumRanks of(int rank) {
    SmallSumRanks ranks;
    ranks.rank = rank;
    ranks.size = static_cast<int>(regions_.size());
    ranks.layout = layout_;
    for (std::size_t r = 0; r < regions_.size(); ++r) ranks.region[r] = regions_[r].data();
    return ranks;
  }

 private:
  Layout layout_;
  std::vector<Memory<std::byte>> regions_;
};

// Streams that share one of a GPU's few queues would wait for each other.
inline int most_ranks() { return on_gpu() ? 4 : 8; }

/// Of its own for each rank, where there is a device that runs beside the host.
inline Stream& stream_of(int rank) {
  if (!on_gpu()) return test_stream();  // the thread's own
  static std::deque<Stream>& streams =
      *new std::deque<Stream>;  // made by the main thread; ends with the test
  while (streams.size() <= static_cast<std::size_t>(rank))
    streams.emplace_back(Device::cuda, "rank", ridge::cuda::make_stream("rank"));
  return streams[static_cast<std::size_t>(rank)];
}

inline void run_threads(int ranks, const std::function<void(int rank)>& body) {
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&body, r] {
      if (on_gpu()) ridge::cuda::compute_stream();  // binds the thread to the GPU
      body(r);
    });
  }
  for (std::thread& t : threads) t.join();
}

/// Some value between -2 and 2, with all bits.
template <class T>
T value_of(int rank, std::uint32_t use, std::int64_t i) {
  std::uint32_t h = static_cast<std::uint32_t>(rank) * 0x9E3779B9u + use * 0x85EBCA6Bu +
                    static_cast<std::uint32_t>(i) * 0xC2B2AE35u;
  h = (h ^ h >> 15) * 0x2C1B3C6Du;
  h ^= h >> 12;
  return static_cast<T>(static_cast<float>(static_cast<std::int32_t>(h)) * 0x1p-30f);
}
}  // namespace ridge::kernels::testing
