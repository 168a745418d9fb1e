#include "core/nn/rotary.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/core/ops/jacobian.h"

namespace ridge::nn {
namespace {

RopeConfig dynamic_config() {
  RopeConfig config{10000, 8, 32, {}};
  config.scaling.kind = kernels::RopeScaling::Kind::dynamic;
  config.scaling.factor = 2;
  return config;
}

double angle_of_last(const RotaryTable::Tables& tables, std::int64_t position) {
  const double c = tables.cos.sliced(0, position, position + 1).sliced(1, 3, 4).item();
  const double s = tables.sin.sliced(0, position, position + 1).sliced(1, 3, 4).item();
  return std::atan2(s, c);
}

TEST(RotaryTable, HasEnoughRowsAndGrows) {
  RotaryTable table(RopeConfig{10000, 6, 2048, {}});
  for (const std::int64_t positions : {1, 5, 64, 65, 1000, 3000}) {
    const auto& t = table.get(positions, test::test_device());
    ASSERT_GE(t.cos.dim(0), positions);
    ASSERT_EQ(t.cos.dim(1), 3);
    ASSERT_EQ(t.sin.shape(), t.cos.shape());
    const Tensor cos = t.cos.on(Device::cpu), sin = t.sin.on(Device::cpu);
    const std::int64_t p = positions - 1;
    for (std::int64_t i = 0; i < 3; ++i) {
      const double angle = static_cast<double>(p) * std::pow(10000.0, -static_cast<double>(2 * i) / 6);
      EXPECT_NEAR(cos.view<float>()(p, i), std::cos(angle), 3e-4);
      EXPECT_NEAR(sin.view<float>()(p, i), std::sin(angle), 3e-4);
    }
  }
}

TEST(RotaryTable, IsMadeOnceForALength) {
  RotaryTable table(RopeConfig{});
  const void* first = table.get(100, test::test_device()).cos.data();
  EXPECT_EQ(table.get(50, test::test_device()).cos.data(), first);
  EXPECT_EQ(table.get(128, test::test_device()).cos.data(), first);
  EXPECT_NE(table.get(129, test::test_device()).cos.dim(0), 128);
}

TEST(RotaryTable, DynamicAnglesFollowTheLengthOnlyPastTheModels) {
  RotaryTable table(dynamic_config());
  const double within = angle_of_last(table.get(8, test::test_device()), 7);
  EXPECT_EQ(angle_of_last(table.get(32, test::test_device()), 7), within);
  const double longer = angle_of_last(table.get(40, test::test_device()), 7);
  const double longest = angle_of_last(table.get(64, test::test_device()), 7);
  EXPECT_LT(longer, within);
  EXPECT_LT(longest, longer);
  EXPECT_EQ(angle_of_last(table.get(40, test::test_device()), 7), longer);
  EXPECT_EQ(angle_of_last(table.get(20, test::test_device()), 7),
            within);  // a shorter sequence has the model's own again
}

TEST(RotaryTable, MetaHasShapesAlone) {
  RotaryTable table(RopeConfig{});
  const auto& t = table.get(1 << 20, Device::meta);
  EXPECT_EQ(t.cos.device(), Device::meta);
  EXPECT_GE(t.cos.dim(0), 1 << 20);
  EXPECT_EQ(table.get(4, test::test_device()).cos.device(), test::test_device());
}

}  // namespace
}  // namespace ridge::nn
