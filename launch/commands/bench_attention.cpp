#include "launch/commands/bench_attention.h"

#include <fmt/core.h>

#include <memory>

#include "core/base/error.h"
#include "launch/ceilings.h"
#include "launch/context.h"
#include "parallel/context_benchmark.h"

namespace ridge {
namespace {

struct Options {
  std::int64_t sequence_length = 32768, heads = 32, kv_heads = 8, head_dim = 128, batch = 1, steps = 10;
  std::string context = "ring", dtype = "bf16";
  bool any_order = false;

  parallel::ContextBenchmark on(Device device) const {
    parallel::ContextBenchmark b;
    b.kind = parallel::parse_context_kind(context);
    b.batch = batch;
    b.tokens = sequence_length;
    b.heads = {heads, kv_heads, head_dim};
    b.dtype = parse_dtype(dtype);
    b.device = device;
    b.deterministic = !any_order;
    b.repeats = static_cast<int>(steps);
    return b;
  }
};

void check_sizes(const Options& o) {
  require(o.batch >= 1 && o.sequence_length >= 1 && o.heads >= 1 && o.kv_heads >= 1 && o.head_dim >= 2,
          "attention of {} x {} tokens, {} heads, {} KV heads of {}: all must be at least 1", o.batch,
          o.sequence_length, o.heads, o.kv_heads, o.head_dim);
  require(o.heads % o.kv_heads == 0 && o.head_dim % 2 == 0,
          "{} heads, {} KV heads of {}: KV heads divide heads, and a head's size is even", o.heads,
          o.kv_heads, o.head_dim);
  require(o.steps >= 1 && o.steps <= 1'000'000, "--steps is {}: give 1 to a million", o.steps);
}

void bench(const Options& options, Context& context) {
  check_sizes(options);
  const Device device = context.use_device();
  const int ranks = context.ranks().size();
  const auto groups = context.groups(parallel::Mesh({1, 1, 1, ranks, 1}), device);
  const Ceilings roof = measure_ceilings(device, parse_dtype(options.dtype));
  const parallel::ContextTiming timing =
      parallel::benchmark_context(groups->along(parallel::Axis::cp), options.on(device));
  const double alone = timing.flops / timing.whole_seconds;
  context.emit(
      {{"seconds", timing.seconds},
       {"flops_per_s", timing.flops_per_s()},
       {"whole_seconds", timing.whole_seconds},
       {"whole_flops_per_s", alone},
       {"efficiency", timing.efficiency()},
       {"limit_share", timing.flops_per_s() / roof.flops_per_s},
       {"matmul_flops_per_s", roof.flops_per_s},
       {"ranks", ranks},
       {"context", options.context},
       {"tokens", options.batch * options.sequence_length}},
      fmt::format(
          "attention forward and backward with rotary positions, {} x {} tokens, {} heads, {} KV heads of "
          "{}, {}, mean of {}: {} over {} rank(s) {:.2f} ms, {:.1f} GFLOP/s a rank (14 D a visible pair and "
          "head) = {:.1f}% of matmul; the whole sequence on one rank {:.2f} ms, {:.1f} GFLOP/s; "
          "efficiency {:.1f}%\n",
          options.batch, options.sequence_length, options.heads, options.kv_heads, options.head_dim,
          options.dtype, options.steps, options.context, ranks, timing.seconds * 1e3,
          timing.flops_per_s() / 1e9, 100 * timing.flops_per_s() / roof.flops_per_s,
          timing.whole_seconds * 1e3, alone / 1e9, 100 * timing.efficiency()));
}

}  // namespace

void add_bench_attention(const Command& bench_command, Context& context) {
  const Command command =
      bench_command.add("attention", "Attention over a sequence that all ranks share, both passes");
  auto options = std::make_shared<Options>();
  command.option("--sequence-length", options->sequence_length, "Tokens of the whole sequence");
  command.option("--heads", options->heads, "Query heads");
  command.option("--kv-heads", options->kv_heads, "Key and value heads");
  command.option("--head-dim", options->head_dim, "Elements of a head");
  command.option("--batch", options->batch, "Sequences");
  command.option("--context", options->context, "ring or ulysses");
  command.option("--dtype", options->dtype, "f32 or bf16");
  command.option("--steps", options->steps, "Passes after three to warm up");
  command.flag("--any-order", options->any_order,
               "Gradients summed in any order: faster, other bits each time");
  command.run([options, &context] { bench(*options, context); });
}

}  // namespace ridge
