#include <chrono>
#include <optional>

#include "core/base/cuda.h"
#include "core/base/profiler.h"
#include "core/base/threads.h"
#include "core/io/perfetto.h"
#include "launch/bench_layout.h"
#include "launch/ceilings.h"
#include "launch/context.h"
#include "launch/decoder_model.h"
#include "launch/workloads.h"

namespace ridge {
namespace {

struct Options {
  std::string model;
  std::string trace = "profile.pftrace";
  std::int64_t prompt = 32, steps = 0;
  bool train = false, generate = false;
  StepOptions step;
  DecoderOptions decoder;
};

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void wait_for(Device device) {
  if (device == Device::cuda) cuda::synchronize(current_stream(device));
}

// Runs `step` once to warm up, then `steps` times under the profiler; returns the wall time of those.
template <class Step>
double profiled(Device device, Profiler& profiler, std::int64_t steps, Step&& step) {
  step();
  wait_for(device);
  profiler.clear();
  const ProfilerScope scope(current_stream(device), &profiler);
  const auto start = Clock::now();
  for (std::int64_t i = 0; i < steps; ++i) step();
  wait_for(device);
  return seconds_since(start);
}

// Steps of the decode engine, one after the other and kernel by kernel, after a prompt and a step to warm up.
double profiled_decoding(const Options& options, Device device, Profiler& profiler) {
  DecoderOptions decoder = options.decoder;
  decoder.model = options.model;
  decoder.dtype = options.step.dtype;
  decoder.quantize = options.step.quantize;
  decoder.no_graph = true;
  decoder.random = false;
  const auto model = decoder_model(decoder, device);
  inference::EngineOptions how = decoder.engine();
  how.slots = options.step.batch;
  how.ahead = 0;
  inference::Engine engine(*model, how);
  const std::int64_t steps = options.steps > 0 ? options.steps : 64;
  std::vector<inference::Request> requests;
  for (std::int64_t b = 0; b < options.step.batch; ++b)
    requests.push_back(
        {random_prompt(options.prompt, model->config().vocab_size, static_cast<std::uint64_t>(b)),
         steps + 2});
  std::optional<ProfilerScope> scope;
  Clock::time_point start;
  requests.back().on_token = [&, heard = 0](std::int32_t) mutable {
    if (++heard != 2) return true;
    wait_for(device);
    profiler.clear();
    scope.emplace(current_stream(device), &profiler);
    start = Clock::now();
    return true;
  };
  engine.generate(requests);
  wait_for(device);
  return seconds_since(start);
}

void write_trace(const Profiler& profiler, const std::string& path) {
  PerfettoWriter trace(path);
  trace.process(1, "ridge");
  const auto track = trace.thread(1, 1, "compute stream");
  for (const LaunchRecord& r : profiler.records()) {
    const TraceAnnotation notes[] = {{"flops", r.flops}, {"bytes", r.bytes}};
    trace.begin(track, r.op, static_cast<std::uint64_t>(r.begin_ns), notes);
    trace.end(track, static_cast<std::uint64_t>(r.end_ns));
  }
  trace.flush();
}

std::vector<JsonObject> rows_json(const std::vector<OpSummary>& ops, const Ceilings& roof) {
  std::vector<JsonObject> rows;
  for (const OpSummary& op : ops) {
    const double attainable = attainable_seconds(roof, op.flops, op.bytes);
    rows.push_back({{"op", op.op},
                    {"calls", op.calls},
                    {"seconds", op.seconds},
                    {"flops", op.flops},
                    {"bytes", op.bytes},
                    {"attainable_seconds", attainable},
                    {"limit_share", attainable / op.seconds}});
  }
  return rows;
}

double run_workload(const Options& options, const Context& context, Device device, Profiler& profiler) {
  if (options.generate) return profiled_decoding(options, device, profiler);
  const parallel::Mesh mesh = options.step.mesh(context.ranks().size());
  options.step.check(models::ModelConfig::load(options.model), mesh.ranks());
  const auto groups = context.groups(mesh, device);
  const auto weights =
      has_weights(options.model) ? std::make_unique<models::ModelWeights>(options.model) : nullptr;
  TrainingWorkload work(weights ? weights->config() : models::ModelConfig::load(options.model), weights.get(),
                        options.step.training(mesh.ranks()), *groups, device);
  return profiled(device, profiler, options.steps > 0 ? options.steps : 5, [&] { work.step(); });
}

void run(const Options& options, Context& context) {
  require(!(options.train && options.generate), "profile: give --train or --generate, not both");
  require(options.steps >= 0, "--steps is {}: give at least 1", options.steps);
  if (options.generate) {
    require(options.prompt >= 1, "--prompt is {}: give at least 1", options.prompt);
    require(options.step.batch >= 1, "--batch is {}: give at least 1", options.step.batch);
    require(context.ranks().size() == 1, "profile --generate runs on one rank, not on {}",
            context.ranks().size());
  } else {
    require(options.decoder.kv_cache == "auto" && !options.decoder.quantize_head,
            "--kv-cache and --quantize-head are of decoding: give --generate");
  }
  require(options.step.dtype == "f32" || options.step.dtype == "bf16",
          "--dtype {} is unknown: use f32 or bf16", options.step.dtype);
  const Device device = context.use_device();
  const Ceilings roof = measure_ceilings(device, parse_dtype(options.step.dtype));
  Profiler profiler;
  const double wall = run_workload(options, context, device, profiler);
  if (context.is_root()) write_trace(profiler, options.trace);
  const auto ops = profiler.summary();
  std::string text = fmt::format(
      "{} of {} on {}, {}\nlimits: {:.1f} GFLOP/s matmul, {:.1f} GB/s read, {:.1f} GB/s copy\n\n",
      options.generate ? "decoding" : "training", options.model,
      device == Device::cuda ? cuda_devices().at(static_cast<std::size_t>(cuda::selected_device()))
                             : fmt::format("{} thread(s)", thread_count()),
      options.step.dtype, roof.flops_per_s / 1e9, roof.read_bytes_per_s / 1e9, roof.copy_bytes_per_s / 1e9);
  text += roofline_table(ops, roof, wall);
  text += fmt::format("trace: {} (open it in ui.perfetto.dev)\n", options.trace);
  JsonObject json{{"wall_seconds", wall},
                  {"flops_per_s", roof.flops_per_s},
                  {"read_bytes_per_s", roof.read_bytes_per_s},
                  {"copy_bytes_per_s", roof.copy_bytes_per_s},
                  {"trace", options.trace}};
  json.add("ops", rows_json(ops, roof));
  context.emit(json, text);
}

}  // namespace

void add_profile(const Command& app, Context& context) {
  auto options = std::make_shared<Options>();
  const Command command = app.add("profile", "Achieved against attainable, op by op");
  command.required("--model", options->model,
                   "Hugging Face folder; one with config.json alone gets random weights");
  command.flag("--train", options->train, "Training steps (default)");
  command.flag("--generate", options->generate, "Decoding steps");
  command.option("--dtype", options->step.dtype, "f32 or bf16");
  options->step.batch = 1;
  options->step.add_to(command);
  command.option("--prompt", options->prompt, "Decoding: tokens before the first step");
  command.option("--kv-cache", options->decoder.kv_cache,
                 "Decoding: auto (the dtype), f32, bf16, fp8 or int8");
  command.flag("--quantize-head", options->decoder.quantize_head, "Decoding: the output layer's weights too");
  command.option("--steps", options->steps, "Steps to profile; default: 5 of training, 64 of decoding");
  command.option("--trace", options->trace, "Perfetto trace to write");
  command.run([options, &context] { run(*options, context); });
}

}  // namespace ridge
