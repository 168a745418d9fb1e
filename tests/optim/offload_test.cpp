#include "optim/offload.h"

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "optim/optimizer.h"
#include "tests/core/models/reference.h"
#include "tests/core/ops/jacobian.h"

namespace ridge::optim {
namespace {

using test::random_tensor;
using test::same_bits;

struct Moved {
  Tensor value;
  std::vector<StateTensor> state;
};

// Three steps of a parameter with random gradients.
Moved moved(const std::string& rule, DType dtype, bool offload) {
  OptimizerOptions options;
  options.name = rule;
  options.momentum = 0.9;
  options.moments = rule == "adamw" && dtype == DType::bf16 ? DType::bf16 : DType::f32;
  options.offload = offload;
  Tensor value = random_tensor({37, 5}, 1, -1, 1, dtype);
  autograd::set_requires_grad(value, true);
  const auto optimizer = make_optimizer(options, {{"p", value, true}});
  for (std::uint64_t step = 0; step < 3; ++step) {
    autograd::leaf_of(value).grad = random_tensor(value.shape(), 2 + step, -1, 1, DType::f32);
    optimizer->step(1e-2, 1.0);
  }
  return {value.detached().on(Device::cpu), optimizer->state()};
}

TEST(Offload, MovesParametersToTheSameBits) {
  for (const char* rule : {"adamw", "sgd"}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Moved here = moved(rule, dtype, false), there = moved(rule, dtype, true);
      EXPECT_TRUE(same_bits(here.value, there.value)) << rule;
      ASSERT_EQ(here.state.size(), there.state.size());
      for (std::size_t i = 0; i < here.state.size(); ++i) {
        EXPECT_EQ(there.state[i].name, here.state[i].name);
        EXPECT_EQ(there.state[i].value.device(), Device::cpu);
        EXPECT_TRUE(same_bits(here.state[i].value.on(Device::cpu), there.state[i].value)) << rule << " " << i;
      }
    }
  }
}

// What meta says of a GPU: only the parameter at hand has its state there.
TEST(Offload, TakesTheStateOfOneParameterAtATime) {
  Stream& meta = current_stream(Device::meta);
  const Device before = meta.meta_device;
  meta.meta_device = Device::cuda;
  std::vector<TrainedParameter> parameters;
  for (int i = 0; i < 4; ++i) {
    Tensor value = Tensor::empty({1 << 14}, DType::f32, Device::meta);
    autograd::set_requires_grad(value, true);
    autograd::leaf_of(value).grad = Tensor::empty({1 << 14}, DType::f32, Device::meta);
    parameters.push_back({fmt::format("p{}", i), value});
  }
  OptimizerOptions options;
  options.offload = true;
  const auto moments = static_cast<std::size_t>(Purpose::moments);
  reset_memory_peaks(Device::meta);
  const std::int64_t live = memory_stats(Device::meta).live_by_purpose[moments];
  const auto optimizer = make_optimizer(options, parameters);
  EXPECT_EQ(memory_stats(Device::meta).live_by_purpose[moments], live);
  reset_memory_peaks(Device::meta);
  optimizer->step(1e-3, 1.0);
  EXPECT_EQ(memory_stats(Device::meta).peak_by_purpose[moments] - live, 2 * 4 << 14);
  meta.meta_device = before;
}

}  // namespace
}  // namespace ridge::optim
