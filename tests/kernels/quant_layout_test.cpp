// What the GPU's products with codes rely on, checked on the CPU: the bits of decoded codes, and that every
// weight meets its x once.
#include "kernels/quant_layout.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "core/base/dtype.h"
#include "kernels/quant_bits.h"

namespace ridge::kernels {
namespace {

float half_of(std::uint32_t pair, int half) {
  bf16 value;
  value.bits = static_cast<std::uint16_t>(pair >> 16 * half);
  return static_cast<float>(value);
}

// The instructions' arithmetic: exact in f32, rounded to bf16.
struct HostOps {
  static std::uint32_t select(std::uint32_t word, std::uint32_t mask, std::uint32_t set) {
    return (word & mask) | set;
  }
  static std::uint32_t exclude(std::uint32_t word, std::uint32_t mask, std::uint32_t flip) {
    return (word & mask) ^ flip;
  }
  template <class F>
  static std::uint32_t each(std::uint32_t a, std::uint32_t b, const F& f) {
    std::uint32_t out = 0;
    for (int half = 0; half < 2; ++half)
      out |= std::uint32_t{bf16(f(half_of(a, half), half_of(b, half))).bits} << 16 * half;
    return out;
  }
  static std::uint32_t subtract(std::uint32_t a, std::uint32_t b) {
    return each(a, b, [](float x, float y) { return x - y; });
  }
  static std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
    return each(a, b, [](float x, float y) { return x * y; });
  }
};

// values[c] of column c.
std::vector<float> columns(const Eight& eight, PairOrder order) {
  std::vector<float> values(8);
  for (int half = 0; half < 8; ++half)
    values[static_cast<std::size_t>(column_of(order, half))] = half_of(eight.pair[half / 2], half % 2);
  return values;
}

float e4m3(std::uint32_t code) {
  const int exponent = static_cast<int>(code >> 3 & 15), mantissa = static_cast<int>(code & 7);
  const double magnitude = exponent == 0 ? mantissa / 512.0 : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  return static_cast<float>((code & 128) != 0 ? -magnitude : magnitude);
}

TEST(QuantBits, EveryInt4CodeInEveryPlace) {
  std::mt19937 engine(1);
  for (int place = 0; place < 8; ++place) {
    for (std::uint32_t code = 0; code < 16; ++code) {
      const std::uint32_t word =
          (static_cast<std::uint32_t>(engine()) & ~(15u << 4 * place)) | code << 4 * place;
      const auto values = columns(int4_eight<HostOps>(word), PairOrder::word);
      for (std::uint32_t c = 0; c < 8; ++c)
        ASSERT_EQ(values[c], kInt4Bias + static_cast<float>(word >> 4 * c & 15)) << word;
    }
  }
}

TEST(QuantBits, EveryByteInEveryPlace) {
  std::mt19937 engine(2);
  for (int place = 0; place < 8; ++place) {
    for (std::uint32_t code = 0; code < 256; ++code) {
      std::uint32_t words[2] = {static_cast<std::uint32_t>(engine()), static_cast<std::uint32_t>(engine())};
      std::uint32_t& word = words[place / 4];
      word = (word & ~(255u << place % 4 * 8)) | code << place % 4 * 8;
      Eight ints{}, floats{};
      for (std::uint32_t i = 0; i < 2; ++i) {
        int8_four<HostOps>(words[i], ints, 2 * i);
        e4m3_four<HostOps>(words[i], floats, 2 * i);
      }
      const auto whole = columns(ints, PairOrder::bytes), real = columns(floats, PairOrder::bytes);
      bool nan = false;
      for (std::uint32_t c = 0; c < 8; ++c) {
        const std::uint32_t byte = words[c / 4] >> c % 4 * 8 & 255;
        ASSERT_EQ(whole[c], static_cast<float>(static_cast<std::int8_t>(byte))) << byte;
        ASSERT_EQ(real[c], e4m3(byte)) << byte;
        nan = nan || (byte & 127) == 127;
      }
      EXPECT_EQ(((nan_e4m3(words[0]) | nan_e4m3(words[1])) & kNanBits) != 0, nan);
    }
  }
}

// Of one row and one unit: what lane q multiplies in step s, slot by slot, against where x was put.
template <class Layout>
void expect_each_column_once() {
  std::map<int, int> x_at;  // place in a unit of x, in eights, to its first column
  for (int eight = 0; eight < Layout::kColumns / 8; ++eight) x_at[Layout::place(eight)] = 8 * eight;
  ASSERT_EQ(x_at.size(), static_cast<std::size_t>(Layout::kColumns / 8)) << "two eights in one place";
  std::set<int> met;
  for (int q = 0; q < 4; ++q) {
    for (int e = 0; e < Layout::kEights; ++e) {
      const int first = Layout::column(q, e);
      EXPECT_EQ(first, q * Layout::kWords * 32 / Layout::kBits + 8 * e) << "a lane's columns are a run";
      EXPECT_EQ(x_at.at(Layout::place_of(q, e)), first);
      for (int c = 0; c < 8; ++c) met.insert(first + c);
    }
  }
  EXPECT_EQ(met.size(), static_cast<std::size_t>(Layout::kColumns));
  EXPECT_EQ(Layout::kBytes * 8, Layout::kColumns * Layout::kBits);
}

TEST(QuantLayout, EveryColumnMeetsItsX) {
  expect_each_column_once<UnitLayout<4, 4>>();
  expect_each_column_once<UnitLayout<4, 2>>();
  expect_each_column_once<UnitLayout<4, 1>>();
  expect_each_column_once<UnitLayout<8, 4>>();
}

TEST(QuantLayout, OrdersArePermutations) {
  for (const PairOrder order : {PairOrder::plain, PairOrder::word, PairOrder::bytes}) {
    std::set<int> met;
    for (int half = 0; half < 8; ++half) met.insert(column_of(order, half));
    EXPECT_EQ(met.size(), 8u);
  }
}

TEST(QuantLayout, WarpsOfAClusterShareTilesAndParts) {
  for (const int cluster : {1, 2, 4, 8}) {
    std::set<std::pair<int, int>> met;
    for (int rank = 0; rank < cluster; ++rank) {
      for (int warp = 0; warp < kQuantWarps; ++warp) {
        const WarpPlace place = warp_place(warp, rank, cluster);
        EXPECT_EQ(place.part / (kParts / cluster), rank) << "a block has x of its own parts alone";
        met.insert({place.part, place.tile});
      }
    }
    EXPECT_EQ(met.size(), static_cast<std::size_t>(kParts * cluster));
    EXPECT_EQ(met.rbegin()->second, cluster - 1);
  }
  for (const int units : {1, 5, 16, 32, 112, 1000}) {
    EXPECT_EQ(first_unit(0, units), 0);
    EXPECT_EQ(first_unit(kParts, units), units);
  }
}

TEST(QuantLayout, RowsOfXUseAllBanks) {
  for (const int columns : {32, 64, 96, 128, 4096, 14336}) {
    EXPECT_GE(x_row_bytes(columns), 2 * columns);
    EXPECT_EQ(x_row_bytes(columns) % 128, 64);
  }
}

TEST(QuantLayout, PartsAreAddedOnce) {
  std::vector<float> part(3 * kParts, 1000);
  for (int i = 0; i < kParts; ++i) part[static_cast<std::size_t>(3 * i)] = static_cast<float>(1 << i);
  EXPECT_EQ(add_parts(part.data(), 3), 65535);
}

int byte_of(std::uint32_t word, int i) { return static_cast<std::int8_t>(word >> 8 * i); }

TEST(QuantBits, Int4AsSignedBytes) {
  std::mt19937 engine(5);
  for (int turn = 0; turn < 1000; ++turn) {
    const auto word = static_cast<std::uint32_t>(engine());
    const std::uint32_t bytes[2] = {int4_high_halves<HostOps>(word << 4), int4_high_halves<HostOps>(word)};
    std::set<int> columns;
    for (int i = 0; i < 8; ++i) {
      const int column = int4_column_of_byte(i), code = static_cast<int>(word >> 4 * column & 15);
      ASSERT_EQ(byte_of(bytes[i / 4], i % 4), 16 * (code - 8)) << word << ", byte " << i;
      columns.insert(column);
    }
    ASSERT_EQ(columns.size(), 8u);
  }
}

TEST(QuantBits, WholeNumbersAreTheirDigits) {
  const auto value = [](std::int32_t whole) {
    const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(whole) + kWholeAbove);
    std::uint32_t bytes = digits_of(bits);
    int sum = 0;
    for (int d = 0; d < kDigits; ++d) {
      bytes ^= digit_sign(d) << 8 * d;
      sum += byte_of(bytes, d) << 8 * d;
    }
    return sum;
  };
  for (std::int32_t whole = -70000; whole <= 70000; ++whole) ASSERT_EQ(value(whole), whole);
  for (std::int32_t whole = -(1 << 22); whole <= 1 << 22; whole += 97) ASSERT_EQ(value(whole), whole);
  EXPECT_EQ(value(1 << 22), 1 << 22);
}

