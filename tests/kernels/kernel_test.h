// What the kernel tests share: random arrays with odd strides, f64 values, errors, thread and meta checks.
// The same tests run on a GPU: arrays lie in memory that it can address.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/launch.h"
#include "core/base/threads.h"
#include "core/base/view.h"
#include "tests/test_device.h"

namespace ridge::kernels::testing {

using test::Memory;
using test::on_gpu;
using test::test_stream;
using test::wait_for_device;

using ComputeTypes = ::testing::Types<float, double, bf16>;

/// Rounding of one operation, relative to the greatest value, with a little room for sums.
template <class T>
constexpr double tolerance() {
  return std::is_same_v<T, double> ? 1e-13 : (std::is_same_v<T, float> ? 2e-6 : 5e-3);
}

inline std::int64_t offset_of(const Shape& shape, const Strides& strides, std::int64_t flat) {
  std::int64_t offset = 0;
  for (int d = shape.ndim() - 1; d >= 0; --d) {
    offset += flat % shape[d] * strides[d];
    flat /= shape[d];
  }
  return offset;
}

template <class T>
double get(View<T> view, std::int64_t flat) {
  return static_cast<double>(static_cast<acc_t<T>>(view.data[offset_of(view.shape, view.strides, flat)]));
}

/// Owns the memory behind a view.
template <class T>
class Array {
 public:
  explicit Array(const Shape& shape) : Array(shape, contiguous_strides(shape)) {}
  Array(const Shape& shape, const Strides& strides) : shape_(shape), strides_(strides) {
    std::int64_t size = 1;
    for (int d = 0; d < shape.ndim(); ++d) size += (shape[d] - 1) * strides[d];
    data_.assign(static_cast<std::size_t>(std::max<std::int64_t>(size, 1)), T());
  }
  /// Dense rows that lie `gap` elements apart.
  static Array gapped(const Shape& shape, std::int64_t gap = 5) {
    Shape padded = shape;
    padded[-1] += gap;
    return Array(shape, contiguous_strides(padded));
  }
  Array& randomize(std::uint64_t seed, double low = -2, double high = 2) {
    std::mt19937_64 engine(seed);
    std::uniform_real_distribution<double> draw(low, high);
    for (T& x : data_) x = static_cast<T>(static_cast<acc_t<T>>(draw(engine)));
    return *this;
  }
  View<T> view() {
    wait_for_device();
    return {data_.data(), shape_, strides_};
  }
  View<const T> in() const { return {data_.data(), shape_, strides_}; }
  Memory<T>& data() {
    wait_for_device();
    return data_;
  }
  std::vector<double> values() const {
    wait_for_device();
    std::vector<double> out;
    for (std::int64_t i = 0; i < numel(shape_); ++i) out.push_back(get(in(), i));
    return out;
  }

 private:
  Shape shape_;
  Strides strides_;
  Memory<T> data_;
};

/// max|got - want| / max|want|; a NaN or a wrong size is infinite. `floor` is the scale of terms that may
/// cancel.
inline double normalized_error(const std::vector<double>& got, const std::vector<double>& want,
                               double floor = 0) {
  double difference = 0, scale = std::max(floor, 1e-300);
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) != std::isnan(want[i])) return std::numeric_limits<double>::infinity();
    difference = std::max(difference, std::fabs(got[i] - want[i]));
    scale = std::max(scale, std::fabs(want[i]));
  }
  return difference / scale;
}

/// Restores the number of threads.
class ThreadScope {
 public:
  ThreadScope() : before_(thread_count()) {}
  ~ThreadScope() { set_thread_count(before_); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int before_;
};

/// `run()` returns a vector of results: the same bits with 1, 2 and 3 threads.
template <class Run>
void expect_same_bits_on_threads(const Run& run) {
  if (on_gpu()) GTEST_SKIP() << "threads are the CPU's";
  const ThreadScope scope;
  set_thread_count(1);
  const auto want = run();
  ASSERT_FALSE(want.empty());
  for (const int threads : {2, 3}) {
    set_thread_count(threads);
    const auto got = run();
    ASSERT_EQ(got.size(), want.size());
    EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(want[0])), 0)
        << threads << " threads";
  }
}

inline Stream& cpu() { return current_stream(Device::cpu); }

/// The one launch of `run(stream)` on meta: what it states as its work.
template <class Run>
LaunchRecord launched_on_meta(const Run& run) {
  Stream stream(Device::meta, "meta");
  Profiler profiler;
  stream.profiler = &profiler;
  run(stream);
  EXPECT_EQ(profiler.records().size(), 1u);
  return profiler.records().empty() ? LaunchRecord{"", -1, -1, 0, 0} : profiler.records().front();
}

template <class T>
View<T> meta_view(const Shape& shape) {
  return View<T>(nullptr, shape);
}

/// The message of the exception E that `run` throws.
template <class E, class Run>
std::string message_of(const Run& run) {
  try {
    run();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "no exception";
  return {};
}

}  // namespace ridge::kernels::testing
