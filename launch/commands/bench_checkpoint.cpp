#include "launch/commands/bench_checkpoint.h"

#include <fcntl.h>
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>

#include "core/base/cuda.h"
#include "core/base/memory.h"
#include "core/io/file.h"
#include "launch/bench_layout.h"
#include "launch/checkpoint_writer.h"
#include "launch/context.h"
#include "launch/workloads.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int kWarmUps = 3;
constexpr std::int64_t kStep = 1;  // of the checkpoint

struct Options {
  std::string model, out;
  std::int64_t steps = 5;
  bool keep = false;
  StepOptions step;
  std::vector<std::string> load_parallel;

  StepOptions loaded() const {
    StepOptions other = step;
    if (!load_parallel.empty()) other.parallel = load_parallel;
    return other;
  }
};

struct Saved {
  double bytes = 0, step_seconds = 0, reserve_seconds = 0;
  double snapshot_seconds = 0;    // of the host, in the call
  double stall_seconds = 0;       // the writer's own account, of the rank that was held up the longest
  double first_step_seconds = 0;  // with the call before it
  double extra_seconds = 0;       // of all steps beside the writing, over as many undisturbed ones
  double written_seconds = 0;     // from the call until all is on disk
  std::int64_t steps_beside = 0;
};

struct Loaded {
  double seconds = 0;
  std::string layout;
};

double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

void wait_for(Device device) {
  if (device == Device::cuda) cuda::synchronize(current_stream(device));
}

double over_ranks(double value, parallel::Reduce reduce, const Context& context) {
  context.ranks().all_reduce(std::span<double>(&value, 1), reduce);
  return value;
}

double written_bytes(const std::vector<Piece>& pieces, const Context& context) {
  double bytes = 0;
  for (const Piece& piece : pieces)
    if (piece.writes) bytes += static_cast<double>(piece.value.bytes());
  return over_ranks(bytes, parallel::Reduce::sum, context);
}

// Rank 0 looks, so that it is rank 0 that says so.
void check_folder(const Options& options, double bytes, const Context& context) {
  if (!context.is_root()) return context.ranks().barrier();
  std::error_code error;
  fs::create_directories(options.out, error);
  require(!error, "--out {}: cannot be made: {}", options.out, error.message());
  require(!latest_checkpoint(options.out), "--out {}: has checkpoints already: give an empty folder",
          options.out);
  const fs::space_info space = fs::space(options.out, error);
  require(!error, "--out {}: {}", options.out, error.message());
  constexpr double kGb = 1e9, kMargin = 1.02;  // beside tensors: names, checksums, the index
  require(static_cast<double>(space.available) >= kMargin * bytes,
          "--out {}: {:.1f} GB are free, the checkpoint needs {:.1f} GB: give a folder on a larger disk",
          options.out, static_cast<double>(space.available) / kGb, kMargin * bytes / kGb);
  context.ranks().barrier();
}

class Saving {
 public:
  Saving(const Options& options, parallel::Groups& groups, Device device, Context& context)
      : options_(options),
        context_(context),
        device_(device),
        work_(models::ModelConfig::load(options.model), nullptr, options.step.training(groups.mesh().ranks()),
              groups, device),
        layout_(groups.mesh().describe()),
        writer_(groups.world(), {options.out, 1}) {}

  Saved go() {
    for (int i = 0; i < kWarmUps; ++i) step();
    std::vector<double> undisturbed;
    for (std::int64_t i = 0; i < options_.steps; ++i) undisturbed.push_back(step());
    saved_.step_seconds = median(undisturbed);
    saved_.bytes = written_bytes(pieces(), context_);
    check_folder(options_, saved_.bytes, context_);
    const auto begin = Clock::now();
    writer_.reserve(pieces());
    saved_.reserve_seconds = over_ranks(since(begin), parallel::Reduce::max, context_);
    write();
    return saved_;
  }

 private:
  std::vector<Piece> pieces() { return work_.model().pieces(&work_.optimizer()); }

  double step() {
    const auto begin = Clock::now();
    work_.step([this] { writer_.release_before_update(); });
    wait_for(device_);
    return since(begin);
  }

  bool anybody_writes() { return over_ranks(writer_.writing() ? 1 : 0, parallel::Reduce::max, context_) > 0; }

  // Steps go on until the checkpoint is complete, at the most as many as undisturbed ones; then it waits.
  void write() {
    TrainingState state;
    state.step = kStep;
    state.layout = layout_;
    const auto begin = Clock::now();
    writer_.snapshot(state, pieces());
    saved_.snapshot_seconds = since(begin);
    double beside = saved_.snapshot_seconds;
    do {
      beside += step();
      if (++saved_.steps_beside > 1) continue;
      saved_.first_step_seconds = beside;
      saved_.stall_seconds = over_ranks(writer_.stall_seconds(), parallel::Reduce::max, context_);
    } while (anybody_writes() && saved_.steps_beside < options_.steps);
    writer_.finish();
    context_.ranks().barrier();
    saved_.written_seconds = since(begin);
    saved_.extra_seconds = beside - static_cast<double>(saved_.steps_beside) * saved_.step_seconds;
  }

