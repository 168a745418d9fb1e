// ridge: train, fine-tune and run large language models.
#include <fcntl.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <thread>

#include "core/base/error.h"
#include "core/base/threads.h"
#include "kernels/blas.h"
#include "launch/context.h"
#include "launch/environment.h"

namespace {

constexpr int kUserError = 1;
constexpr int kBug = 2;
constexpr auto kHeadStart = std::chrono::seconds(3);  // to end ranks of other hosts can take more than one

// The cores of this host, shared among its ranks, unless the launcher has bound this one to some.
void choose_threads(const ridge::parallel::MpiSession& mpi) {
  const int bound = ridge::thread_count();
  const int online = static_cast<int>(std::thread::hardware_concurrency());
  const int share = bound < online ? bound : std::max(1, online / mpi.local_size());
  ridge::set_thread_count(ridge::threads_from_environment().value_or(share));
  ridge::kernels::prepare_blas();
}

// Rank 0 speaks for all; another rank speaks only if rank 0 has not ended the job by then.
int report(ridge::parallel::MpiSession& mpi, const char* kind, const char* what, int code) {
  ridge::parallel::Communicator& ranks = mpi.world();
  if (ranks.size() == 1) {
    std::fprintf(stderr, "ridge: %s%s\n", kind, what);
    return code;
  }
  if (ranks.rank() != 0) std::this_thread::sleep_for(kHeadStart);
  std::fprintf(stderr, "ridge: [rank %d of %d] %s%s\n", ranks.rank(), ranks.size(), kind, what);
  std::fflush(stderr);
  ranks.abort(what, code);
  return code;
}

// CLI11 says of an unknown command only that it wants one.
std::string complaint(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> rest = app.remaining();
  if (!rest.empty() && app.get_subcommands().empty())
    return "'" + rest.front() + "' is no command; see ridge --help";
  return std::string(error.what()) + "; see ridge --help";
}

// A closed descriptor would be the next file that is opened: text for the user would land in it. What is put
// in the place of stdout cannot be written to.
void hold_standard_descriptors() {
  for (const int fd : {0, 1, 2}) {
    if (::fcntl(fd, F_GETFD) < 0) ::open("/dev/null", fd == 2 ? O_WRONLY : O_RDONLY);
  }
}

// A result that nobody got is no success.
void require_said() {
  std::cout.flush();
  ridge::require(std::fflush(stdout) == 0 && std::ferror(stdout) == 0 && std::cout.good(),
                 "standard output cannot be written (full, or closed): what it was to say is lost");
}

int run(int argc, char** argv, ridge::parallel::MpiSession& mpi) {
  ridge::prepare_cuda_environment();
  CLI::App app{"Ridgeline: train, fine-tune and run large language models"};
  ridge::Context context(mpi);
  app.require_subcommand(1);
  app.fallthrough();
  app.add_flag("--json", context.json, "One JSON object on stdout; logs stay on stderr");
  app.add_option("--device", context.device, "auto, cpu or cuda");
  const ridge::Command root(app);
  ridge::add_info(root, context);
  ridge::add_tokenize(root, context);
  ridge::add_pack(root, context);
  ridge::add_logits(root, context);
  ridge::add_generate(root, context);
  ridge::add_eval(root, context);
  ridge::add_train(root, context);
  ridge::add_merge(root, context);
  ridge::add_quantize(root, context);
  ridge::add_checkpoint(root, context);
  ridge::add_profile(root, context);
  ridge::add_bench(root, context);
  ridge::add_sample_text(root, context);
  app.parse_complete_callback([&] {
    if (context.device != "auto")
      ridge::parse_device(context.device);  // whether there is a GPU is asked when it is used
    choose_threads(mpi);
  });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const bool help = e.get_exit_code() == 0;
    if (!help) return report(mpi, "", complaint(app, e).c_str(), kUserError);
    if (mpi.world().rank() == 0) app.exit(e);
  }
  require_said();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  hold_standard_descriptors();
  try {
    ridge::parallel::MpiSession mpi(ridge::launched_by_mpi());
    try {
      return run(argc, argv, mpi);
    } catch (const ridge::UserError& e) {
      return report(mpi, "", e.what(), kUserError);
    } catch (const std::exception& e) {
      return report(mpi, "internal error: ", e.what(), kBug);
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "ridge: internal error: %s\n", e.what());
    return kBug;
  }
}
