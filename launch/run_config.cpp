#include "launch/run_config.h"

#include <fstream>
#include <sstream>

#include "core/base/error.h"
#include "kernels/formats/format.h"
#include "launch/run_config.pb.h"
#include "launch/yaml_to_proto.h"

namespace ridge {
namespace {

using config::RunConfig;

constexpr std::size_t kLargestFile = 1 << 20;  // bytes; merge_yaml sets the limit that the user sees

std::string read_config_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  require(file.good(), "{}: cannot read the run config: give the path of a YAML file", path);
  std::string text(kLargestFile, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  require(!file.bad() && (file.eof() || file.good()), "{}: cannot read the run config", path);
  text.resize(static_cast<std::size_t>(file.gcount()));
  return text;
}

// What `lora` leaves open is as the adapter has it where the run starts from one.
void fill_open_fields(RunConfig& c) {
  const bool from_adapter = c.has_adapter() && c.has_lora();
  const config::Lora given = c.lora();
  fill_presets(c);
  if (from_adapter) *c.mutable_lora() = given;
}

void resolve_model(const RunConfig& c) {
  const auto& m = c.model();
  require(m.has_path() || m.has_arch(), "model: give model.path (a Hugging Face folder) or model.arch");
  require(!(m.has_path() && m.has_arch()), "model: both path ({}) and arch are given: keep one", m.path());
  require(!m.has_path() || !m.path().empty(), "model.path is empty: give a Hugging Face folder");
  require(m.has_path() || m.has_tokenizer(),
          "model.tokenizer: a model.arch needs one: give a folder with tokenizer.json");
  require(!c.has_adapter() || !c.adapter().path().empty(), "adapter.path: give the folder of a PEFT adapter");
}

void resolve_quantize(const RunConfig& c) {
  const auto& m = c.model();
  require(m.has_quantize() || !m.double_quant(),
          "model.double_quant is set, but model.quantize is not: set model.quantize to nf4 or fp4");
  if (!m.has_quantize()) return;
  const kernels::WeightFormat format = kernels::parse_weight_format(m.quantize());
  require(!m.double_quant() || format.flat(),
          "model.double_quant goes with nf4 and fp4, and model.quantize is {}", m.quantize());
  require(c.has_lora() || c.has_adapter(),
          "model.quantize {}: quantized weights are not trained: add adapters on them with a lora section",
          m.quantize());
}

void resolve_lora(RunConfig& c) {
  if (!c.has_lora() || c.has_adapter()) return;
  auto& lora = *c.mutable_lora();
  require(!lora.has_target_pattern() || lora.targets().empty(),
          "lora: both targets and target_pattern ({}) are given: keep one", lora.target_pattern());
  if (lora.has_target_pattern() || !lora.targets().empty()) return;
  lora.add_targets("q_proj");
  lora.add_targets("v_proj");
}

std::string layout(const config::Parallel& p) {
  return fmt::format("replicate {} x shard {} x cp {} x tp {} x pp {}", p.replicate(), p.shard(), p.cp(),
                     p.tp(), p.pp());
}

// The product of degrees as far as it can be at most `world`; 0 where it is more.
std::int64_t product_within(std::initializer_list<std::int64_t> degrees, std::int64_t world) {
  std::int64_t product = 1;
  for (const std::int64_t degree : degrees) {
    if (degree > world / product) return 0;
    product *= degree;
  }
  return product;
}

// "4 or 6": the multiples of `unit` around `batch`.
std::string nearest_multiples(std::int64_t batch, std::int64_t unit) {
  const std::int64_t below = batch / unit * unit;
  return below > 0 ? fmt::format("{} or {}", below, below + unit) : fmt::format("{}", below + unit);
}

std::int64_t largest_divisor(std::int64_t value, std::int64_t at_most) {
  std::int64_t best = 1;
  for (std::int64_t d = 1; d * d <= value; ++d) {
    if (value % d != 0) continue;
    if (d <= at_most) best = std::max(best, d);
    if (value / d <= at_most) best = std::max(best, value / d);
  }
  return best;
}

void resolve_batch(RunConfig& c, std::vector<std::string>& notes) {
  auto& t = *c.mutable_train();
  const std::int64_t ranks = data_parallel_degree(c);
  const std::int64_t batch = t.global_batch();
  require(batch % ranks == 0,
          "train.global_batch {} is not divisible by {} data-parallel ranks; nearest that work: {}", batch,
          ranks, nearest_multiples(batch, ranks));
  const std::int64_t share = batch / ranks;
  if (!t.has_micro_batch()) t.set_micro_batch(share);
  const std::int64_t micro = largest_divisor(share, t.micro_batch());
  if (micro != t.micro_batch()) {
    notes.push_back(
        fmt::format("train.micro_batch {}: a rank has {} samples a step, so it takes {} at a time",
                    t.micro_batch(), share, micro));
    t.set_micro_batch(micro);
  }
  std::int64_t tokens = 0;
  require(
      !__builtin_mul_overflow(batch, c.data().sequence_length(), &tokens) &&
          !__builtin_mul_overflow(tokens, t.steps(), &tokens),
      "train.steps {} x train.global_batch {} x data.sequence_length {} tokens is more than can be counted",
      t.steps(), batch, c.data().sequence_length());
}

void resolve_optim(RunConfig& c) {
  auto& o = *c.mutable_optim();
  require(o.betas_size() == 2, "optim.betas must be two numbers, got {}", o.betas_size());
  require(!o.nesterov() || o.momentum() > 0, "optim.nesterov needs optim.momentum above 0, got {}",
          o.momentum());
  auto& s = *o.mutable_schedule();
  const std::int64_t steps = c.train().steps();
  require(s.warmup_steps() <= steps, "optim.schedule.warmup_steps {} is more than train.steps {}",
          s.warmup_steps(), steps);
  if (s.name() != "wsd") return;
  if (!s.has_decay_steps())
    s.set_decay_steps(std::max<std::int64_t>(1, std::min(steps / 10, steps - s.warmup_steps())));
  require(s.decay_steps() <= std::max<std::int64_t>(1, steps - s.warmup_steps()),
          "optim.schedule: warmup_steps {} and decay_steps {} are more than train.steps {}", s.warmup_steps(),
          s.decay_steps(), steps);
}

void resolve_files(const RunConfig& c) {
  require(c.data().train_size() > 0, "data.train: give at least one text or token file");
  for (const std::string& file : c.data().train())
    require(!file.empty(), "data.train has an empty file name");
  for (const std::string& file : c.data().valid())
    require(!file.empty(), "data.valid has an empty file name");
  require(c.train().eval_every() == 0 || c.data().valid_size() > 0,
          "train.eval_every is {} but data.valid names no file: give one, or set eval_every to 0",
          c.train().eval_every());
  require(!c.output().empty(), "output: give the folder of the run");
}

}  // namespace

RunConfig default_run_config() {
  RunConfig c;
  fill_presets(c);
  return c;
}

RunConfig parse_run_config(std::string_view yaml, std::string_view name,
                           std::span<const std::string> overrides) {
  RunConfig c;
  merge_yaml(yaml, name, c);
  for (const std::string& assignment : overrides) merge_override(assignment, c);
  fill_open_fields(c);
  return c;
}

RunConfig load_run_config(const std::string& path, std::span<const std::string> overrides) {
  return parse_run_config(read_config_file(path), path, overrides);
}

void resolve_parallel(RunConfig& c, std::int64_t world_size) {
  check(world_size >= 1, "a run has at least one rank");
  auto& p = *c.mutable_parallel();
  require(p.replicate() != 0, "parallel.replicate must be at least 1, or -1 for what is left over; got 0");
  require(p.shard() != 0, "parallel.shard must be at least 1, or -1 for what is left over; got 0");
  require(p.replicate() != -1 || p.shard() != -1,
          "parallel: replicate and shard are both -1: give one of them");
  const std::string asked = layout(p);
  const bool fill_replicate = p.replicate() == -1, fill_shard = p.shard() == -1;
  const std::int64_t given = product_within(
      {fill_replicate ? 1 : p.replicate(), fill_shard ? 1 : p.shard(), p.cp(), p.tp(), p.pp()}, world_size);
  require(given > 0,
          "parallel: {} is more than the number of ranks, {}: start as many, or make a degree smaller", asked,
          world_size);
  if (fill_replicate || fill_shard) {
    require(world_size % given == 0,
            "parallel: {} does not divide the {} ranks: start a multiple of {} ranks, for example {} or {}",
            asked, world_size, given, world_size / given * given, (world_size / given + 1) * given);
    fill_replicate ? p.set_replicate(world_size / given) : p.set_shard(world_size / given);
  } else {
    require(given == world_size,
            "parallel: {} makes {} ranks, but {} were started: make the product {} or leave shard at -1",
            asked, given, world_size, world_size);
  }
}

std::vector<std::string> resolve(RunConfig& c, std::int64_t world_size) {
  std::vector<std::string> notes;
  fill_open_fields(c);
  check_limits(c);
  resolve_model(c);
  resolve_quantize(c);
  resolve_files(c);
  resolve_lora(c);
  resolve_parallel(c, world_size);
  resolve_batch(c, notes);
  resolve_optim(c);
  return notes;
}

std::int64_t data_parallel_degree(const RunConfig& c) {
  return c.parallel().replicate() * c.parallel().shard();
}

std::string dump_yaml(const RunConfig& c) { return to_yaml(c); }

std::string arch_json(const RunConfig& c) { return to_json(c.model().arch()); }

}  // namespace ridge
