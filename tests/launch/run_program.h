// Runs the built program as a user does: arguments in, exit code, stdout and stderr out.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace ridge::test {

using Arguments = std::vector<std::string>;

/// Sanitizers slow programs down and keep freed memory: times and sizes mean nothing under them.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

struct Outcome {
  int exit_code = -1;  // -1: killed by `signal`
  int signal = 0;
  std::string out, err;
  std::int64_t peak_bytes = 0;  // of resident memory
  double seconds = 0;
};

struct RunOptions {
  int ranks = 0;                            // above 0: under mpirun
  int threads = 1;                          // of each rank
  std::int64_t file_bytes = -1;             // no file may grow beyond that, as on a full disk; -1: no limit
  std::string folder = {};                  // working folder; empty: this one's
  std::vector<std::string> variables = {};  // NAME=VALUE, beside the inherited ones
};

/// The processes that `pid` started, and those that they started; it comes first.
inline std::vector<pid_t> family_of(pid_t pid) {
  std::vector<pid_t> family{pid};
  for (std::size_t i = 0; i < family.size(); ++i) {
    const std::string tasks = "/proc/" + std::to_string(family[i]) + "/task";
    std::error_code ignored;
    for (const auto& task : std::filesystem::directory_iterator(tasks, ignored)) {
      std::ifstream children(task.path() / "children");
      for (pid_t child = 0; children >> child;) family.push_back(child);
    }
  }
  return family;
}

/// One process in a session of its own, with stdout and stderr kept in memory files. Killed when the object
/// goes.
class Process {
 public:
  Process(const Arguments& command, const RunOptions& options)
      : out_(::memfd_create("out", 0)), err_(::memfd_create("err", 0)), start_(Clock::now()) {
    std::vector<char*> argv;
    for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) become(argv, options);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() {
    if (!done_) {
      kill(SIGKILL);
      wait();
    }
    ::close(out_);
    ::close(err_);
  }

  pid_t pid() const { return pid_; }
  /// Sends a signal to the process and all that it started.
  void kill(int signal) const {
    for (const pid_t member : family_of(pid_)) ::kill(member, signal);
  }

  bool running() {
    if (!done_ && ::wait4(pid_, &status_, WNOHANG, &usage_) == pid_) finish();
    return !done_;
  }

