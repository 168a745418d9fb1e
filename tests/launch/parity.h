// The same training on one rank and on any layout of ranks: losses of some steps, and every parameter's whole
// gradient of the first.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "core/random_state.h"
#include "launch/gather_pieces.h"
#include "launch/parallelize.h"
#include "tests/launch/run_program.h"
#include "tests/parallel/training_run.h"

namespace ridge::test {

using Degrees = parallel::Mesh::Coordinates;  // pp, replicate, shard, cp, tp

/// What is trained.
struct Job {
  std::string name;
  models::ModelConfig config;
  std::string folder;   // of stored weights; empty: random ones
  std::string adapter;  // PEFT folder
  DType dtype = DType::f64;
  std::int64_t batch = 24, tokens = 16, steps = 1;
};

/// How.
struct Cut {
  Degrees degrees{1, 1, 1, 1, 1};
  std::int64_t accumulate = 1;
  ParallelOptions options = {};
};

struct Seen {
  std::vector<double> losses, norms;
  std::map<std::string, Tensor> gradients;  // whole, on the CPU
  double evaluated = 0;                     // sum of all targets' losses after the last step
};

/// Sequences first .. first + rows - 1 of a step, the positions of `ranges` alone. Some targets are ignored.
inline Batch rows_of(const Job& job, std::int64_t step, std::int64_t first, std::int64_t rows,
                     const std::vector<std::pair<std::int64_t, std::int64_t>>& ranges) {
  std::vector<std::int32_t> ids, targets;
  for (std::int64_t row = first; row < first + rows; ++row) {
    for (const auto& [begin, end] : ranges) {
      for (std::int64_t t = begin; t < end; ++t) {
        const auto at = static_cast<std::uint64_t>((step * job.batch + row) * job.tokens + t);
        const auto random = philox({11, 0}, at);
        const auto vocabulary = static_cast<std::uint64_t>(job.config.vocab_size);
        ids.push_back(static_cast<std::int32_t>(random[0] % vocabulary));
        targets.push_back(random[2] % 7 == 0 ? -100 : static_cast<std::int32_t>(random[1] % vocabulary));
      }
    }
  }
  const Shape shape{rows, static_cast<std::int64_t>(ids.size()) / rows};
  return {Tensor::from(ids, shape), Tensor::from(targets, shape)};
}

/// One rank of a job. Every rank makes it together.
class ParityRank {
 public:
  ParityRank(const Job& job, const Cut& cut, const models::ModelWeights* weights,
             parallel::Communicator& world)
      : job_(job),
        groups_(parallel::Mesh(cut.degrees), world),
        model_(job.config, weights, options_of(job, cut), groups_, Device::cpu),
        share_(job.batch / groups_.mesh().data_ranks()),
        micro_(share_ / cut.accumulate) {
    EXPECT_EQ(micro_ * cut.accumulate * groups_.mesh().data_ranks(), job.batch) << "a batch that divides";
    optim::OptimizerOptions adamw;
    adamw.eps = 1e-6;
    if (job.dtype != DType::f64) optimizer_ = optim::make_optimizer(adamw, model_.trained());
  }

  Seen run() {
    Seen seen;
    for (std::int64_t step = 0; step < job_.steps; ++step) {
      seen.losses.push_back(forward_backward(step));
      const Tensor norm = model_.gradient_norm();
      seen.norms.push_back(norm.item());
      if (step == 0) seen.gradients = gradients();
      if (optimizer_) {
        optimizer_->step(3e-3, {1.0, norm, 1.0});
        model_.updated();
      }
      optim::clear_gradients(model_.trained());
    }
    seen.evaluated = model_.evaluate(batches(0));
    groups_.world().all_reduce(std::span<double>(&seen.evaluated, 1));
    return seen;
  }

 private:
  static ParallelOptions options_of(const Job& job, const Cut& cut) {
    ParallelOptions options = cut.options;
    options.dtype = job.dtype;
    options.seed = 3;
    options.adapter = job.adapter;
    return options;
  }

  std::int64_t first_row() const { return groups_.mesh().data_rank(groups_.rank()) * share_; }

  std::vector<Batch> batches(std::int64_t step) const {
    std::vector<Batch> all;
    for (std::int64_t done = 0; done < share_; done += micro_)
      all.push_back(rows_of(job_, step, first_row() + done, micro_, model_.token_ranges(job_.tokens)));
    return all;
  }

  double forward_backward(std::int64_t step) {
    const auto before = [&](std::size_t m) {
      random_state() = {5, step,        first_row() + static_cast<std::int64_t>(m) * micro_,
                        0, job_.tokens, model_.token_ranges(job_.tokens)};
    };
    const double scale = 1.0 / static_cast<double>(job_.batch * job_.tokens);
    const Tensor mine = model_.forward_backward(batches(step), scale, before);
    double loss = model_.reports_loss() ? mine.item() : 0;
    groups_.world().all_reduce(std::span<double>(&loss, 1));
    return loss;
  }

