#include "core/io/checksum.h"

#include <gtest/gtest.h>

#include "tests/core/io/io_test_util.h"

namespace ridge {
namespace {

std::span<const std::byte> bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

// The check value of CRC-32/ISCSI, and the vectors of RFC 3720 B.4.
TEST(Crc32c, GivesThePublishedValues) {
  EXPECT_EQ(crc32c({}), 0u);
  EXPECT_EQ(crc32c(bytes("123456789")), 0xE3069283u);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0})), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0xFF})), 0x62A8AB43u);
}

// From `printf ... | xxhsum -H3`.
TEST(Xxh3, GivesThePublishedValues) {
  EXPECT_EQ(checksum_text(xxh3_64({})), "2d06800538d394c2");
  EXPECT_EQ(checksum_text(xxh3_64(bytes("ridge"))), "7c893569fabd903d");
}

TEST(Xxh3, PiecesAndFilesGiveTheSameAsTheWhole) {
  std::mt19937 rng(5);
  const auto data = test::random_bytes(100'003, rng);
  Xxh3 hash;
  for (std::size_t i = 0; i < data.size();) {
    const std::size_t n = std::min<std::size_t>(rng() % 3000, data.size() - i);
    hash.update(std::span(data).subspan(i, n));
    i += n;
  }
  EXPECT_EQ(hash.digest(), xxh3_64(data));
  const Xxh3 moved = std::move(hash);
  EXPECT_EQ(moved.digest(), xxh3_64(data));
  test::TemporaryFolder folder;
  test::write_text(folder / "f", {reinterpret_cast<const char*>(data.data()), data.size()});
  EXPECT_EQ(xxh3_64_of_file(folder / "f"), xxh3_64(data));
  auto changed = data;
  changed[77'777] ^= std::byte{1};
  EXPECT_NE(xxh3_64(changed), xxh3_64(data));
  test::expect_contains(test::message_of([&] { xxh3_64_of_file(folder / "none"); }), folder / "none");
}

}  // namespace
}  // namespace ridge
