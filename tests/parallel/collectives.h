// Every collective against values that all ranks can compute, in the memory of any device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/base/cuda.h"
#include "core/base/memory.h"
#include "core/base/stream.h"
#include "parallel/communicator.h"

namespace ridge::test {

/// Elements in the memory of the CPU or the GPU.
template <class T>
class Values {
 public:
  Values(const std::vector<T>& values, Device device)
      : count_(values.size()), storage_(device, static_cast<std::int64_t>(values.size() * sizeof(T))) {
    copy(storage_.data(), values.data());
  }

  std::vector<T> read() const {
    std::vector<T> values(count_);
    copy(values.data(), storage_.data());
    return values;
  }
  parallel::DeviceSpan<T> span() { return {data(), count_, storage_.device()}; }
  parallel::DeviceSpan<const T> view() const { return {data(), count_, storage_.device()}; }
  /// Piece `rank` of `pieces`.
  parallel::DeviceSpan<T> piece(int rank, int pieces) const {
    const std::size_t count = count_ / static_cast<std::size_t>(pieces);
    return {data() + static_cast<std::size_t>(rank) * count, count, storage_.device()};
  }

 private:
  T* data() const { return static_cast<T*>(storage_.data()); }
  void copy(void* to, const void* from) const {
    if (count_ == 0) return;
    if (storage_.device() == Device::cpu) {
      std::memcpy(to, from, count_ * sizeof(T));
      return;
    }
    Stream& stream = current_stream(Device::cuda);
    cuda::copy(to, from, static_cast<std::int64_t>(count_ * sizeof(T)), stream);
    cuda::synchronize(stream);
  }

  std::size_t count_;
  Storage storage_;
};

/// Of 8-bit integers small positive ones: sums of those that do not fit mean nothing.
template <class T>
T from_int(int value) {
  if constexpr (sizeof(T) == 1) return static_cast<T>((value + 1300) % 13);
  if constexpr (std::is_arithmetic_v<T>) return static_cast<T>(value);
  return T(static_cast<float>(value));
}

template <class T>
double to_double(T value) {
  if constexpr (std::is_arithmetic_v<T>) return static_cast<double>(value);
  return static_cast<double>(static_cast<float>(value));
}

/// As T holds it.
template <class T>
double as_double(int value) {
  return to_double(from_int<T>(value));
}

/// Small whole numbers: their sums over 8 ranks are exact in every floating type.
inline int element(int rank, std::size_t i) { return static_cast<int>((i * 7 + 5) % 11) * (rank + 1) - 13; }

template <class T>
std::vector<T> elements(int rank, std::size_t count) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = from_int<T>(element(rank, i));
  return values;
}

template <class T>
double sum_of(int ranks, std::size_t i) {
  double sum = 0;
  for (int r = 0; r < ranks; ++r) sum += as_double<T>(element(r, i));
  return sum;
}

template <class T>
void expect_reductions(parallel::Communicator& ranks, std::size_t count, Device device) {
  Values<T> sum(elements<T>(ranks.rank(), count), device), later(sum.read(), device),
      most(sum.read(), device);
  ranks.all_reduce(sum.span());
  const auto pending = ranks.all_reduce_async(later.span());
  ranks.all_reduce(most.span(), parallel::Reduce::max);
  pending->wait();
  const std::vector<T> sums = sum.read(), sums_later = later.read(), maxima = most.read();
  for (std::size_t i = 0; i < count; ++i) {
    double greatest = as_double<T>(element(0, i));
    for (int r = 1; r < ranks.size(); ++r) greatest = std::max(greatest, as_double<T>(element(r, i)));
    EXPECT_EQ(to_double(sums[i]), sum_of<T>(ranks.size(), i)) << "element " << i;
    EXPECT_EQ(to_double(sums_later[i]), sum_of<T>(ranks.size(), i)) << "element " << i;
    EXPECT_EQ(to_double(maxima[i]), greatest) << "element " << i;
  }
}

