// Tests that run as ranks: this test program again, under mpirun.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "launch/environment.h"
#include "parallel/mpi_communicator.h"
#include "tests/launch/run_program.h"

namespace ridge::test {

/// MPI of a test process that mpirun started; it ends after the last test.
class MpiProcess final : public ::testing::Environment {
 public:
  parallel::MpiSession& session() {
    if (session_ == nullptr) session_ = std::make_unique<parallel::MpiSession>(launched_by_mpi());
    return *session_;
  }
  void TearDown() override { session_.reset(); }

 private:
  std::unique_ptr<parallel::MpiSession> session_;
};

/// gtest owns it, and has to know it before the first test.
inline MpiProcess& mpi_process =
    *static_cast<MpiProcess*>(::testing::AddGlobalTestEnvironment(new MpiProcess));

/// Runs the tests that match `filter` as `ranks` ranks, with `variables` ("NAME=value"); killed after a
/// minute and a half.
inline Outcome run_tests_as_ranks(int ranks, const std::string& filter,
                                  std::vector<std::string> variables = {}) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  RunOptions options;
  options.ranks = ranks;
  options.variables = std::move(variables);
  Process process(
      {"mpirun", "--oversubscribe", "-np", std::to_string(ranks), self, "--gtest_filter=" + filter},
      with_launcher_variables(options));
  for (int tenths = 0; process.running() && tenths < 900; ++tenths)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  if (process.running()) process.kill(SIGKILL);
  return process.wait();
}

/// Runs them and expects that every rank passes, and skips nothing.
inline void expect_ranks_pass(int ranks, const std::string& filter, std::vector<std::string> variables = {}) {
  const Outcome outcome = run_tests_as_ranks(ranks, filter, std::move(variables));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
  EXPECT_EQ(outcome.out.find("SKIPPED"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("PASSED"), std::string::npos) << outcome.out;
}

}  // namespace ridge::test
