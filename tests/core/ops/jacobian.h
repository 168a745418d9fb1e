// Checks an op's vjp against central differences in f64, on the device under test.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "core/autograd.h"
#include "core/base/random.h"
#include "core/tensor.h"
#include "tests/test_device.h"

namespace ridge::test {

/// Uniform in [lo, hi).
inline Tensor random_tensor(const Shape& shape, std::uint64_t stream, double lo = -1, double hi = 1,
                            DType dtype = DType::f64, Device device = test_device()) {
  const Tensor t = Tensor::empty(shape, DType::f64);
  std::uint64_t i = 0;
  for (double& value : t.span<double>()) {
    const auto words = philox({42, stream}, i++);
    value = lo + (hi - lo) * (static_cast<double>(words[0]) + 0.5) * 0x1p-32;
  }
  return t.to(dtype).on(device);
}

/// The same values behind strides that are not contiguous: a slice of a transposed tensor.
inline Tensor strided_copy(const Tensor& t) {
  if (t.ndim() < 2) return t;
  Shape shape = t.shape();
  std::swap(shape[0], shape[-1]);
  shape[0] += 2;
  const Tensor big = Tensor::full(shape, 1e30, t.dtype(), t.device());
  const Tensor view = big.sliced(0, 1, shape[0] - 1).transposed(0, -1);
  view.copy_from(t);
  return view;
}

using Fn = std::function<Tensor(const std::vector<Tensor>&)>;

// sum(fn(inputs) * weights) for a fixed random weighting.
inline double weighted(const Fn& fn, const std::vector<Tensor>& inputs, const Tensor& weights) {
  const autograd::NoGradScope no_grad;
  const Tensor y = fn(inputs).as_contiguous().on(Device::cpu), w = weights.on(Device::cpu);
  double sum = 0;
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    sum += y.span<double>()[static_cast<std::size_t>(i)] * w.span<double>()[static_cast<std::size_t>(i)];
  }
  return sum;
}

inline Tensor weights_for(const Fn& fn, const std::vector<Tensor>& inputs) {
  const autograd::NoGradScope no_grad;
  return random_tensor(fn(inputs).shape(), 999);
}

// Gradients of every input from the tape, of the weighted sum.
inline std::vector<Tensor> tape_gradients(const Fn& fn, std::vector<Tensor> inputs, const Tensor& weights) {
  for (Tensor& input : inputs) autograd::set_requires_grad(input, true);
  autograd::backward(fn(inputs), weights);
  std::vector<Tensor> grads;
  for (const Tensor& input : inputs) grads.push_back(autograd::grad_of(input));
  return grads;
}

inline Tensor numeric_gradient(const Fn& fn, std::vector<Tensor> inputs, std::size_t which,
                               const Tensor& weights) {
  constexpr double kStep = 1e-5;
  const Tensor base = inputs[which].contiguous_copy().on(Device::cpu);
  const Tensor grad = Tensor::empty(base.shape(), DType::f64);
  for (std::int64_t i = 0; i < base.numel(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    double value[2];
    for (const int side : {0, 1}) {
      const Tensor moved = base.contiguous_copy();
      moved.span<double>()[at] += side == 0 ? -kStep : kStep;
      inputs[which] = moved.on(test_device());
      value[side] = weighted(fn, inputs, weights);
    }
    grad.span<double>()[at] = (value[1] - value[0]) / (2 * kStep);
  }
  return grad;
}

inline void expect_close(const Tensor& got, const Tensor& want, double tolerance, const std::string& what) {
  ASSERT_TRUE(got.defined()) << what;
  ASSERT_EQ(got.shape(), want.shape()) << what;
  const Tensor a = got.as_contiguous().to(DType::f64).on(Device::cpu);
  const Tensor b = want.as_contiguous().to(DType::f64).on(Device::cpu);
  double scale = 1e-30, worst = 0;
  for (const double value : b.span<double>()) scale = std::max(scale, std::fabs(value));
  for (std::size_t i = 0; i < a.span<double>().size(); ++i) {
    const double difference = std::fabs(a.span<double>()[i] - b.span<double>()[i]);
    ASSERT_TRUE(std::isfinite(difference)) << what << " element " << i;
    worst = std::max(worst, difference);
  }
  EXPECT_LE(worst / std::max(scale, 1e-3), tolerance) << what;
}

/// Every input's gradient, with contiguous inputs and with strided ones.
inline void check_vjp(const Fn& fn, const std::vector<Tensor>& inputs, double tolerance = 1e-7) {
  const Tensor weights = weights_for(fn, inputs);
  std::vector<Tensor> strided;
  for (const Tensor& input : inputs) strided.push_back(strided_copy(input));
  const auto plain = tape_gradients(fn, inputs, weights);
  const auto from_strided = tape_gradients(fn, strided, weights);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Tensor want = numeric_gradient(fn, inputs, i, weights);
    expect_close(plain[i], want, tolerance, "gradient of input " + std::to_string(i));
    expect_close(from_strided[i], want, tolerance, "gradient of strided input " + std::to_string(i));
  }
}

}  // namespace ridge::test
