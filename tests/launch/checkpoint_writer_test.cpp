// Checkpoints that are written while the training goes on, and what happens when something goes wrong.
#include "launch/checkpoint_writer.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "tests/launch/checkpoint_layouts.h"
#include "tests/launch/run_program.h"

namespace ridge {
namespace {

using namespace test;
using namespace std::chrono_literals;
using parallel::Box;
namespace fs = std::filesystem;

// Rows [first, first + rows) of a tensor of `dims`, on the device under test.
Piece rows_of(const std::string& name, std::vector<std::int64_t> dims, std::int64_t first, std::int64_t rows,
              double value) {
  Piece piece{name, dims, DType::f32, {Box{{first, 0}, {rows, dims[1]}}}, {}, true};
  piece.value = Tensor::full({rows, dims[1]}, value, DType::f32, test_device());
  return piece;
}

bool all_equal(const Tensor& t, double value) {
  const Tensor host = t.on(Device::cpu);
  return std::ranges::all_of(host.span<float>(), [&](float x) { return x == static_cast<float>(value); });
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

class CheckpointWriterTest : public testing::Test {
 protected:
  std::vector<std::string> kept() const { return names_in(folder_ / "checkpoints"); }

  // What each of the ranks' calls of `body` says went wrong.
  std::vector<std::string> errors_of(int ranks,
                                     const std::function<void(parallel::Communicator&)>& body) const {
    std::vector<std::string> errors(static_cast<std::size_t>(ranks));
    parallel::run_ranks(ranks, [&](parallel::Communicator& all) {
      errors[static_cast<std::size_t>(all.rank())] = message_of([&] { body(all); });
    });
    return errors;
  }

  TemporaryFolder folder_;
};

// As a training step does it: snapshot, work, release, update.
TEST_F(CheckpointWriterTest, HoldsTheValuesOfItsMomentWhateverComesAfter) {
  const int ranks = 3, steps = 5;
  parallel::run_ranks(ranks, [&](parallel::Communicator& all) {
    std::vector<Piece> pieces{rows_of("model/w", {3 * 700, 1000}, 700 * all.rank(), 700, 0),
                              rows_of("optimizer/w.m", {30, 7}, 10 * all.rank(), 10, 0)};
    CheckpointWriter writer(all, {.output = folder_.path(), .keep = steps});
    for (int step = 1; step <= steps; ++step) {
      writer.release_before_update();
      for (const Piece& piece : pieces)
        piece.value.copy_from(
            Tensor::full(piece.value.shape(), step + 0.5 * all.rank(), DType::f32, test_device()));
      writer.snapshot({step, 10 * step}, pieces);
    }
    writer.release_before_update();
    for (const Piece& piece : pieces)
      piece.value.copy_from(Tensor::full(piece.value.shape(), -1, DType::f32, test_device()));
    writer.finish();
    EXPECT_FALSE(writer.writing());
    EXPECT_GT(writer.stall_seconds(), 0);
    writer.finish();  // nothing more to do
  });
  EXPECT_EQ(kept().size(), static_cast<std::size_t>(steps));
  for (int step = 1; step <= steps; ++step) {
    const CheckpointReader reader(checkpoint_folder(folder_.path(), step));
    EXPECT_EQ(reader.state().tokens, 10 * step);
    const std::vector<Piece> whole{rows_of("model/w", {2100, 1000}, 0, 2100, 0),
                                   rows_of("optimizer/w.m", {30, 7}, 0, 30, 0)};
    reader.read(whole, *parallel::self_communicator());
    for (const Piece& piece : whole) {
      const std::int64_t rows = piece.dims[0] / ranks;
      for (int rank = 0; rank < ranks; ++rank)
        EXPECT_TRUE(all_equal(piece.value.sliced(0, rank * rows, (rank + 1) * rows).contiguous_copy(),
                              step + 0.5 * rank))
            << step << " " << rank;
    }
  }
}

TEST_F(CheckpointWriterTest, TheNewestStayAndUnfinishedFoldersGo) {
  parallel::run_ranks(2, [&](parallel::Communicator& all) {
    CheckpointWriter writer(all, {.output = folder_.path(), .keep = 2});
    for (int step = 10; step <= 50; step += 10)
      writer.snapshot({step}, {rows_of("model/w", {4, 5}, 2 * all.rank(), 2, step)});
    writer.finish();
  });
  EXPECT_EQ(kept(), (std::vector<std::string>{"step-00000040", "step-00000050"}));
  EXPECT_EQ(names_in(folder_ / "checkpoints/step-00000050"),
            (std::vector<std::string>{"index.h5", "manifest.txt", "rank-00000.h5", "rank-00001.h5"}));
}

// Replicas and ranks without a share write no file.
TEST_F(CheckpointWriterTest, RanksWithNothingToWriteLeaveNoFile) {
  parallel::run_ranks(3, [&](parallel::Communicator& all) {
    std::vector<Piece> pieces;
    if (all.rank() < 2) pieces.push_back(rows_of("model/w", {4, 5}, 0, 4, 3));
    if (all.rank() == 0) pieces[0].writes = false;
    CheckpointWriter writer(all, {.output = folder_.path()});
    writer.snapshot({1}, pieces);
    writer.finish();
    for (const Piece& piece : pieces) piece.value.copy_from(Tensor::zeros({4, 5}, DType::f32, test_device()));
    CheckpointReader(checkpoint_folder(folder_.path(), 1)).read(pieces, all);
    for (const Piece& piece : pieces) EXPECT_TRUE(all_equal(piece.value, 3));
  });
  EXPECT_EQ(names_in(folder_ / "checkpoints/step-00000001"),
            (std::vector<std::string>{"index.h5", "manifest.txt", "rank-00001.h5"}));
}

TEST_F(CheckpointWriterTest, GapsAndOverlapsAreNeverCommitted) {
  const auto errors_with = [&](std::int64_t first, std::int64_t rows) {
    return errors_of(2, [&](parallel::Communicator& all) {
      CheckpointWriter writer(all, {.output = folder_.path()});
      writer.snapshot(
          {1}, {rows_of("model/w", {6, 5}, all.rank() == 0 ? 0 : first, all.rank() == 0 ? 3 : rows, 1)});
      writer.finish();
    });
  };
  for (const auto& [first, rows, part] : {std::tuple{4, 2, "25 of 30 elements"}, {2, 4, "same elements"}}) {
    const auto errors = errors_with(first, rows);
    EXPECT_NE(errors[0].find(part), std::string::npos) << errors[0];
    EXPECT_NE(errors[0].find("model/w"), std::string::npos) << errors[0];
    EXPECT_NE(errors[1].find("another rank"), std::string::npos) << errors[1];
    EXPECT_EQ(kept(), std::vector<std::string>{});
  }
}

TEST_F(CheckpointWriterTest, OneRanksFailureIsEverybodysAndTheOlderCheckpointStays) {
  parallel::run_ranks(2, [&](parallel::Communicator& all) {
    CheckpointWriter writer(all, {.output = folder_.path()});
    const auto piece = [&](const std::string& name) { return rows_of(name, {4, 5}, 2 * all.rank(), 2, 7); };
    writer.snapshot({1}, {piece("model/w")});
    writer.snapshot({2}, {piece(all.rank() == 0 ? "model/w" : "model/.")});  // HDF5 has no such name
    const std::string error = message_of([&] { writer.finish(); });
    EXPECT_NE(error.find(all.rank() == 0 ? "rank 1: " : "rank-00001.h5"), std::string::npos) << error;
    EXPECT_NE(error.find("/model/."), std::string::npos) << error;
    writer.snapshot({3}, {piece("model/w")});  // the next one may do
    writer.finish();
  });
  EXPECT_EQ(kept(), (std::vector<std::string>{"step-00000001", "step-00000003"}));
}

TEST_F(CheckpointWriterTest, ARankThatWritesElsewhereIsMissed) {
  const auto errors = errors_of(2, [&](parallel::Communicator& all) {
    const std::string output = all.rank() == 0 ? folder_.path() : folder_ / "other";
    CheckpointWriter writer(all, {.output = output, .timeout = 200ms});
    writer.snapshot({1}, {rows_of("model/w", {4, 5}, 2 * all.rank(), 2, 7)});
    writer.finish();
  });
  EXPECT_NE(errors[0].find("1 rank(s)"), std::string::npos) << errors[0];
  EXPECT_NE(errors[0].find("share"), std::string::npos) << errors[0];
  EXPECT_EQ(kept(), std::vector<std::string>{});
}

TEST_F(CheckpointWriterTest, AWriterThatGoesGivesUp) {
  const auto begin = std::chrono::steady_clock::now();
  parallel::run_ranks(2, [&](parallel::Communicator& all) {
    CheckpointWriter writer(all, {.output = folder_.path()});
    if (all.rank() == 0) writer.snapshot({1}, {rows_of("model/w", {4, 5}, 0, 2, 7)});
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 10s) << "it must not wait for rank 1";
  EXPECT_EQ(kept(), std::vector<std::string>{});
}

TEST_F(CheckpointWriterTest, AFolderThatCannotBeMadeIsAUsersMistake) {
  write_text(folder_ / "file", "x");
  const auto self = parallel::self_communicator();
  CheckpointWriter writer(*self, {.output = folder_ / "file"});
  writer.snapshot({1}, {rows_of("model/w", {4, 5}, 0, 4, 7)});
  EXPECT_THROW(writer.finish(), UserError);
}

// A full disk takes no message, but the name of an empty file.
TEST_F(CheckpointWriterTest, AFailureIsSeenOnAFullDisk) {
  if (on_gpu()) GTEST_SKIP() << "a process that has used a GPU does not fork";
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit none{0, 0};
    ::setrlimit(RLIMIT_FSIZE, &none);
    leave_failure(folder_.path(), 1, "a reason");
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  const StopFlag go_on{false};
  const std::string error = message_of([&] { collect_parts(folder_.path(), 2, 60s, go_on); });
  EXPECT_NE(error.find("rank 1: could not write"), std::string::npos) << error;
  leave_failure(folder_.path(), 1, "a reason");
  EXPECT_EQ(message_of([&] { collect_parts(folder_.path(), 2, 60s, go_on); }), "rank 1: a reason");
}

// A process that writes one checkpoint after another, killed at some moment of it.
TEST_F(CheckpointWriterTest, AKillAtAnyMomentLeavesTheOlderCheckpoints) {
  if (on_gpu()) GTEST_SKIP() << "a process that has used a GPU does not fork";
  std::mt19937 rng(11);
  int unfinished = 0;
  for (int trial = 0; trial < 12; ++trial) {
    const std::string output = folder_ / std::to_string(trial);
    const pid_t child = ::fork();
    if (child == 0) {
      parallel::run_ranks(2, [&](parallel::Communicator& all) {
        CheckpointWriter writer(all, {.output = output, .keep = 2});
        for (int step = 1;; ++step)
          writer.snapshot({step}, {rows_of("model/w", {600, 1000}, 300 * all.rank(), 300, step)});
      });
    }
    while (names_in(output + "/checkpoints").empty()) std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(std::chrono::microseconds(100000 + rng() % 200000));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const auto latest = latest_checkpoint(output);
    for (const std::string& name : names_in(output + "/checkpoints"))
      unfinished += name.find(".tmp-") != std::string::npos ? 1 : 0;
    remove_leftovers(output);
    if (!latest) continue;
    EXPECT_EQ(latest_checkpoint(output), latest);
    const CheckpointReader reader(*latest);
    reader.verify();
    const Piece whole = rows_of("model/w", {600, 1000}, 0, 600, 0);
    reader.read({whole}, *parallel::self_communicator());
    EXPECT_TRUE(all_equal(whole.value, static_cast<double>(reader.state().step)));
    for (const std::string& name : names_in(output + "/checkpoints")) EXPECT_EQ(name.size(), 13u) << name;
  }
  EXPECT_GT(unfinished, 3) << "kills that hit a write";
}

TEST_F(CheckpointWriterTest, PiecesThatContradictThemselvesAreBugs) {
  const auto self = parallel::self_communicator();
  CheckpointWriter writer(*self, {.output = folder_.path()});
  const auto error = [&](Piece piece) {
    return message_of([&] { writer.snapshot({1}, {std::move(piece)}); });
  };
  Piece outside = rows_of("model/w", {4, 5}, 2, 2, 7), fewer = outside, other = outside, spaced = outside;
  outside.boxes[0].offset[0] = 3;
  fewer.boxes[0].extent[0] = 1;
  other.dtype = DType::f64;
  spaced.name = "model/w x";
  EXPECT_NE(error(outside).find("is not in [4, 5]"), std::string::npos);
  EXPECT_NE(error(fewer).find("have 5 elements, its piece 10"), std::string::npos);
  EXPECT_NE(error(other).find("f64"), std::string::npos);
  EXPECT_NE(error(spaced).find("no name"), std::string::npos);
}

}  // namespace
}  // namespace ridge
