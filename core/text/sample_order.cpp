#include "core/text/sample_order.h"

#include <bit>

#include "core/base/random.h"

namespace ridge {
namespace {

// A balanced Feistel network over 2 * half bits: a bijection whatever the round function (Luby and Rackoff,
// 1988).
std::uint64_t feistel(std::uint64_t value, int half, std::uint64_t key) {
  const std::uint64_t mask = (std::uint64_t{1} << half) - 1;
  std::uint64_t left = value >> half, right = value & mask;
  for (std::uint64_t round = 0; round < 6; ++round) {
    const std::uint64_t next = left ^ (mix_seed(key + round, right) & mask);
    left = right;
    right = next;
  }
  return (left << half) | right;
}

}  // namespace

std::int64_t SampleOrder::at(std::int64_t k) const {
  const auto n = static_cast<std::uint64_t>(samples_);
  const auto epoch = static_cast<std::uint64_t>(k) / n;
  std::uint64_t index = static_cast<std::uint64_t>(k) % n;
  if (!shuffled_) return static_cast<std::int64_t>(index);
  const int half = (std::bit_width(n) + 1) / 2;
  const std::uint64_t key = mix_seed(seed_, epoch);
  do {
    index = feistel(index, half, key);  // walks the cycle until it is back inside [0, n)
  } while (index >= n);
  return static_cast<std::int64_t>(index);
}

}  // namespace ridge