// Every eight columns of a row has bytes of its own, where the lane looks that has their codes.
template <class Layout>
void expect_byte_places() {
  const int units = 3;
  std::set<int> places;
  for (int i = 0; i < units * Layout::kColumns / 8; ++i) {
    const int unit = 8 * i / Layout::kColumns;
    int lanes = 0;
    for (int q = 0; q < 4; ++q) {
      for (int e = 0; e < Layout::kEights; ++e) {
        if (unit * Layout::kColumns + Layout::column(q, e) != 8 * i) continue;
        EXPECT_EQ(Layout::byte_place(i), unit * Layout::kColumns + Layout::byte_place_of(q, e));
        ++lanes;
      }
    }
    EXPECT_EQ(lanes, 1);
    for (int byte = 0; byte < 8; ++byte) places.insert(Layout::byte_place(i) + byte);
  }
  EXPECT_EQ(places.size(), static_cast<std::size_t>(units * Layout::kColumns));
  EXPECT_EQ(*places.rbegin(), units * Layout::kColumns - 1);
}

TEST(QuantLayout, BytesOfXLieWhereLanesLook) {
  expect_byte_places<UnitLayout<4, 1>>();
  expect_byte_places<UnitLayout<4, 2>>();
  expect_byte_places<UnitLayout<4, 4>>();
  expect_byte_places<UnitLayout<8, 4>>();
}

