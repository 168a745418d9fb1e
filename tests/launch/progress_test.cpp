// Progress: the bar, the time left, what a terminal and a pipe get.
#include "launch/progress.h"

#include <gtest/gtest.h>

#include <functional>

namespace ridge {
namespace {

std::string output_of(ProgressLine::Options options, const std::function<void(ProgressLine&)>& body) {
  std::FILE* file = std::tmpfile();
  {
    ProgressLine line(options, file);
    body(line);
  }
  std::string text(static_cast<std::size_t>(std::ftell(file)), '\0');
  std::rewind(file);
  const std::size_t read = std::fread(text.data(), 1, text.size(), file);
  std::fclose(file);
  EXPECT_EQ(read, text.size());
  return text;
}

TEST(Progress, DurationsAreShort) {
  EXPECT_EQ(short_duration(0.2), "0s");
  EXPECT_EQ(short_duration(59.4), "59s");
  EXPECT_EQ(short_duration(59.6), "1m00s");
  EXPECT_EQ(short_duration(185), "3m05s");
  EXPECT_EQ(short_duration(7440), "2h04m");
  EXPECT_EQ(short_duration(86400 * 3 + 7200), "3d02h");
  EXPECT_EQ(short_duration(-1), "?");
  EXPECT_EQ(short_duration(1e300), "?");
}

TEST(Progress, BarFillsAndIsCut) {
  EXPECT_EQ(progress_bar(0, 50, "x", -1, 100), "[>                   ] 0/50 0%  x  ? left");
  EXPECT_EQ(progress_bar(25, 50, "x", 30, 100), "[==========>         ] 25/50 50%  x  30s left");
  EXPECT_EQ(progress_bar(50, 50, "x", 0, 100), "[====================] 50/50 100%  x  0s left");
  EXPECT_EQ(progress_bar(25, 50, "x", 30, 24), "[==========>         ] 2");
  EXPECT_EQ(progress_bar(0, 0, "", 0, 100), "[====================] 0/0 100%    0s left");
}

TEST(Progress, APipeGetsPlainLines) {
  const std::string text = output_of({.total_steps = 7, .every = 3}, [](ProgressLine& line) {
    for (int done = 1; done <= 7; ++done) line.update(done, "loss 2", 2.0 * done);
    line.note("saved");
  });
  EXPECT_EQ(text,
            "step 1/7  loss 2  12s left\nstep 3/7  loss 2  8s left\nstep 6/7  loss 2  2s left\n"
            "step 7/7  loss 2  0s left\nsaved\n");
}

TEST(Progress, AResumedRunCountsItsOwnPace) {
  const std::string text =
      output_of({.total_steps = 100, .first_step = 90, .every = 1}, [](ProgressLine& line) {
        line.update(92, "", 4);  // 2 seconds a step, 8 steps left
      });
  EXPECT_EQ(text, "step 92/100    16s left\n");
}

TEST(Progress, ATerminalIsRedrawnAtMostTenTimesASecond) {
  const std::string text =
      output_of({.total_steps = 1000, .every = 1, .terminal = true}, [](ProgressLine& line) {
        for (int done = 1; done <= 1000; ++done) line.update(done, "", done * 0.001);
      });
  const auto draws = std::count(text.begin(), text.end(), '[') - std::count(text.begin(), text.end(), '\x1b');
  EXPECT_GE(draws, 10);
  EXPECT_LE(draws, 12);
  EXPECT_EQ(text.back(), '\n');
  EXPECT_NE(text.find("1000/1000"), std::string::npos);
}

TEST(Progress, ANoteStandsAboveTheBar) {
  const std::string text = output_of({.total_steps = 2, .terminal = true}, [](ProgressLine& line) {
    line.update(1, "", 1);
    line.note("hello");
  });
  EXPECT_NE(text.find("\r\x1b[Khello\n"), std::string::npos);
  EXPECT_NE(text.back(), ' ');
}

}  // namespace
}  // namespace ridge
