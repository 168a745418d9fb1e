// The line through latencies, against lines that are known.
#include "launch/decode_fit.h"

#include <gtest/gtest.h>

#include <vector>

#include "core/base/error.h"
#include "core/base/random.h"

namespace ridge {
namespace {

std::vector<double> line(std::size_t count, double base, double growth) {
  std::vector<double> y;
  for (std::size_t i = 0; i < count; ++i) y.push_back(base + growth * static_cast<double>(i));
  return y;
}

TEST(DecodeFit, FindsALine) {
  for (const std::size_t count : {2, 3, 63, 64, 65, 1000, 10007}) {
    const LatencyFit fit = fit_latency(line(count, 3e-3, 2e-7));
    EXPECT_NEAR(fit.base, 3e-3, 1e-7) << count;
    EXPECT_NEAR(fit.growth, 2e-7, 1e-9) << count;
    EXPECT_LT(fit.most, 2e-7);
  }
  const LatencyFit one = fit_latency(std::vector<double>{5});
  EXPECT_EQ(one.base, 5);
  EXPECT_EQ(one.growth, 0);
  EXPECT_THROW(fit_latency({}), Error);
}

// Noise moves it little, and late tokens, one in twenty-five of the second half and ten times as slow, not at
// all: they are jitter.
TEST(DecodeFit, LateTokensDoNotTurnIt) {
  std::vector<double> y = line(10000, 3e-3, 2e-7);
  for (std::size_t i = 0; i < y.size(); ++i) {
    y[i] += 1e-5 * (static_cast<double>(philox({1, 2}, i)[0]) * 0x1p-32 - 0.5);
    if (i % 25 == 24 && i > 5000) y[i] += 3e-2;
  }
  const LatencyFit fit = fit_latency(y);
  EXPECT_NEAR(fit.base, 3e-3, 2e-6);
  EXPECT_NEAR(fit.growth, 2e-7, 2e-10);
  EXPECT_NEAR(fit.p50, 0, 1e-6);
  EXPECT_NEAR(fit.p99, 3e-2, 2e-5);
  EXPECT_NEAR(fit.most, 3e-2, 2e-5);
}

}  // namespace
}  // namespace ridge
