// The runs of tests/data/expected/training.json, and a plain training loop over any number of ranks.
#pragma once

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "core/autograd.h"
#include "core/random_state.h"
#include "core/text/tokenizer.h"
#include "lora/adapter.h"
#include "optim/optimizer.h"
#include "parallel/communicator.h"
#include "parallel/fsdp.h"
#include "parallel/groups.h"
#include "tests/core/models/reference.h"

namespace ridge::test {

inline nlohmann::json training_json() {
  std::ifstream file(data_path("expected/training.json"));
  return nlohmann::json::parse(file);
}

/// What PyTorch was asked for, and what it gave.
struct TrainingRun {
  std::string name, model, adapter;  // folders; no adapter: all weights are trained
  std::vector<std::int32_t> stream;
  std::int64_t length = 0, batch = 0, micro_batch = 0, steps = 0;
  optim::OptimizerOptions optimizer;
  double clip_norm = 0;
  std::vector<double> lr, losses, grad_norms;              // a step each
  std::map<std::string, double> first_grads, final_norms;  // 2-norms by name in the file
};

inline std::string from_root(const std::string& path) { return std::string(RIDGE_SOURCE_DIR "/") + path; }

inline std::vector<std::int32_t> wikitext_valid_ids() {
  std::ifstream file(wikitext_folder() + "/valid.txt", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return Tokenizer::load(stories_folder()).encode(text, false);
}

inline optim::OptimizerOptions optimizer_of(const nlohmann::json& from) {
  optim::OptimizerOptions to;
  to.name = from.at("name").get<std::string>();
  to.weight_decay = from.at("weight_decay").get<double>();
  to.momentum = from.value("momentum", 0.0);
  if (from.contains("betas")) {
    to.beta1 = from.at("betas").at(0).get<double>();
    to.beta2 = from.at("betas").at(1).get<double>();
    to.eps = from.at("eps").get<double>();
  }
  return to;
}

inline TrainingRun training_run(const std::string& name) {
  const nlohmann::json all = training_json();
  const nlohmann::json& from = all.at("runs").at(name);
  TrainingRun run;
  run.name = name;
  const bool stories = from.at("model") == "stories260k";
  run.model = stories ? stories_folder() : from_root(from.at("model").get<std::string>());
  if (from.contains("adapter")) run.adapter = from_root(from.at("adapter").get<std::string>());
  if (!stories) run.stream = all.at("streams").at(from.at("stream")).get<std::vector<std::int32_t>>();
  if (stories && have(wikitext_folder())) run.stream = wikitext_valid_ids();
  from.at("sequence_length").get_to(run.length);
  from.at("global_batch").get_to(run.batch);
  from.at("micro_batch").get_to(run.micro_batch);
  from.at("steps").get_to(run.steps);
  run.optimizer = optimizer_of(from.at("optim"));
  from.at("optim").at("clip_norm").get_to(run.clip_norm);
  from.at("lr").get_to(run.lr);
  from.at("losses").get_to(run.losses);
  from.at("grad_norms").get_to(run.grad_norms);
  from.at("first_grads").get_to(run.first_grads);
  from.at("final_weights").get_to(run.final_norms);
  return run;
}

/// How the same work is cut.
struct Layout {
  int shard = 1;
  std::int64_t micro_batch = 0;  // 0: the run's own
  int replicate = 1;
  parallel::FsdpOptions fsdp = {};
  models::Recompute recompute = models::Recompute::none;
  double dropout = 0;             // of new adapters, where above 0
  DType dtype = DType::f32;       // f64: no optimizer, so one step
  Device device = test_device();  // of one rank; several are threads, which share the CPU's memory alone
  parallel::Groups::Wrap wrap = {};
  std::function<std::unique_ptr<parallel::PeerGroup>(parallel::Communicator&)> peers =
      {};  // of a shard group

  int ranks() const { return shard * replicate; }
};

inline void PrintTo(const Layout& l, std::ostream* out) {
  *out << "shard " << l.shard << " x replicate " << l.replicate << ", stage " << l.fsdp.stage;
}

/// What one rank saw; tensors are whole, on the CPU.
struct Trained {
  std::vector<double> losses, grad_norms;
  std::map<std::string, Tensor> first_grads, weights;  // by name in the file
};

/// One rank of a training run.
class TrainingRank {
 public:
  TrainingRank(const TrainingRun& run, const Layout& layout, parallel::Communicator& world)
      : run_(run),
        layout_(layout),
        groups_(parallel::Mesh({1, layout.replicate, layout.shard, 1, 1}), world, layout.wrap),
        device_(layout.ranks() > 1 ? Device::cpu : layout.device),
        model_(load(run.model, layout.dtype, models::LoadMode::train, device_)) {
    micro_batch_ = layout.micro_batch > 0 ? layout.micro_batch : run.micro_batch;
    model_->set_recompute(layout.recompute);
    add_adapter();
    shard();
    if (layout.dtype != DType::f64) optimizer_ = optim::make_optimizer(run.optimizer, trained_);
  }

  Trained train(std::int64_t steps) {
    Trained out;
    for (std::int64_t step = 0; step < steps; ++step) {
      out.losses.push_back(forward_backward(step));
      if (step == 0) out.first_grads = gathered(true);
      out.grad_norms.push_back(gradient_norm());
      if (!optimizer_) break;
      optimizer_->step(run_.lr.at(static_cast<std::size_t>(step)),
                       optim::clip_factor(out.grad_norms.back(), run_.clip_norm));
      fsdp_->publish();
      optim::clear_gradients(trained_);
    }
    out.weights = gathered(false);
    return out;
  }

 private:
  void add_adapter() {
    std::vector<std::string> notes;
    lora_ = !run_.adapter.empty() || layout_.dropout > 0;
    if (layout_.dropout > 0) {
      lora::LoraConfig config;
      config.targets = {"q_proj", "v_proj", "down_proj"};
      config.dropout = layout_.dropout;
      lora::add_adapters(model_->linears(), config, 5, device_);
    } else if (lora_) {
      lora::load_adapter(model_->linears(), run_.adapter, notes, device_);
    }
  }

  void shard() {
    std::map<std::string, Tensor> values;
    std::vector<std::vector<parallel::HeldParameter>> units;
    for (const nn::Unit& unit : model_->units()) {
      units.emplace_back();
      for (const nn::Parameter& p : unit.parameters) {
        values[p.name] = *p.value;
        const bool trains = !lora_ || lora::is_adapter_parameter(p.name);
        units.back().push_back({p.name, p.value, trains, {}, p.value->shape()});
      }
    }
    fsdp_ = std::make_unique<parallel::Fsdp>(
        std::move(units), groups_.along(parallel::Axis::shard), groups_.along(parallel::Axis::replicate),
        layout_.fsdp, device_,
        layout_.peers && layout_.shard > 1 ? layout_.peers(groups_.along(parallel::Axis::shard)) : nullptr);
    for (const auto& [name, value] : values) fsdp_->write(name, value);
    model_->set_observer(fsdp_.get());
    for (const parallel::OwnedPiece* piece : fsdp_->pieces()) {
      if (!piece->parameter->trains) continue;
      trained_.push_back({piece->parameter->name, piece->value, piece->parameter->logical.ndim() >= 2,
                          trained_.size(), piece->begin});
    }
  }

  std::string file_name(const std::string& name) const { return (lora_ ? "base_model.model." : "") + name; }

  // Rows first .. first + count - 1 of the run.
  std::pair<Tensor, Tensor> rows(std::int64_t first, std::int64_t count) const {
    std::vector<std::int32_t> ids, targets;
    for (std::int64_t row = first; row < first + count; ++row) {
      const auto begin = run_.stream.begin() + row * run_.length;
      ids.insert(ids.end(), begin, begin + run_.length);
      targets.insert(targets.end(), begin + 1, begin + 1 + run_.length);
    }
    return {Tensor::from(ids, {count, run_.length}).on(device_),
            Tensor::from(targets, {count, run_.length}).on(device_)};
  }

  // The mean loss over the global batch; leaves its gradients, clipped by nothing.
  double forward_backward(std::int64_t step) {
    const std::int64_t share = run_.batch / layout_.ranks();
    double loss = 0;
    for (std::int64_t done = 0; done < share; done += micro_batch_) {
      fsdp_->begin(done + micro_batch_ >= share);
      const std::int64_t row = groups_.mesh().data_rank(groups_.rank()) * share + done;
      random_state() = {3, step, row, 0};
      const auto [ids, targets] = rows(step * run_.batch + row, std::min(micro_batch_, share - done));
      const Tensor part = model_->loss(ids, targets, 1.0 / static_cast<double>(run_.batch * run_.length));
      loss += part.detached().to(DType::f64).item();
      autograd::backward(part);
      fsdp_->finish();
    }
    groups_.world().all_reduce(std::span<double>(&loss, 1));
    return loss;
  }

  // Every owned element stands once among the ranks of shard.
  double gradient_norm() {
    double norm = optim::gradient_norm(trained_);
    if (layout_.shard == 1) return norm;
    norm *= norm;
    groups_.along(parallel::Axis::shard).all_reduce(std::span<double>(&norm, 1));
    return std::sqrt(norm);
  }

  // Trained parameters or their gradients, put together.
  std::map<std::string, Tensor> gathered(bool gradients) {
    std::map<std::string, Tensor> all;
    for (const nn::Parameter& p : model_->parameters()) {
      if (lora_ && !lora::is_adapter_parameter(p.name)) continue;
      const Tensor whole = Tensor::zeros({p.value->numel()}, DType::f64);
      for (const parallel::OwnedPiece* piece : fsdp_->pieces()) {
        if (piece->parameter->name != p.name) continue;
        const Tensor part = gradients ? autograd::grad_of(piece->value) : piece->value.detached();
        whole.sliced(0, piece->begin, piece->end).copy_from(part.on(Device::cpu).to(DType::f64));
      }
      groups_.along(parallel::Axis::shard).all_reduce(whole.span<double>());
      const bool widened = gradients && p.value->dtype() == DType::bf16;
      all[file_name(p.name)] = whole.to(widened ? DType::f32 : p.value->dtype()).reshaped(p.value->shape());
    }
    return all;
  }

  const TrainingRun& run_;
  Layout layout_;
  parallel::Groups groups_;
  Device device_;
  std::unique_ptr<models::Llama> model_;
  bool lora_ = false;
  std::int64_t micro_batch_ = 0;
  std::vector<optim::TrainedParameter> trained_;
  std::unique_ptr<parallel::Fsdp> fsdp_;
  std::unique_ptr<optim::Optimizer> optimizer_;
};

/// Trains on threads; what each rank saw, by rank.
inline std::vector<Trained> train(const TrainingRun& run, const Layout& layout, std::int64_t steps) {
  std::vector<Trained> all(static_cast<std::size_t>(layout.ranks()));
  parallel::run_ranks(layout.ranks(), [&](parallel::Communicator& ranks) {
    TrainingRank rank(run, layout, ranks);
    all[static_cast<std::size_t>(ranks.rank())] = rank.train(steps);
  });
  return all;
}

/// Why a test of several ranks is skipped on a GPU.
inline constexpr const char* kRanksAreOnTheCpu = "ranks that are threads share the CPU's memory";

/// The greatest relative difference of two lists.
inline double relative_difference(const std::vector<double>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double difference = std::fabs(got[i] - want[i]) / std::fabs(want[i]);
    if (!(difference >= 0)) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, difference);
  }
  return worst;
}

inline double norm_of(const Tensor& t) {
  double sum = 0;
  for (const double x : values_of(t)) sum += x * x;
  return std::sqrt(sum);
}

/// The 2-norm of the difference as a part of the 2-norm of `want`.
inline double norm_error(const Tensor& got, const Tensor& want) {
  if (!got.defined() || !(got.shape() == want.shape())) return std::numeric_limits<double>::infinity();
  const auto a = values_of(got), b = values_of(want);
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum) / std::max(norm_of(want), 1e-300);
}

/// `error(got, want)` of every tensor against the one of that name; the worst.
template <class Error>
double worst_error(const std::map<std::string, Tensor>& got, const std::map<std::string, Tensor>& want,
                   const Error& error) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (const auto& [name, tensor] : want) {
    const auto found = got.find(name);
    if (found == got.end()) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, error(found->second, tensor));
  }
  return worst;
}

/// The same names, each with the same bits.
inline bool all_same_bits(const std::map<std::string, Tensor>& got,
                          const std::map<std::string, Tensor>& want) {
  return worst_error(got, want,
                     [](const Tensor& a, const Tensor& b) { return same_bits(a, b) ? 0.0 : 1.0; }) == 0;
}

}  // namespace ridge::test
