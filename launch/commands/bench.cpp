#include <chrono>
#include <cstdio>
#include <filesystem>

#include "core/base/cuda.h"
#include "core/base/memory.h"
#include "core/base/threads.h"
#include "core/io/file.h"
#include "kernels/blas.h"
#include "kernels/matmul_tuning.h"
#include "launch/bench_layout.h"
#include "launch/ceilings.h"
#include "launch/commands/bench_kernels.h"
#include "launch/context.h"
#include "launch/environment.h"
#include "launch/workloads.h"

namespace ridge {
namespace {

struct Options {
  std::string model;
  std::int64_t prompt = 32, steps = 10;
  bool tune = false;
  double link_gbps = 320, link_us = 15;  // of the predicted network
  StepOptions step;
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

// Peak memory of the same steps on meta, and the time that their work needs at the limits.
struct Prediction {
  std::int64_t bytes = 0;
  double seconds = 0, exposed_seconds = 0;
};

Prediction predict(const Options& options, const parallel::Mesh& mesh, int rank, Device device,
                   const Ceilings& roof) {
  Stream& stream = current_stream(Device::meta);
  stream.meta_device = device;
  stream.meta_ceilings = roof;
  parallel::Groups groups = parallel::Groups::simulated(
      mesh, rank, parallel::SimulatedNetwork{options.link_gbps * 1e9, options.link_us * 1e-6});
  TrainingWorkload work(models::ModelConfig::load(options.model), nullptr,
                        options.step.training(mesh.ranks()), groups, Device::meta);
  reset_memory_peaks(Device::meta);
  for (int step = 0; step < 2; ++step) work.step();
  stream.virtual_seconds = 0;
  groups.reset_clocks();
  work.step();
  Prediction p{memory_stats(Device::meta).peak_reserved, stream.virtual_seconds};
  for (int axis = 0; axis < parallel::kAxes; ++axis)
    p.exposed_seconds += groups.time(static_cast<parallel::Axis>(axis)).exposed_seconds;
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

void train(const Options& options, Context& context) {
  require(options.steps >= 1, "--steps is {}: give at least 1", options.steps);
  const Device device = context.use_device();
  const parallel::Mesh mesh = options.step.mesh(context.ranks().size());
  const auto groups = context.groups(mesh, device);
  const Ceilings roof = measure_ceilings(device, parse_dtype(options.step.dtype));
  const Prediction predicted = predict(options, mesh, context.ranks().rank(), device, roof);
  const models::ModelConfig config = models::ModelConfig::load(options.model);
  const std::int64_t free_before = device == Device::cuda ? cuda::device_memory().total : 0;
  TrainingWorkload work(config, nullptr, options.step.training(mesh.ranks()), *groups, device);
  reset_memory_peaks(device);
  if (options.tune) tune(context, device, work);
  const double seconds = median(step_seconds(device, options.steps, [&] { work.step(); }));
  const double flops = config.train_flops_per_token(options.step.sequence_length) * work.tokens();
  const double share = flops / seconds / roof.flops_per_s;
  const std::int64_t peak = memory_stats(device).peak_reserved;
  const std::int64_t resident =
      device == Device::cuda ? free_before - cuda::device_memory().free : peak_resident_bytes();
  const auto mib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  context.emit(
      {{"step_seconds", seconds},
       {"tokens_per_s", work.tokens() / seconds},
       {"flops_per_s", flops / seconds},
       {"limit_share", share},
       {"matmul_flops_per_s", roof.flops_per_s},
       {"ranks", context.ranks().size()},
       {"layout", mesh.describe()},
       {"predicted_seconds", predicted.seconds},
       {"predicted_exposed_seconds", predicted.exposed_seconds},
       {"peak_bytes", peak},
       {"resident_bytes", resident},
       {"predicted_bytes", predicted.bytes}},
      fmt::format(
          "training step of {}, {} x {} tokens{}, {}, {}, median of {}: {:.1f} ms, {:.0f} tokens/s a "
          "rank, "
          "{:.1f} GFLOP/s (6N + 6LdT a token) = {:.1f}% of matmul; rank 0's own work and messages need "
          "{:.1f} "
          "ms at the limits\n"
          "peak memory {:.0f} MiB in tensors, {:.0f} MiB resident; {:.0f} MiB predicted on meta\n{}\n",
          options.model, options.step.batch, options.step.sequence_length,
          options.step.accumulate > 1 ? fmt::format(" x {} accumulated", options.step.accumulate) : "",
          options.step.dtype, mesh.describe(), options.steps, seconds * 1e3, work.tokens() / seconds,
          flops / seconds / 1e9, 100 * share, predicted.seconds * 1e3, mib(peak), mib(resident),
          mib(predicted.bytes), machine(device, roof)));
  if (context.is_root() && !context.json) std::fputs(memory_report(memory_stats(device)).c_str(), stdout);
}

void decode(const Options& options, Context& context) {
  require(options.steps >= 1, "--steps is {}: give at least 1", options.steps);
  const Device device = context.use_device();
  const Ceilings roof = measure_ceilings(device, parse_dtype(options.step.dtype));
  const auto model = workload_model(options.model, parse_dtype(options.step.dtype), true, device);
  DecodingWorkload work(*model, options.prompt, options.prompt + options.steps + 6);
  const double seconds = median(step_seconds(device, options.steps, [&] { work.step(); }));
  const double rate = work.bytes_per_step() / seconds;
  context.emit({{"token_seconds", seconds},
                {"tokens_per_s", 1 / seconds},
                {"bytes_per_token", work.bytes_per_step()},
                {"bytes_per_s", rate},
                {"limit_share", rate / roof.read_bytes_per_s},
                {"read_bytes_per_s", roof.read_bytes_per_s}},
               fmt::format("decoding of {}, batch 1, {}, median of {}: {:.2f} ms a token, {:.1f} tokens/s, "
                           "{:.1f} GB/s = {:.1f}% of "
                           "read bandwidth\n{}\n",
                           options.model, options.step.dtype, options.steps, seconds * 1e3, 1 / seconds,
                           rate / 1e9, 100 * rate / roof.read_bytes_per_s, machine(device, roof)));
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
  auto training = std::make_shared<Options>();
  const Command steps = add_workload(bench, *training, "train", "A training step, all weights, AdamW", "f32");
  training->step.add_to(steps);
  steps.option("--link-gbps", training->link_gbps, "Predicted network: GB/s of a rank's link, each way");
  steps.option("--link-us", training->link_us, "Predicted network: microseconds of a message");
  steps.flag("--tune", training->tune,
             "First measure the algorithms of every product and keep the fastest, for later runs too");
  steps.run([training, &context] { train(*training, context); });
  auto decoding = std::make_shared<Options>();
  decoding->steps = 50;
  const Command tokens = add_workload(bench, *decoding, "decode", "Decoding of one sequence", "bf16");
  tokens.option("--prompt", decoding->prompt, "Tokens before the first step");
  tokens.run([decoding, &context] { decode(*decoding, context); });
}

}  // namespace ridge