  // A piece of a gradient lies where the parameter's does.
  std::map<std::string, Tensor> gradients() {
    std::map<std::string, Piece> mine;
    const std::vector<Piece> pieces = model_.pieces(nullptr);
    EXPECT_EQ(pieces.size(), model_.trained().size());
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const optim::TrainedParameter& p = model_.trained()[i];
      EXPECT_EQ(pieces[i].name, "model/" + p.name);
      Piece piece = pieces[i];
      piece.value = autograd::grad_of(p.value);
      EXPECT_TRUE(piece.value.defined()) << p.name;
      if (piece.value.defined()) mine[p.name] = piece;
    }
    std::map<std::string, Tensor> whole;
    for (const auto& [name, shape] : model_.trained_shapes()) {
      const bool adapter = lora::is_adapter_parameter(name);
      Piece piece{name, {shape.begin(), shape.end()}, DType::f32, {}, {}, false};
      if (const auto found = mine.find(name); found != mine.end()) piece = found->second;
      piece.dtype = job_.dtype == DType::f64 && !adapter ? DType::f64 : DType::f32;
      whole[name] = gather_whole(piece, groups_.world());
    }
    return whole;
  }

  const Job& job_;
  parallel::Groups groups_;
  ParallelModel model_;
  std::int64_t share_, micro_;
  std::unique_ptr<optim::Optimizer> optimizer_;
};

/// What rank 0 saw; all ranks agree on losses and norms.
inline Seen run_job(const Job& job, const Cut& cut) {
  const auto weights = job.folder.empty() ? nullptr : std::make_unique<models::ModelWeights>(job.folder);
  const int ranks = parallel::Mesh(cut.degrees).ranks();
  std::vector<Seen> all(static_cast<std::size_t>(ranks));
  parallel::run_ranks(ranks, [&](parallel::Communicator& world) {
    all[static_cast<std::size_t>(world.rank())] = ParityRank(job, cut, weights.get(), world).run();
  });
  for (const Seen& rank : all) {
    EXPECT_EQ(rank.losses, all[0].losses);
    EXPECT_EQ(rank.norms, all[0].norms);
  }
  return all[0];
}

/// One rank's, kept for all layouts.
inline const Seen& one_rank(const Job& job) {
  static std::map<std::string, Seen> known;
  const std::string key = job.name + "/" + std::string(ridge::name_of(job.dtype)) + "/" +
                          std::to_string(job.batch) + "x" + std::to_string(job.tokens);
  auto found = known.find(key);
  if (found == known.end()) found = known.emplace(key, run_job(job, Cut{})).first;
  return found->second;
}

/// The largest relative error of losses, norms and evaluation; and of the gradients, that of each as a part
/// of its own norm, with the name of the worst.
struct Distance {
  double losses = 0, norms = 0, evaluated = 0, gradients = 0;
  std::string worst;
};

inline Distance distance(const Seen& got, const Seen& want) {
  Distance d;
  d.losses = relative_difference(got.losses, want.losses);
  d.norms = relative_difference(got.norms, want.norms);
  d.evaluated = relative_difference({got.evaluated}, {want.evaluated});
  EXPECT_EQ(got.gradients.size(), want.gradients.size());
  for (const auto& [name, gradient] : want.gradients) {
    const auto found = got.gradients.find(name);
    const double error = norm_error(found == got.gradients.end() ? Tensor() : found->second, gradient);
    if (error <= d.gradients) continue;
    d.gradients = error;
    d.worst = name;
  }
  return d;
}

inline models::ModelConfig parity_config(std::int64_t layers, bool tied) {
  models::ModelConfig c;
  c.model_type = "llama";
  c.vocab_size = 37;
  c.hidden_size = 20;
  c.intermediate_size = 27;
  c.layers = layers;
  c.heads = 8;
  c.kv_heads = 2;
  c.head_dim = 4;
  c.max_position = 64;
  c.rms_norm_eps = 1e-5;
  c.initializer_range = 0.3;
  c.activation = "silu";
  c.tied = tied;
  c.rope.head_dim = c.head_dim;
  c.rope.max_position = c.max_position;
  return c;
}

/// GQA with two key-value heads, an output layer of its own.
inline Job llama_job() { return {"llama", parity_config(5, false), {}, {}}; }

/// Qwen2's biases, a tied table, one head of 6 channels a key-value head.
inline Job qwen_job() {
  Job job{"qwen", parity_config(9, true), {}, {}};
  job.config.model_type = "qwen2";
  job.config.qkv_bias = true;
  job.config.vocab_size = 41;
  job.config.hidden_size = 18;
  job.config.kv_heads = 8;
  job.config.head_dim = job.config.rope.head_dim = 6;
  return job;
}

}  // namespace ridge::test