  const Outcome& wait() {
    if (!done_ && ::wait4(pid_, &status_, 0, &usage_) == pid_) finish();
    return outcome_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  [[noreturn]] void become(std::vector<char*>& argv, const RunOptions& options) const {
    ::setsid();
    ::dup2(out_, STDOUT_FILENO);
    ::dup2(err_, STDERR_FILENO);
    for (const std::string& variable : options.variables) ::putenv(const_cast<char*>(variable.c_str()));
    if (!options.folder.empty() && ::chdir(options.folder.c_str()) != 0) ::_exit(126);
    if (options.file_bytes >= 0) {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit bound{static_cast<rlim_t>(options.file_bytes), static_cast<rlim_t>(options.file_bytes)};
      ::setrlimit(RLIMIT_FSIZE, &bound);
    }
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }

  void finish() {
    done_ = true;
    outcome_.exit_code = WIFEXITED(status_) ? WEXITSTATUS(status_) : -1;
    outcome_.signal = WIFSIGNALED(status_) ? WTERMSIG(status_) : 0;
    outcome_.out = content(out_);
    outcome_.err = content(err_);
    outcome_.peak_bytes = static_cast<std::int64_t>(usage_.ru_maxrss) * 1024;
    outcome_.seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  }

  static std::string content(int fd) {
    std::string text(static_cast<std::size_t>(std::max<off_t>(0, ::lseek(fd, 0, SEEK_END))), '\0');
    const ssize_t n = ::pread(fd, text.data(), text.size(), 0);
    text.resize(static_cast<std::size_t>(std::max<ssize_t>(0, n)));
    return text;
  }

  int out_, err_;
  Clock::time_point start_;
  pid_t pid_ = -1;
  bool done_ = false;
  int status_ = 0;
  rusage usage_{};
  Outcome outcome_;
};

/// The command line of `ridge ARGUMENTS`, alone or under mpirun.
inline Arguments ridge_command(const Arguments& arguments, const RunOptions& options) {
  Arguments command{RIDGE_PROGRAM};
  if (options.ranks > 0) {
    command = {"mpirun", "--oversubscribe", "-np", std::to_string(options.ranks), RIDGE_PROGRAM};
  }
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

inline RunOptions with_launcher_variables(RunOptions options) {
  options.variables.insert(options.variables.end(),
                           {"RIDGE_THREADS=" + std::to_string(options.threads), "OMPI_ALLOW_RUN_AS_ROOT=1",
                            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", "OMPI_MCA_btl_base_warn_component_unused=0"});
  // Open MPI unloads its plugins before leaks are sought: no suppression can name what they kept.
  if (options.ranks > 0) options.variables.push_back("ASAN_OPTIONS=detect_leaks=0");
  return options;
}

inline Outcome run_ridge(const Arguments& arguments, const RunOptions& options = {}) {
  Process process(ridge_command(arguments, options), with_launcher_variables(options));
  return process.wait();
}

/// Runs and expects success.
inline Outcome must_run(const Arguments& arguments, const RunOptions& options = {}) {
  Outcome outcome = run_ridge(arguments, options);
  std::string line;
  for (const std::string& word : arguments) line += word + " ";
  EXPECT_EQ(outcome.exit_code, 0) << line << "\n" << outcome.err;
  return outcome;
}

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// The lines in which the program says what is wrong, without its notes.
inline std::vector<std::string> complaints(const Outcome& outcome) {
  std::vector<std::string> lines = lines_of(outcome.err);
  std::erase_if(lines, [](const std::string& line) { return !line.starts_with("ridge: "); });
  return lines;
}

/// A user's mistake: exit code 1, nothing on stdout, one line on stderr that holds every one of `parts`.
inline void expect_user_error(const Outcome& outcome, const std::vector<std::string>& parts) {
  EXPECT_EQ(outcome.exit_code, 1) << "signal " << outcome.signal << "\n" << outcome.err;
  EXPECT_EQ(outcome.out, "");
  const auto lines = complaints(outcome);
  ASSERT_EQ(lines.size(), 1u) << outcome.err;
  EXPECT_EQ(lines_of(outcome.err).back(), lines[0]) << "something follows the complaint";
  for (const std::string& part : parts) {
    EXPECT_NE(lines[0].find(part), std::string::npos) << "'" << part << "' is not in: " << lines[0];
  }
}

inline std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_text(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}

/// A new empty folder, removed with its content at the end of the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "ridge-run-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }

 private:
  std::string path_;
};

/// Names in a folder, sorted; empty where there is none.
inline std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// Files that stand next to the project; tests that need them skip where they are absent.
inline std::string shared_file(const std::string& name) {
  return std::string(RIDGE_SOURCE_DIR) + "/../shared/" + name;
}

inline std::string data_file(const std::string& name) {
  return std::string(RIDGE_SOURCE_DIR) + "/tests/data/" + name;
}

inline bool has_shared() {
  return std::filesystem::exists(shared_file("models/stories260k/config.json")) &&
         std::filesystem::exists(shared_file("data/wikitext-2/test.txt"));
}

/// Tests on the trained model and the text that stand next to the project.
class SharedTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_shared()) GTEST_SKIP() << "needs ../shared/models/stories260k and ../shared/data/wikitext-2";
  }
  const std::string stories_ = shared_file("models/stories260k");
  const std::string valid_ = shared_file("data/wikitext-2/valid.txt");
  const std::string test_ = shared_file("data/wikitext-2/test.txt");
  TemporaryFolder folder_;
};

}  // namespace ridge::test
