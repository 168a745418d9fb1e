#include <gtest/gtest.h>

#include "core/io/hdf5.h"
#include "core/io/slab.h"
#include "tests/core/io/io_test_util.h"

namespace ridge {
namespace {

using test::expect_contains;
using test::message_of;
using test::TemporaryFolder;
using Bytes = std::vector<std::byte>;

constexpr std::int64_t kRows = 11, kColumns = 6;

// A random bf16 [11, 6], cut by rows into three rank files (4, 0 and 7 rows), and by columns into two more.
class VirtualDataset : public ::testing::Test {
 protected:
  VirtualDataset() {
    std::mt19937 rng(9);
    all_ = test::random_bytes(kRows * kColumns * 2, rng);
    write("rank0.h5", {0, 0}, {4, kColumns});
    write("rank1.h5", {4, 0}, {0, kColumns});
    write("rank2.h5", {4, 0}, {7, kColumns});
    write("left.h5", {0, 0}, {kRows, 2});
    write("right.h5", {0, 2}, {kRows, 4});
  }

  Bytes box(const Extents& at, const Extents& extent) const {
    Bytes out;
    for (std::int64_t r = at[0]; r < at[0] + extent[0]; ++r) {
      for (std::int64_t b = (r * kColumns + at[1]) * 2; b < (r * kColumns + at[1] + extent[1]) * 2; ++b) {
        out.push_back(all_[static_cast<std::size_t>(b)]);
      }
    }
    return out;
  }

  void write(const std::string& name, const Extents& at, const Extents& extent) {
    Hdf5File file = Hdf5File::create(folder_ / name);
    file.write_dataset("params/w", DType::bf16, extent, box(at, extent));
    pieces_.push_back({name, "params/w", at, extent});
  }

  Hdf5File index(std::vector<VirtualPiece> pieces) {
    Hdf5File file = Hdf5File::create(folder_ / "index.h5");
    file.create_virtual("params/w", DType::bf16, Extents{kRows, kColumns}, pieces);
    file.close();
    return Hdf5File::open(folder_ / "index.h5");
  }

  std::string message_for(std::vector<VirtualPiece> pieces) {
    return message_of<Error>([&] { index(std::move(pieces)); });
  }

  TemporaryFolder folder_;
  Bytes all_;
  std::vector<VirtualPiece> pieces_;
};

TEST_F(VirtualDataset, JoinsRows) {
  const Hdf5File file = index({pieces_[0], pieces_[1], pieces_[2]});
  Bytes out(all_.size());
  file.read_dataset("params/w", DType::bf16, Extents{kRows, kColumns}, out);
  EXPECT_EQ(out, all_);
  Bytes part(5 * 3 * 2);
  file.read_slab("params/w", DType::bf16, Extents{2, 1}, Extents{5, 3}, part);  // across the seam
  EXPECT_EQ(part, box({2, 1}, {5, 3}));
}

TEST_F(VirtualDataset, JoinsColumns) {
  const Hdf5File file = index({pieces_[4], pieces_[3]});
  Bytes out(all_.size());
  file.read_dataset("params/w", DType::bf16, Extents{kRows, kColumns}, out);
  EXPECT_EQ(out, all_);
}

TEST_F(VirtualDataset, IsFoundFromAnyWorkingFolderAndWhileASourceIsOpen) {
  index({pieces_[0], pieces_[2]});
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path("/");
  const Hdf5File source = Hdf5File::open(folder_ / "rank0.h5");
  const Hdf5File file = Hdf5File::open(folder_ / "index.h5");
  Bytes out(all_.size());
  file.read_dataset("params/w", DType::bf16, Extents{kRows, kColumns}, out);
  std::filesystem::current_path(before);
  EXPECT_EQ(out, all_);
}

TEST_F(VirtualDataset, PiecesMustTile) {
  expect_contains(message_for({pieces_[0]}),
                  "virtual dataset 'params/w' [11, 6]: its pieces fill 24 of 66 elements");
  expect_contains(message_for({pieces_[0], pieces_[2], pieces_[3]}), "overlap");
  VirtualPiece outside = pieces_[2];
  outside.offset[0] = 5;
  expect_contains(message_for({pieces_[0], outside}), "piece [7, 6] at [5, 0] from 'rank2.h5' is not in it");
  VirtualPiece elsewhere = pieces_[2];
  elsewhere.file = "../rank2.h5";
  expect_contains(message_for({pieces_[0], elsewhere}), "'../rank2.h5' is not a plain file name");
}

TEST_F(VirtualDataset, AMissingOrWrongSourceIsAnErrorNotZeros) {
  const Hdf5File file = index({pieces_[0], pieces_[2]});
  Bytes out(all_.size()), top(4 * kColumns * 2);
  const auto read_all = [&] { file.read_dataset("params/w", DType::bf16, Extents{kRows, kColumns}, out); };
  std::filesystem::remove(folder_ / "rank2.h5");
  expect_contains(message_of(read_all),
                  "'params/w' needs '" + (folder_ / "rank2.h5") + "', which is missing");
  file.read_rows("params/w", DType::bf16, 0, 4, top);  // needs rank 0 alone
  EXPECT_EQ(top, box({0, 0}, {4, kColumns}));

  test::write_text(folder_ / "rank2.h5", "no HDF5");
  expect_contains(message_of(read_all), "rank2.h5' is not an HDF5 file; dataset 'params/w' of");
  std::filesystem::remove(folder_ / "rank2.h5");
  write("rank2.h5", {4, 0}, {6, kColumns});
  expect_contains(message_of(read_all), "'params/w' is bf16 [6, 6], but");
  Hdf5File::create(folder_ / "rank2.h5").close();
  expect_contains(message_of(read_all), "there is no dataset 'params/w'");
}

}  // namespace
}  // namespace ridge
