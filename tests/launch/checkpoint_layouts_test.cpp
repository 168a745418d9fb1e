// What any layout of ranks writes, any other reads, bit for bit.
#include <gtest/gtest.h>
#include <hdf5.h>

#include "core/io/hdf5.h"
#include "launch/checkpoint_writer.h"
#include "tests/launch/checkpoint_layouts.h"
#include "tests/launch/run_program.h"

namespace ridge {
namespace {

using namespace test;
using parallel::Mesh;

const std::vector<Mesh>& layouts() {  // pp, replicate, shard, cp, tp
  static const std::vector<Mesh> all{Mesh({1, 1, 1, 1, 1}), Mesh({1, 1, 2, 1, 1}), Mesh({1, 1, 3, 1, 1}),
                                     Mesh({1, 1, 7, 1, 1}), Mesh({1, 2, 1, 1, 1}), Mesh({1, 2, 2, 1, 1}),
                                     Mesh({1, 1, 1, 1, 2}), Mesh({1, 1, 1, 1, 4}), Mesh({2, 1, 1, 1, 1}),
                                     Mesh({3, 1, 1, 1, 1}), Mesh({2, 1, 2, 1, 2}), Mesh({1, 1, 2, 2, 1}),
                                     Mesh({1, 2, 1, 2, 2}), Mesh({2, 2, 1, 1, 2}), Mesh({1, 1, 5, 1, 3})};
  return all;
}

class CheckpointLayouts : public testing::Test {
 protected:
  void save(const Mesh& mesh, std::int64_t step) const {
    parallel::run_ranks(mesh.ranks(), [&](parallel::Communicator& ranks) {
      const RankState mine(mesh, ranks.rank(), state_, true);
      CheckpointWriter writer(ranks, {.output = folder_.path(), .keep = 100});
      writer.snapshot({step, 1, 2, 3, "x", mesh.describe()}, mine.pieces());
      writer.finish();
    });
  }

  // What the ranks of a layout see differently from what was saved; empty: nothing.
  std::string load(const Mesh& mesh, std::int64_t step) const {
    std::mutex mutex;
    std::string difference;
    parallel::run_ranks(mesh.ranks(), [&](parallel::Communicator& ranks) {
      const RankState mine(mesh, ranks.rank(), state_, false);
      CheckpointReader(checkpoint_folder(folder_.path(), step)).read(mine.pieces(), ranks);
      const std::lock_guard lock(mutex);
      difference += mine.first_difference(state_);
    });
    return difference;
  }

