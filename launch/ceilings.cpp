#include "launch/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "core/base/cuda.h"
#include "core/base/threads.h"
#include "core/tensor.h"
#include "kernels/fill.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"

namespace ridge {
namespace {

constexpr std::int64_t kBuffer = std::int64_t{64} << 20;  // floats: 256 MiB, beyond every cache
constexpr std::int64_t kChunk = 1 << 18;                  // floats of one thread's turn

// The shortest of `runs` calls after one to warm up, in seconds.
template <class F>
double best_seconds(int runs, F&& body) {
  body();
  double best = 1e30;
  for (int run = 0; run < runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

Tensor filled(const Shape& shape, float value) {
  const Tensor t = Tensor::empty(shape, DType::f32);
  kernels::fill<float>(current_stream(Device::cpu), t.view<float>(), value);
  return t;
}

// Side of the matrices: about the same time for any number of threads, and pieces that are large enough.
std::int64_t matrix_side() {
  return 1536 * static_cast<std::int64_t>(std::max(1.0, std::round(std::cbrt(thread_count() / 2.0))));
}

double matmul_rate() {
  const std::int64_t n = matrix_side();
  const Tensor a = filled({n, n}, 0.5f), b = filled({n, n}, 0.25f), c = filled({n, n}, 0);
  const double seconds = best_seconds(6, [&] {
    kernels::matmul<float>(current_stream(Device::cpu), a.view<float>(), b.transposed(0, 1).view<float>(),
                           c.view<float>());
  });
  return 2.0 * static_cast<double>(n * n * n) / seconds;
}

double sum_of(const float* __restrict data, std::int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) sum += data[i];
  return static_cast<double>(sum);
}

double read_rate(const Tensor& buffer) {
  const float* data = buffer.view<float>().data;
  std::vector<double> sums(static_cast<std::size_t>(kBuffer / kChunk));
  const double seconds = best_seconds(4, [&] {
    parallel_for(kBuffer, kChunk, [&](std::int64_t begin, std::int64_t end) {
      sums[static_cast<std::size_t>(begin / kChunk)] = sum_of(data + begin, end - begin);
    });
  });
  check(sums.front() == static_cast<double>(kChunk), "every element is read");
  return static_cast<double>(buffer.bytes()) / seconds;
}

double copy_rate(const Tensor& from, const Tensor& to) {
  const double seconds = best_seconds(4, [&] {
    parallel_for(kBuffer, kChunk, [&](std::int64_t begin, std::int64_t end) {
      std::memcpy(to.view<float>().data + begin, from.view<float>().data + begin,
                  static_cast<std::size_t>(end - begin) * sizeof(float));
    });
  });
  return 2.0 * static_cast<double>(from.bytes()) / seconds;
}

// The shortest of `runs` repetitions on a GPU after two to warm up, in seconds.
template <class F>
double best_device_seconds(int runs, F&& body) {
  const Stream& stream = current_stream(Device::cuda);
  double best = 1e30;
  for (int run = -2; run < runs; ++run) {
    cuda::Event begin(true), end(true);
    begin.record(stream);
    body();
    end.record(stream);
    end.synchronize();
    if (run >= 0) best = std::min(best, end.nanoseconds_since(begin) * 1e-9);
  }
  return best;
}

template <class T>
double device_matmul_rate() {
  const std::int64_t n = std::is_same_v<T, bf16> ? 8192 : 4096;
  Stream& stream = current_stream(Device::cuda);
  const auto random = [&](std::uint64_t key) {
    const Tensor t = Tensor::empty({n, n}, dtype_of<T>, Device::cuda);
    kernels::normal<T>(stream, t.view<T>(), 0, 1, {key, 0});
    return t;
  };
  const Tensor a = random(1), b = random(2), c = random(3);
  const double seconds = best_device_seconds(
      12, [&] { kernels::matmul<T>(stream, a.view<T>(), b.transposed(0, 1).view<T>(), c.view<T>()); });
  return 2.0 * static_cast<double>(n * n * n) / seconds;
}

Ceilings measure_gpu(DType dtype) {
  constexpr std::int64_t kCount = std::int64_t{1} << 29;  // floats: 2 GiB, beyond the L2 cache
  Stream& stream = current_stream(Device::cuda);
  Ceilings roof;
  roof.flops_per_s = dtype == DType::bf16 ? device_matmul_rate<bf16>() : device_matmul_rate<float>();
  const Tensor a = Tensor::full({kCount}, 1, DType::f32, Device::cuda),
               b = Tensor::empty({kCount}, DType::f32, Device::cuda);
  const Tensor sum = Tensor::zeros({1}, DType::f64, Device::cuda);
  const double read = best_device_seconds(
      8, [&] { kernels::add_sum_of_squares<float>(stream, a.view<float>(), sum.view<double>()); });
  const double copy = best_device_seconds(8, [&] { cuda::copy(b.data(), a.data(), a.bytes(), stream); });
  roof.read_bytes_per_s = static_cast<double>(a.bytes()) / read;
  roof.copy_bytes_per_s = 2.0 * static_cast<double>(a.bytes()) / copy;
  return roof;
}

}  // namespace

Ceilings measure_ceilings(Device device, DType dtype) {
  const PurposeScope purpose(Purpose::workspace);
  if (device == Device::cuda) return measure_gpu(dtype);
  Ceilings roof;
  roof.flops_per_s = matmul_rate();
  const Tensor a = filled({kBuffer}, 1), b = filled({kBuffer}, 0);
  roof.read_bytes_per_s = read_rate(a);
  roof.copy_bytes_per_s = copy_rate(a, b);
  return roof;
}

}  // namespace ridge