template <class T>
void expect_whole(const std::vector<T>& all, int ranks, std::size_t count) {
  for (int r = 0; r < ranks; ++r) {
    for (std::size_t i = 0; i < count; ++i) {
      EXPECT_EQ(to_double(all[static_cast<std::size_t>(r) * count + i]), as_double<T>(element(r, i)))
          << "element " << i << " of rank " << r;
    }
  }
}

template <class T>
void expect_gathers(parallel::Communicator& ranks, std::size_t count, Device device) {
  const std::vector<T> mine = elements<T>(ranks.rank(), count),
                       nothing(count * static_cast<std::size_t>(ranks.size()));
  std::vector<T> half_done = nothing;
  std::copy(mine.begin(), mine.end(), half_done.begin() + static_cast<std::ptrdiff_t>(count) * ranks.rank());
  const Values<T> piece(mine, device);
  Values<T> all(nothing, device), later(nothing, device), in_place(half_done, device);
  ranks.all_gather(piece.view(), all.span());
  const auto pending = ranks.all_gather_async(piece.view(), later.span());
  const auto place = in_place.piece(ranks.rank(), ranks.size());
  ranks.all_gather(parallel::DeviceSpan<const T>{place.data, place.count, place.device}, in_place.span());
  pending->wait();
  expect_whole(all.read(), ranks.size(), count);
  expect_whole(later.read(), ranks.size(), count);
  expect_whole(in_place.read(), ranks.size(), count);
}

template <class T>
void expect_scatters(parallel::Communicator& ranks, std::size_t count, Device device) {
  const std::vector<T> whole = elements<T>(ranks.rank(), count * static_cast<std::size_t>(ranks.size()));
  Values<T> all(whole, device), in_place(whole, device), mine(std::vector<T>(count), device);
  const auto pending = ranks.reduce_scatter_async(all.view(), mine.span());
  ranks.reduce_scatter(in_place.view(), in_place.piece(ranks.rank(), ranks.size()));
  pending->wait();
  const std::vector<T> sums = mine.read(), sums_in_place = in_place.read();
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = static_cast<std::size_t>(ranks.rank()) * count + i;
    EXPECT_EQ(to_double(sums[i]), sum_of<T>(ranks.size(), at)) << "element " << i;
    EXPECT_EQ(to_double(sums_in_place[at]), sum_of<T>(ranks.size(), at)) << "element " << i;
  }
}

template <class T>
void expect_broadcasts(parallel::Communicator& ranks, std::size_t count, Device device) {
  for (int root = 0; root < ranks.size(); ++root) {
    Values<T> values(elements<T>(ranks.rank(), count), device);
    ranks.broadcast(values.span(), root);
    const std::vector<T> got = values.read();
    for (std::size_t i = 0; i < count; ++i)
      EXPECT_EQ(to_double(got[i]), as_double<T>(element(root, i))) << "element " << i;
  }
}

template <class T>
void expect_all_of(parallel::Communicator& ranks, Device device) {
  for (const std::size_t count : {0, 1, 7, 1001}) {
    expect_reductions<T>(ranks, count, device);
    expect_gathers<T>(ranks, count, device);
    expect_scatters<T>(ranks, count, device);
    expect_broadcasts<T>(ranks, count, device);
  }
}

/// All collectives, in every type.
inline void expect_collectives(parallel::Communicator& ranks, Device device) {
  expect_all_of<float>(ranks, device);
  expect_all_of<double>(ranks, device);
  expect_all_of<bf16>(ranks, device);
  expect_all_of<f16>(ranks, device);
  expect_all_of<std::int64_t>(ranks, device);
  expect_all_of<std::int32_t>(ranks, device);
  expect_all_of<std::uint8_t>(ranks, device);
  expect_all_of<std::int8_t>(ranks, device);
}

}  // namespace ridge::test
