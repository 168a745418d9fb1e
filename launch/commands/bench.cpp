#include <chrono>
#include <cstdio>
#include <filesystem>
#include <limits>

#include "core/base/cuda.h"
#include "core/base/memory.h"
#include "core/base/threads.h"
#include "core/io/file.h"
#include "kernels/blas.h"
#include "kernels/matmul_tuning.h"
#include "launch/bench_layout.h"
#include "launch/ceilings.h"
#include "launch/commands/bench_attention.h"
#include "launch/commands/bench_checkpoint.h"
#include "launch/commands/bench_decode.h"
#include "launch/commands/bench_gemm.h"
#include "launch/commands/bench_kernels.h"
#include "launch/context.h"
#include "launch/environment.h"
#include "launch/pipeline_times.h"
#include "launch/workloads.h"

namespace ridge {
namespace {

struct Options {
  std::string model;
  std::int64_t steps = 10;
  bool tune = false;
  double link_gbps = 320, link_us = 15;  // of the predicted network
  StepOptions step;

  parallel::SimulatedNetwork network() const { return {link_gbps * 1e9, link_us * 1e-6}; }
};

using Clock = std::chrono::steady_clock;

// Seconds of each step, after two to warm up (on a GPU five).
template <class Step>
std::vector<double> step_seconds(Device device, std::int64_t steps, Step&& step) {
  std::vector<double> seconds;
  for (std::int64_t i = device == Device::cuda ? -5 : -2; i < steps; ++i) {
    const auto start = Clock::now();
    step();
    if (device == Device::cuda) cuda::synchronize(current_stream(device));
    if (i >= 0) seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  return seconds;
}

std::string machine(Device device, const Ceilings& roof) {
  const std::string place =
      device == Device::cuda
          ? cuda_devices().at(static_cast<std::size_t>(cuda::selected_device()))
          : fmt::format("{} thread(s), OpenBLAS {}", thread_count(), kernels::blas_kernels());
  return fmt::format("{}; limits: {:.1f} GFLOP/s matmul, {:.1f} GB/s read, {:.1f} GB/s copy", place,
                     roof.flops_per_s / 1e9, roof.read_bytes_per_s / 1e9, roof.copy_bytes_per_s / 1e9);
}

void ceilings(Context& context) {
  const Device device = context.use_device();
  const Ceilings roof = measure_ceilings(device, DType::bf16);
  context.emit({{"flops_per_s", roof.flops_per_s},
                {"read_bytes_per_s", roof.read_bytes_per_s},
                {"copy_bytes_per_s", roof.copy_bytes_per_s},
                {"threads", thread_count()}},
               machine(device, roof) + "\n");
}

constexpr int kBubbleSteps = 3;

// Of the same steps on meta, with every op at its limit.
struct Prediction {
  std::int64_t bytes = 0;                   // peak of this rank
  double seconds = 0, exposed_seconds = 0;  // exposed: this rank's communication that nothing runs beside
};

// Steps of `rank` alone. Adds them to `pipeline` where there is one.
Prediction predict_rank(const Options& options, const parallel::Mesh& mesh, int rank,
                        PipelineForecast& pipeline) {
  parallel::Groups groups = parallel::Groups::simulated(mesh, rank, options.network());
  TrainingWorkload work(models::ModelConfig::load(options.model), nullptr,
                        options.step.training(mesh.ranks()), groups, Device::meta);
  if (work.model().pipeline() != nullptr) work.model().pipeline()->measure(true);
  reset_memory_peaks(Device::meta);
  for (int step = 0; step < 2; ++step) work.step();
  const SimulatedStep step = simulate_step(groups, [&] { work.step(); });
  if (work.model().pipeline() != nullptr) pipeline.add(work.model().pipeline()->timeline(), step.seconds);
  return {memory_stats(Device::meta).peak_reserved, step.seconds, step.exposed_seconds};
}

// With a pipeline the time of all its stages, bubble and messages included.
Prediction predict(const Options& options, const parallel::Mesh& mesh, int rank, Device device,
                   const Ceilings& roof) {
  Stream& stream = current_stream(Device::meta);
  stream.meta_device = device;
  stream.meta_ceilings = roof;
  const TrainingOptions training = options.step.training(mesh.ranks());
  PipelineForecast pipeline(pipeline_shape(training.layout, mesh, training.accumulate));
  Prediction p = predict_rank(options, mesh, rank, pipeline);
  if (mesh.size(parallel::Axis::pp) == 1) return p;
  for (const int other : mesh.group(rank, {parallel::Axis::pp})) {
    if (other != rank) predict_rank(options, mesh, other, pipeline);
  }
  const std::int64_t hidden = models::ModelConfig::load(options.model).hidden_size;
  p.seconds = pipeline.step_seconds(
      options.network(),
      message_bytes(training.layout, mesh, training.batch * training.sequence_length, hidden));
  return p;
}

// One step that tries algorithms of every product, and the file that later runs read.
void tune(const Context& context, Device device, TrainingWorkload& work) {
  const std::string file = matmul_choices_file();
  require(device == Device::cuda && context.ranks().size() == 1, "--tune: on one GPU, with one rank");
  require(!file.empty(), "--tune: neither XDG_CACHE_HOME nor HOME says where to keep the choices");
  kernels::set_matmul_tuning(true);
  work.step();
  kernels::set_matmul_tuning(false);
  std::filesystem::create_directories(std::filesystem::path(file).parent_path());
  write_file_atomically(file, kernels::matmul_choices());
  context.note("choices of matrix products: " + file);
}

struct TrainReport {
  double seconds = 0, tokens = 0, flops = 0;  // of a rank and step
  Prediction predicted;
  bool piped = false;
  BubbleShares bubble;
  std::int64_t peak = 0, resident = 0;  // bytes
  Ceilings roof;
  std::string layout;

  double limit_share() const { return flops / seconds / roof.flops_per_s; }
};

std::string text_of(const TrainReport& r, const Options& options, Device device) {
  const auto mib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  std::string text = fmt::format(
      "training step of {}, {} x {} tokens{}, {}, {}, median of {}: {:.1f} ms, {:.0f} tokens/s a rank, "
      "{:.1f} GFLOP/s (6N + 6LdT a token) = {:.1f}% of matmul; the same on meta, every op and message at its "
      "limit: {:.1f} ms, of which rank 0 waits {:.1f} ms for others\n",
      options.model, options.step.batch, options.step.sequence_length,
      options.step.accumulate > 1 ? fmt::format(" x {} accumulated", options.step.accumulate) : "",
      options.step.dtype, r.layout, options.steps, r.seconds * 1e3, r.tokens / r.seconds,
      r.flops / r.seconds / 1e9, 100 * r.limit_share(), r.predicted.seconds * 1e3,
      r.predicted.exposed_seconds * 1e3);
  if (r.piped)
    text += fmt::format(
        "pipeline bubble {:.1f}%; the schedule alone with these times of its stages {:.1f}%, with even ones "
        "{:.1f}%\n",
        100 * r.bubble.measured, 100 * r.bubble.schedule, 100 * r.bubble.even);
  return text +
         fmt::format(
             "peak memory {:.0f} MiB in tensors, {:.0f} MiB resident; {:.0f} MiB predicted on meta\n{}\n",
             mib(r.peak), mib(r.resident), mib(r.predicted.bytes), machine(device, r.roof));
}

JsonObject json_of(const TrainReport& r, int ranks) {
  const double none = std::numeric_limits<double>::quiet_NaN();  // null in JSON
  return {{"step_seconds", r.seconds},
          {"tokens_per_s", r.tokens / r.seconds},
          {"flops_per_s", r.flops / r.seconds},
          {"limit_share", r.limit_share()},
          {"matmul_flops_per_s", r.roof.flops_per_s},
          {"ranks", ranks},
          {"layout", r.layout},
          {"predicted_seconds", r.predicted.seconds},
          {"predicted_exposed_seconds", r.predicted.exposed_seconds},
          {"bubble_share", r.piped ? r.bubble.measured : none},
          {"schedule_bubble_share", r.piped ? r.bubble.schedule : none},
          {"even_bubble_share", r.piped ? r.bubble.even : none},
          {"peak_bytes", r.peak},
          {"resident_bytes", r.resident},
          {"predicted_bytes", r.predicted.bytes}};
}

void train(const Options& options, Context& context) {
  require(options.steps >= 1, "--steps is {}: give at least 1", options.steps);
  const Device device = context.use_device();
  const parallel::Mesh mesh = options.step.mesh(context.ranks().size());
  options.step.check(models::ModelConfig::load(options.model), mesh.ranks());
  const auto groups = context.groups(mesh, device);
  TrainReport report;
  report.layout = mesh.describe();
  report.roof = measure_ceilings(device, parse_dtype(options.step.dtype));
  report.predicted = predict(options, mesh, context.ranks().rank(), device, report.roof);
  const models::ModelConfig config = models::ModelConfig::load(options.model);
  const std::int64_t free_before = device == Device::cuda ? cuda::device_memory().total : 0;
  const TrainingOptions training = options.step.training(mesh.ranks());
  TrainingWorkload work(config, nullptr, training, *groups, device);
  reset_memory_peaks(device);
  if (options.tune) tune(context, device, work);
  report.seconds = median(step_seconds(device, options.steps, [&] { work.step(); }));
  report.piped = work.model().pipeline() != nullptr;
  report.bubble =
      measure_bubble(work, pipeline_shape(training.layout, mesh, training.accumulate), kBubbleSteps);
  report.tokens = work.tokens();
  report.flops = config.train_flops_per_token(options.step.sequence_length) * report.tokens;
  report.peak = memory_stats(device).peak_reserved;
  report.resident = device == Device::cuda ? free_before - cuda::device_memory().free : peak_resident_bytes();
  context.emit(json_of(report, context.ranks().size()), text_of(report, options, device));
  if (context.is_root() && !context.json) std::fputs(memory_report(memory_stats(device)).c_str(), stdout);
}

Command add_workload(const Command& bench, Options& options, const char* name, const char* what,
                     const char* dtype) {
  const Command command = bench.add(name, what);
  options.step.dtype = dtype;
  command.required("--model", options.model, "Folder with config.json; weights are random");
  command.option("--dtype", options.step.dtype, "f32 or bf16");
  command.option("--steps", options.steps, "Steps after two to warm up");
  return command;
}

}  // namespace

void add_bench(const Command& app, Context& context) {
  const Command bench = app.add("bench", "Speed beside the machine's limits", true);
  bench.add("ceilings", "Matmul rate and memory bandwidth").run([&context] { ceilings(context); });
  auto each = std::make_shared<KernelBenchOptions>();
  const Command kernels = bench.add("kernels", "The kernels of a training step, one by one, in bf16");
  kernels.option("--rows", each->rows, "Tokens");
  kernels.option("--runs", each->runs, "Batches of ten launches of each kernel");
  kernels.run([each, &context] { bench_kernels(*each, context); });
  add_bench_attention(bench, context);
  add_bench_gemm(bench, context);
  add_bench_checkpoint(bench, context);
  auto training = std::make_shared<Options>();
  const Command steps = add_workload(bench, *training, "train", "A training step, all weights, AdamW", "f32");
  training->step.add_to(steps);
  steps.option("--link-gbps", training->link_gbps, "Predicted network: GB/s of a rank's link, each way");
  steps.option("--link-us", training->link_us, "Predicted network: microseconds of a message");
  steps.flag("--tune", training->tune,
             "First measure the algorithms of every product and keep the fastest, for later runs too");
  steps.run([training, &context] { train(*training, context); });
  add_bench_decode(bench, context);
}

}  // namespace ridge
