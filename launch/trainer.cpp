#include "launch/trainer.h"

#include <cmath>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/random_state.h"
#include "core/text/tokenizer.h"
#include "kernels/elementwise.h"
#include "kernels/reduce.h"
#include "launch/run_config.pb.h"
#include "launch/training_setup.h"

namespace ridge {
namespace {

std::int64_t first_bad(const Tensor& t) {
  if (!t.defined() || !is_floating(t.dtype())) return -1;
  return visit_compute(t.dtype(), [&]<class T>(std::type_identity<T>) {
    return kernels::first_non_finite<T>(current_stream(t.device()), t.view<T>());
  });
}

// The first tensor with an infinite or NaN element: weights first, since they spoil everything after them.
std::string name_of_bad(models::Llama& model, const std::vector<optim::TrainedParameter>& trained) {
  for (const nn::Parameter& p : model.parameters()) {
    if (const std::int64_t at = first_bad(*p.value); at >= 0)
      return fmt::format("weight {} (element {})", p.name, at);
  }
  for (const optim::TrainedParameter& p : trained) {
    if (const std::int64_t at = first_bad(autograd::grad_of(p.value)); at >= 0) {
      return fmt::format("gradient of {} (element {})", p.name, at);
    }
  }
  return "the loss itself";
}

}  // namespace

Trainer::Trainer(const config::RunConfig& run, parallel::Communicator& ranks, Device device)
    : run_(run), ranks_(ranks), device_(device) {
  models::LoadedModel loaded = make_model(run, device);
  notes_ = std::move(loaded.notes);
  model_ = std::move(loaded.model);
  prepared_ = parallelize(*model_, run);
  notes_.insert(notes_.end(), prepared_.notes.begin(), prepared_.notes.end());
  std::vector<Tensor> leaves;
  for (const optim::TrainedParameter& p : prepared_.trained) leaves.push_back(p.value);
  reducer_ = std::make_unique<parallel::GradientReducer>(leaves, ranks, bucket_bytes(run));
  optimizer_ = optim::make_optimizer(optimizer_options(run), prepared_.trained);
  const Tokenizer tokenizer = run_tokenizer(run);
  const std::vector<std::string> files(run.data().train().begin(), run.data().train().end());
  data_ = std::make_unique<BatchSource>(open_token_stream(files, tokenizer, model_->config().vocab_size),
                                        run.data().sequence_length(), run.data().order() == "shuffled",
                                        static_cast<std::uint64_t>(run.data().seed()));
}

Trainer::~Trainer() = default;

std::int64_t Trainer::tokens_per_step() const {
  return run_.train().global_batch() * run_.data().sequence_length();
}

void Trainer::fetch(std::int64_t step) {
  if (step == fetched_ || step >= run_.train().steps()) return;
  const std::int64_t global = run_.train().global_batch(), micro = run_.train().micro_batch();
  const std::int64_t share = global / ranks_.size();
  batches_.clear();
  for (std::int64_t done = 0; done < share; done += micro)
    batches_.push_back(data_->read(step * global + ranks_.rank() * share + done, micro, device_));
  fetched_ = step;
}

Tensor Trainer::forward_backward(std::int64_t step) {
  const std::int64_t micro = run_.train().micro_batch(), share = run_.train().global_batch() / ranks_.size();
  const double scale = 1.0 / static_cast<double>(tokens_per_step());
  const Tensor loss = Tensor::zeros({1}, DType::f64, device_);
  fetch(step);
  for (std::size_t m = 0; m < batches_.size(); ++m) {
    reducer_->begin(m + 1 == batches_.size());
    const std::int64_t row =
        ranks_.rank() * share + static_cast<std::int64_t>(m) * micro;  // in the global batch
    random_state() = {static_cast<std::uint64_t>(run_.train().seed()), step, row, 0};
    const Tensor mean = model_->loss(batches_[m].ids, batches_[m].targets, scale);
    kernels::accumulate<float, double>(current_stream(device_), mean.reshaped({1}).view<float>(),
                                       loss.view<double>());
    autograd::backward(mean);
  }
  reducer_->finish();
  return loss;
}

void Trainer::check_finite(std::int64_t step, double loss, double norm) const {
  if (std::isfinite(loss) && std::isfinite(norm)) return;
  fail_user(
      "step {}: loss {}, gradient norm {}: not finite; first bad tensor: {}. Lower optim.lr, or set "
      "optim.clip_norm",
      step, loss, norm, name_of_bad(*model_, prepared_.trained));
}

StepResult Trainer::step(std::int64_t step) {
  StepResult result;
  const Tensor loss = forward_backward(step);
  const Tensor norm = reduced_norm(*reducer_, prepared_.trained);
  result.lr = learning_rate(schedule_options(run_), step, run_.train().steps());
  optimizer_->step(result.lr, {1.0, norm, run_.optim().clip_norm()});
  fetch(step + 1);
  result.loss = loss.item();
  result.grad_norm = norm.item();
  ranks_.all_reduce(std::span<double>(&result.loss, 1));
  check_finite(step, result.loss, result.grad_norm);
  optim::clear_gradients(prepared_.trained);
  return result;
}

std::vector<NamedTensor> Trainer::state_tensors() const {
  std::vector<NamedTensor> all;
  for (const optim::TrainedParameter& p : prepared_.trained) all.push_back({"model/" + p.name, p.value});
  for (const optim::StateTensor& s : optimizer_->state()) all.push_back({"optimizer/" + s.name, s.value});
  return all;
}

}  // namespace ridge
