// metrics.jsonl: lines, flushing, cutting back at a resume.
#include "launch/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/base/error.h"

namespace ridge {
namespace {

class MetricsTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        testing::TempDir() + "ridge_metrics_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string text() const {
    std::ifstream file(folder_ + "/metrics.jsonl");
    return (std::stringstream() << file.rdbuf()).str();
  }
  void append(std::string_view bytes) const {
    std::ofstream(folder_ + "/metrics.jsonl", std::ios::app) << bytes;
  }
  void write_steps(std::int64_t from, std::int64_t to) const {
    MetricsLog log(folder_, from);
    for (std::int64_t step = from; step < to; ++step) {
      const Metric fields[] = {{"loss", 0.5 + static_cast<double>(step)}};
      log.write(step, fields);
    }
  }

  std::string folder_;
};

TEST_F(MetricsTest, ALineIsOneObject) {
  MetricsLog log(folder_);
  const Metric fields[] = {{"loss", 1.0 / 3},
                           {"tokens", std::int64_t{1} << 60},
                           {"phase", "eval \"x\"\n\xff"},
                           {"grad_norm", std::nan("")}};
  log.write(7, fields);
  const std::string line = text();  // read before the log is closed: it was flushed
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["step"], 7);
  EXPECT_EQ(json["loss"].get<double>(), 1.0 / 3);
  EXPECT_EQ(json["tokens"], std::int64_t{1} << 60);
  EXPECT_EQ(json["phase"], "eval \"x\"\n\xef\xbf\xbd");
  EXPECT_TRUE(json["grad_norm"].is_null());
  EXPECT_EQ(line.substr(0, 9), "{\"step\":7");
}

TEST_F(MetricsTest, ResumeGivesTheSameFileAsOneRun) {
  write_steps(0, 10);
  const std::string whole = text();
  write_steps(4, 10);
  EXPECT_EQ(text(), whole);
  write_steps(0, 10);
  EXPECT_EQ(text(), whole);
  write_steps(10, 10);
  EXPECT_EQ(text(), whole);
}

TEST_F(MetricsTest, TornAndForeignLinesGo) {
  write_steps(0, 5);
  const std::string whole = text();
  append("{\"step\":5,\"lo");
  write_steps(6, 6);
  EXPECT_EQ(text(), whole);
  append("{\"step\":4}");  // whole, but without its newline
  write_steps(6, 6);
  EXPECT_EQ(text(), whole);
  append("not json\n{\"step\":5}\n");
  write_steps(9, 9);
  EXPECT_EQ(text(), whole);
}

TEST_F(MetricsTest, AFolderThatIsNotThereIsNamed) {
  try {
    MetricsLog log(folder_ + "/none");
    FAIL();
  } catch (const UserError& e) {
    EXPECT_EQ(std::string(e.what()),
              folder_ + "/none/metrics.jsonl: cannot be written: No such file or directory");
  }
}

TEST_F(MetricsTest, AFullDiskIsAnError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "/dev/full is not there";
  std::filesystem::create_symlink("/dev/full", folder_ + "/metrics.jsonl");
  EXPECT_THROW(
      {
        MetricsLog log(folder_);
        log.write(0, {});
      },
      UserError);
}

}  // namespace
}  // namespace ridge