  TemporaryFolder folder_;
  const std::vector<LogicalTensor> state_ = logical_state(1);
};

TEST_F(CheckpointLayouts, EveryOneReadsEveryOther) {
  const std::size_t stride = kSanitized ? 5 : 1;  // all pairs take long there
  for (std::size_t from = 0; from < layouts().size(); ++from) {
    const auto step = static_cast<std::int64_t>(from);
    save(layouts()[from], step);
    for (std::size_t to = from % stride; to < layouts().size(); to += stride) {
      EXPECT_EQ(load(layouts()[to], step), "")
          << "written by " << layouts()[from].describe() << ", read by " << layouts()[to].describe();
    }
  }
}

// The pieces of the test itself: together the ranks hold everything, and more than one box a piece occurs.
TEST_F(CheckpointLayouts, TheRanksHoldTheWholeState) {
  std::size_t most_boxes = 0;
  for (const Mesh& mesh : layouts()) {
    std::map<std::string, std::int64_t> held;
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      const RankState mine(mesh, rank, state_, false);
      for (const Piece& piece : mine.pieces()) {
        most_boxes = std::max(most_boxes, piece.boxes.size());
        if (piece.writes) held[piece.name] += piece.value.numel();
      }
    }
    for (const LogicalTensor& t : state_)
      EXPECT_EQ(held[t.name] * static_cast<std::int64_t>(size_of(t.dtype)), t.bytes.size())
          << mesh.describe() << " " << t.name;
  }
  EXPECT_GE(most_boxes, 3u);
}

// As h5dump and h5py see it: one tensor, out of the files of many ranks.
std::vector<std::byte> read_as_a_tool(const std::string& file, const std::string& dataset,
                                      std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  const hid_t opened = H5Fopen(file.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  const hid_t set = H5Dopen2(opened, dataset.c_str(), H5P_DEFAULT);
  const hid_t type = H5Dget_type(set);
  EXPECT_GE(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data()), 0) << dataset;
  H5Tclose(type);
  H5Dclose(set);
  H5Fclose(opened);
  return out;
}

TEST_F(CheckpointLayouts, TheIndexIsOneTensorForAnyHdf5Tool) {
  for (const Mesh& mesh : {Mesh({1, 1, 7, 1, 1}), Mesh({2, 1, 2, 1, 2}), Mesh({1, 2, 1, 2, 2})}) {
    save(mesh, 1);
    const std::string folder = checkpoint_folder(folder_.path(), 1);
    CheckpointReader(folder).verify();
    {
      const Hdf5File index = Hdf5File::open(folder + "/index.h5");
      EXPECT_EQ(index.int_attribute("/", "step"), 1);
      EXPECT_EQ(index.string_attribute("/", "layout"), mesh.describe());
      for (const LogicalTensor& t : state_) {
        std::vector<std::byte> read(t.bytes.size());
        index.read_dataset("/" + t.name, t.dtype, t.dims, read);
        EXPECT_TRUE(read == t.bytes) << t.name;
      }
    }
    for (const LogicalTensor& t : state_)
      EXPECT_TRUE(read_as_a_tool(folder + "/index.h5", "/" + t.name, t.bytes.size()) == t.bytes) << t.name;
  }
}

TEST_F(CheckpointLayouts, AMissingRankFileIsNamedByTheRanksThatNeedIt) {
  save(Mesh({2, 1, 2, 1, 2}), 4);
  std::filesystem::remove(checkpoint_folder(folder_.path(), 4) + "/rank-00005.h5");
  for (const Mesh& mesh : {layouts()[0], layouts()[2]}) {
    try {
      load(mesh, 4);
      ADD_FAILURE() << "read without a file";
    } catch (const UserError& error) {
      EXPECT_NE(std::string(error.what()).find("rank-00005.h5: the file is missing"), std::string::npos)
          << error.what();
    }
  }
}

TEST_F(CheckpointLayouts, ADamagedChunkIsNamed) {
  const Mesh mesh({1, 1, 1, 1, 2});
  save(mesh, 4);
  const std::string file = checkpoint_folder(folder_.path(), 4) + "/rank-00001.h5";
  const CheckpointManifest manifest = read_manifest(checkpoint_folder(folder_.path(), 4));
  const StoredTensor* head = manifest.find("model/head.weight");
  ASSERT_TRUE(head != nullptr && head->boxes.size() == 2 && head->boxes[1].checksums.size() == 1);
  std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
  bytes.seekp(static_cast<std::streamoff>(head->boxes[1].position + 12345));
  bytes.put('\x5A');
  bytes.close();
  try {
    load(layouts()[1], 4);
    ADD_FAILURE() << "read a damaged chunk";
  } catch (const UserError& error) {
    for (const char* part : {"rank-00001.h5", "model/head.weight", "chunk 0", "remove that folder"})
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << part << ": " << error.what();
  }
  // Ranks that do not touch it read on.
  const RankState stage(Mesh({3, 1, 1, 1, 1}), 0, state_, false);
  CheckpointReader(checkpoint_folder(folder_.path(), 4)).read_some(stage.pieces());
  EXPECT_EQ(stage.first_difference(state_), "");
}

TEST_F(CheckpointLayouts, ManySmallTensorsAreFast) {
  const int ranks = 4, tensors = 5000;
  const auto make = [&](int rank, float value) {
    std::vector<Piece> pieces;
    for (int i = 0; i < tensors; ++i)
      pieces.push_back({fmt::format("model/t{:05}", i),
                        {64, 4},
                        DType::f32,
                        {{{16 * rank, 0}, {16, 4}}},
                        Tensor::full({64}, value + i, DType::f32),
                        true});
    return pieces;
  };
  const auto begin = std::chrono::steady_clock::now();
  parallel::run_ranks(ranks, [&](parallel::Communicator& all) {
    CheckpointWriter writer(all, {.output = folder_.path()});
    writer.snapshot({1}, make(all.rank(), 10000.0f * static_cast<float>(all.rank())));
    writer.finish();
  });
  const auto middle = std::chrono::steady_clock::now();
  parallel::run_ranks(2, [&](parallel::Communicator& all) {  // rows 0..31 and 32..63
    std::vector<Piece> pieces;
    for (int i = 0; i < tensors; ++i)
      pieces.push_back({fmt::format("model/t{:05}", i),
                        {64, 4},
                        DType::f32,
                        {{{32 * all.rank(), 0}, {32, 4}}},
                        Tensor::zeros({32, 4}, DType::f32),
                        true});
    CheckpointReader(checkpoint_folder(folder_.path(), 1)).read(pieces, all);
    for (int i = 0; i < tensors; i += 7) {
      const auto values = pieces[static_cast<std::size_t>(i)].value.span<float>();
      EXPECT_EQ(values[0], static_cast<float>(20000 * all.rank() + i));
      EXPECT_EQ(values[64], static_cast<float>(20000 * all.rank() + 10000 + i));
    }
  });
  const auto end = std::chrono::steady_clock::now();
  const double write = std::chrono::duration<double>(middle - begin).count();
  const double read = std::chrono::duration<double>(end - middle).count();
  RecordProperty("write_seconds", std::to_string(write));
  RecordProperty("read_seconds", std::to_string(read));
  if (kSanitized) return;
  EXPECT_LT(write + read, 60) << "write " << write << " s, read " << read << " s";
}

}  // namespace
}  // namespace ridge
