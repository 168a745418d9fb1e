#include <chrono>

#include "core/base/memory.h"
#include "core/base/threads.h"
#include "kernels/blas.h"
#include "launch/ceilings.h"
#include "launch/context.h"
#include "launch/workloads.h"

namespace ridge {
namespace {

struct Options {
  std::string model;
  std::string dtype;
  std::int64_t batch = 4, sequence_length = 512, prompt = 32, steps = 10;
};

using Clock = std::chrono::steady_clock;

// Seconds of each step, after two to warm up.
template <class Step>
std::vector<double> step_seconds(std::int64_t steps, Step&& step) {
  std::vector<double> seconds;
  for (std::int64_t i = -2; i < steps; ++i) {
    const auto start = Clock::now();
    step();
    if (i >= 0) seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  return seconds;
}

std::string machine(const Ceilings& roof) {
  return fmt::format(
      "{} thread(s), OpenBLAS {}; limits: {:.1f} GFLOP/s sgemm, {:.1f} GB/s read, {:.1f} GB/s copy",
      thread_count(), kernels::blas_kernels(), roof.flops_per_s / 1e9, roof.read_bytes_per_s / 1e9,
      roof.copy_bytes_per_s / 1e9);
}

void ceilings(Context& context) {
  const Ceilings roof = measure_ceilings();
  context.emit({{"flops_per_s", roof.flops_per_s},
                {"read_bytes_per_s", roof.read_bytes_per_s},
                {"copy_bytes_per_s", roof.copy_bytes_per_s},
                {"threads", thread_count()}},
               machine(roof) + "\n");
}

// Peak memory of the same steps on meta.
std::int64_t predicted_bytes(const Options& options) {
  reset_memory_peaks(Device::meta);
  models::Llama model(models::ModelConfig::load(options.model), parse_dtype(options.dtype), Device::meta);
  TrainingWorkload work(model, options.batch, options.sequence_length);
  for (int step = 0; step < 3; ++step) work.step();
  return memory_stats(Device::meta).peak_reserved;
}

void train(const Options& options, Context& context) {
  require(options.steps >= 1, "--steps is {}: give at least 1", options.steps);
  const Ceilings roof = measure_ceilings();
  reset_memory_peaks(Device::cpu);
  const std::int64_t predicted = predicted_bytes(options);
  const auto model = workload_model(options.model, parse_dtype(options.dtype), true);
  TrainingWorkload work(*model, options.batch, options.sequence_length);
  const double seconds = median(step_seconds(options.steps, [&] { work.step(); }));
  const double flops =
      model->config().train_flops_per_token(options.sequence_length) * static_cast<double>(work.tokens());
  const double share = flops / seconds / roof.flops_per_s;
  const std::int64_t peak = memory_stats(Device::cpu).peak_reserved, resident = peak_resident_bytes();
  const auto mib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  context.emit(
      {{"step_seconds", seconds},
       {"tokens_per_s", static_cast<double>(work.tokens()) / seconds},
       {"flops_per_s", flops / seconds},
       {"limit_share", share},
       {"sgemm_flops_per_s", roof.flops_per_s},
       {"peak_bytes", peak},
       {"resident_bytes", resident},
       {"predicted_bytes", predicted}},
      fmt::format(
          "training step of {}, {} x {} tokens, {}, median of {}: {:.1f} ms, {:.0f} tokens/s, {:.1f} GFLOP/s "
          "(6N + 6LdT a token) = {:.1f}% of sgemm\npeak memory {:.0f} MiB in tensors, {:.0f} MiB resident; "
          "{:.0f} "
          "MiB predicted on meta\n{}\n",
          options.model, options.batch, options.sequence_length, options.dtype, options.steps, seconds * 1e3,
          static_cast<double>(work.tokens()) / seconds, flops / seconds / 1e9, 100 * share, mib(peak),
          mib(resident), mib(predicted), machine(roof)));
}

void decode(const Options& options, Context& context) {
  require(options.steps >= 1, "--steps is {}: give at least 1", options.steps);
  const Ceilings roof = measure_ceilings();
  const auto model = workload_model(options.model, parse_dtype(options.dtype), true);
  DecodingWorkload work(*model, options.prompt, options.prompt + options.steps + 3);
  const double seconds = median(step_seconds(options.steps, [&] { work.step(); }));
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
                           options.model, options.dtype, options.steps, seconds * 1e3, 1 / seconds,
                           rate / 1e9, 100 * rate / roof.read_bytes_per_s, machine(roof)));
}

Command add_workload(const Command& bench, Options& options, const char* name, const char* what,
                     const char* dtype) {
  const Command command = bench.add(name, what);
  options.dtype = dtype;
  command.required("--model", options.model, "Folder with config.json; weights are random");
  command.option("--dtype", options.dtype, "f32 or bf16");
  command.option("--steps", options.steps, "Steps after two to warm up");
  return command;
}

}  // namespace

void add_bench(const Command& app, Context& context) {
  const Command bench = app.add("bench", "Speed beside the machine's limits", true);
  bench.add("ceilings", "Matmul rate and memory bandwidth").run([&context] { ceilings(context); });
  auto training = std::make_shared<Options>();
  const Command steps = add_workload(bench, *training, "train", "A training step, all weights, AdamW", "f32");
  steps.option("--batch", training->batch, "Sequences of a step");
  steps.option("--sequence-length", training->sequence_length, "Tokens of a sequence");
  steps.run([training, &context] { train(*training, context); });
  auto decoding = std::make_shared<Options>();
  decoding->steps = 50;
  const Command tokens = add_workload(bench, *decoding, "decode", "Decoding of one sequence", "bf16");
  tokens.option("--prompt", decoding->prompt, "Tokens before the first step");
  tokens.run([decoding, &context] { decode(*decoding, context); });
}

}  // namespace ridge