// What a warp reads at once, in the order in which the hardware takes its lanes: no bank twice.
template <int kWords>
void expect_chunks_apart() {
  constexpr int kLanes = 32 / kWords;  // that 128 bytes serve
  for (int unit = 0; unit < 8 / kWords; ++unit) {
    for (int first = 0; first < 32; first += kLanes) {
      std::set<int> banks;
      for (int lane = first; lane < first + kLanes; ++lane) {
        const int row = lane / 4, byte = unit * 16 * kWords + lane % 4 * 4 * kWords;
        const int at = row * 128 + 16 * chunk_place<kWords>(row, byte / 16) + byte % 16;
        for (int w = 0; w < kWords; ++w) banks.insert((at / 4 + w) % 32);
      }
      EXPECT_EQ(banks.size(), 32u) << kWords << " words, unit " << unit << ", lane " << first;
    }
  }
  for (int row = 0; row < 16; ++row) {
    std::set<int> places;
    for (int chunk = 0; chunk < 8; ++chunk) places.insert(chunk_place<kWords>(row, chunk));
    EXPECT_EQ(places.size(), 8u);
  }
}

TEST(QuantLayout, ChunksThatAreReadTogetherLieInOtherBanks) {
  expect_chunks_apart<1>();
  expect_chunks_apart<2>();
  expect_chunks_apart<4>();
}

// The table's rows and every stage's have half lines of their own, and fill all lines; a warp's stages follow
// each other but for one cut.
TEST(QuantLayout, StagesLieBetweenRowsOfTheTable) {
  constexpr int kWarps = 8, kHalf = kLineBytes / 2;
  for (const int of_warp : {3, 4, 5, 9}) {
    const int all = of_warp * kWarps;
    std::set<int> halves;
    for (int row = 0; row < 256; ++row) halves.insert(row * kLineBytes / kHalf);
    for (int i = 0; i < all; ++i) {
      EXPECT_EQ(stage_place(i, all) % kHalf, 0);
      for (int row = 0; row < kTileRows; ++row)
        EXPECT_TRUE(halves.insert((stage_place(i, all) + row * kLineBytes) / kHalf).second)
            << i << " of " << all;
    }
    EXPECT_EQ(halves.size() * kHalf, static_cast<std::size_t>(lines_bytes(all)));
    EXPECT_EQ((*halves.rbegin() + 1) * kHalf, lines_bytes(all));
    for (int warp = 0; warp < kWarps; ++warp) {
      int cuts = 0;
      for (int i = warp * of_warp + 1; i < (warp + 1) * of_warp; ++i) {
        if (stage_place(i, all) == stage_place(i - 1, all) + kStageLines) continue;
        EXPECT_TRUE(i == kStagesInTable || i == first_in_second(all));
        ++cuts;
      }
      EXPECT_LE(cuts, 1);
    }
  }
}

}  // namespace
}  // namespace ridge::kernels