  const Options& options_;
  Context& context_;
  Device device_;
  TrainingWorkload work_;
  std::string layout_;
  CheckpointWriter writer_;
  Saved saved_;
};

// So that it is the disk that is read; a file system may keep them all the same.
void forget_cached_files(const std::string& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const FileDescriptor file(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() >= 0) ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  }
}

Loaded load(const Options& options, Device device, Context& context) {
  const int ranks = context.ranks().size();
  const StepOptions step = options.loaded();
  const auto groups = context.groups(step.mesh(ranks), device);
  TrainingWorkload work(models::ModelConfig::load(options.model), nullptr, step.training(ranks), *groups,
                        device);
  wait_for(device);
  const std::string folder = checkpoint_folder(options.out, kStep);
  forget_cached_files(folder);
  context.ranks().barrier();
  const auto begin = Clock::now();
  const CheckpointReader reader(folder);
  reader.read(work.model().pieces(&work.optimizer()), groups->world());
  work.optimizer().set_steps(reader.state().step);
  work.model().updated();
  wait_for(device);
  return {over_ranks(since(begin), parallel::Reduce::max, context), groups->mesh().describe()};
}

void remove_checkpoint(const Options& options, const Context& context) {
  context.ranks().barrier();
  if (options.keep || !context.is_root()) return;
  std::error_code ignored;
  const fs::path folder = checkpoint_folder(options.out, kStep);
  fs::remove_all(folder, ignored);
  fs::remove(folder.parent_path(), ignored);  // if it is empty
}

std::string text_of(const Saved& s, const Loaded& l, const std::string& layout) {
  constexpr double kGb = 1e9;
  return fmt::format(
      "checkpoint of {:.3f} GB, {}: a step takes {:.1f} ms, the one at the checkpoint {:.1f} ms, of which "
      "{:.1f} ms stall; {} step(s) beside the writing took {:.1f} ms longer\n"
      "complete on disk after {:.3f} s, {:.3f} GB/s; host memory taken once before, in {:.3f} s\n"
      "read into {} in {:.3f} s, {:.3f} GB/s\n",
      s.bytes / kGb, layout, s.step_seconds * 1e3, s.first_step_seconds * 1e3, s.stall_seconds * 1e3,
      s.steps_beside, s.extra_seconds * 1e3, s.written_seconds, s.bytes / s.written_seconds / kGb,
      s.reserve_seconds, l.layout, l.seconds, s.bytes / l.seconds / kGb);
}

void bench(const Options& options, Context& context) {
  require(options.steps >= 1, "--steps is {}: give at least 1", options.steps);
  const Device device = context.use_device();
  const parallel::Mesh mesh = options.step.mesh(context.ranks().size());
  options.loaded().mesh(mesh.ranks());  // says now what is no layout
  Saved saved;
  {
    const auto groups = context.groups(mesh, device);
    saved = Saving(options, *groups, device, context).go();
  }
  reset_memory_peaks(device);  // gives free blocks back
  const Loaded loaded = load(options, device, context);
  remove_checkpoint(options, context);
  context.emit({{"bytes", saved.bytes},
                {"layout", mesh.describe()},
                {"ranks", mesh.ranks()},
                {"step_seconds", saved.step_seconds},
                {"reserve_seconds", saved.reserve_seconds},
                {"snapshot_seconds", saved.snapshot_seconds},
                {"stall_seconds", saved.stall_seconds},
                {"first_step_seconds", saved.first_step_seconds},
                {"steps_beside", saved.steps_beside},
                {"extra_seconds", saved.extra_seconds},
                {"written_seconds", saved.written_seconds},
                {"written_bytes_per_s", saved.bytes / saved.written_seconds},
                {"load_layout", loaded.layout},
                {"load_seconds", loaded.seconds},
                {"load_bytes_per_s", saved.bytes / loaded.seconds}},
               text_of(saved, loaded, mesh.describe()));
}

}  // namespace

void add_bench_checkpoint(const Command& bench_command, Context& context) {
  const Command command =
      bench_command.add("checkpoint", "A checkpoint beside training steps, and the way back from disk");
  auto options = std::make_shared<Options>();
  command.required("--model", options->model, "Folder with config.json; weights are random");
  command.required("--out", options->out, "Folder without checkpoints, on the disk to be measured");
  command.option("--dtype", options->step.dtype, "f32 or bf16");
  command.option(
      "--steps", options->steps,
      "Steps without a checkpoint, after three to warm up; as many at the most beside the writing");
  options->step.add_to(command);
  command.option("--load-parallel", options->load_parallel,
                 "Layout to read into, as --parallel; default: the same");
  command.flag("--keep", options->keep, "Leave the checkpoint in --out");
  command.run([options, &context] { bench(*options, context); });
}

}  // namespace ridge
