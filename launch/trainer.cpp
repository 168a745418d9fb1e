#include "launch/trainer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/random_state.h"
#include "core/text/tokenizer.h"
#include "launch/run_config.pb.h"
#include "launch/training_setup.h"

namespace ridge {
namespace {

constexpr std::int32_t kIgnored = -100;

// Windows as the rows of batches of one shape; rows and positions beyond them count for nothing.
Batch padded_batch(const std::vector<Window>& windows, std::int64_t first, std::int64_t rows,
                   std::int64_t tokens, const std::vector<std::pair<std::int64_t, std::int64_t>>& ranges,
                   Device device) {
  std::int64_t held = 0;
  for (const auto& [begin, end] : ranges) held += end - begin;
  Batch batch{Tensor::zeros({rows, held}, DType::i32), Tensor::empty({rows, held}, DType::i32)};
  auto id = batch.ids.span<std::int32_t>().begin();
  auto target = batch.targets.span<std::int32_t>().begin();
  for (std::int64_t row = first; row < first + rows; ++row) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens), 0), targets(ids.size(), kIgnored);
    if (row < static_cast<std::int64_t>(windows.size())) {
      const Window& w = windows[static_cast<std::size_t>(row)];
      std::copy(w.ids.begin(), w.ids.end(), ids.begin());
      std::copy(w.targets.begin(), w.targets.end(), targets.begin());
    }
    for (const auto& [begin, end] : ranges) {
      id = std::copy(ids.begin() + begin, ids.begin() + end, id);
      target = std::copy(targets.begin() + begin, targets.begin() + end, target);
    }
  }
  return {batch.ids.on(device), batch.targets.on(device)};
}

std::int64_t scored_tokens(const std::vector<Window>& windows) {
  std::int64_t n = 0;
  for (const Window& w : windows)
    n += std::count_if(w.targets.begin(), w.targets.end(), [](auto t) { return t != kIgnored; });
  return n;
}

// What the first rank that found something says.
std::string first_word(const std::string& mine, parallel::Communicator& ranks) {
  constexpr std::size_t kLetters = 256;
  std::array<std::uint8_t, kLetters> word{};
  std::memcpy(word.data(), mine.data(), std::min(mine.size(), kLetters - 1));
  std::vector<std::uint8_t> all(kLetters * static_cast<std::size_t>(ranks.size()));
  ranks.all_gather(std::span<const std::uint8_t>(word), std::span<std::uint8_t>(all));
  for (std::size_t r = 0; r < all.size(); r += kLetters) {
    if (all[r] != 0) return reinterpret_cast<const char*>(all.data() + r);
  }
  return "the loss itself";
}

}  // namespace

Trainer::Trainer(const config::RunConfig& run, parallel::Groups& groups, Device device)
    : run_(run),
      groups_(groups),
      device_(device),
      data_ranks_(groups.mesh().data_ranks()),
      data_rank_(groups.mesh().data_rank(groups.rank())) {
  const auto weights = run_weights(run);
  model_ = std::make_unique<ParallelModel>(weights ? weights->config() : model_config(run), weights.get(),
                                           parallel_options(run), groups, device);
  optimizer_ = optim::make_optimizer(optimizer_options(run), model_->trained());
  const Tokenizer tokenizer = run_tokenizer(run);
  const std::vector<std::string> files(run.data().train().begin(), run.data().train().end());
  data_ = std::make_unique<BatchSource>(open_token_stream(files, tokenizer, config().vocab_size),
                                        run.data().sequence_length(), run.data().order() == "shuffled",
                                        static_cast<std::uint64_t>(run.data().seed()));
  data_->take_part(model_->token_ranges(run.data().sequence_length()));
}

Trainer::~Trainer() = default;

std::int64_t Trainer::tokens_per_step() const {
  return run_.train().global_batch() * run_.data().sequence_length();
}

void Trainer::fetch(std::int64_t step) {
  if (step == fetched_ || step >= run_.train().steps()) return;
  const std::int64_t global = run_.train().global_batch(), micro = run_.train().micro_batch();
  const std::int64_t share = global / data_ranks_;
  batches_.clear();
  for (std::int64_t done = 0; done < share; done += micro)
    batches_.push_back(data_->read(step * global + data_rank_ * share + done, micro, device_));
  fetched_ = step;
}

void Trainer::check_finite(std::int64_t step, double loss, double norm) const {
  if (std::isfinite(loss) && std::isfinite(norm)) return;
  throw NotFiniteError(fmt::format(
      "step {}: loss {}, gradient norm {}: not finite; first bad tensor: {}. Lower optim.lr, or set "
      "optim.clip_norm",
      step, loss, norm, first_word(model_->not_finite(), groups_.world())));
}

StepResult Trainer::step(std::int64_t step, const std::function<void()>& before_update) {
  StepResult result;
  fetch(step);
  const std::int64_t micro = run_.train().micro_batch(), share = run_.train().global_batch() / data_ranks_;
  const auto before = [&](std::size_t m) {
    random_state().seed = static_cast<std::uint64_t>(run_.train().seed());
    random_state().step = step;
    random_state().first_row = data_rank_ * share + static_cast<std::int64_t>(m) * micro;
    random_state().next_call = 0;
    random_state().tokens = run_.data().sequence_length();
    random_state().ranges = model_->token_ranges(run_.data().sequence_length());
  };
  const Tensor loss =
      model_->forward_backward(batches_, 1.0 / static_cast<double>(tokens_per_step()), before);
  const Tensor norm = model_->gradient_norm();
  result.lr = learning_rate(schedule_options(run_), step, run_.train().steps());
  if (before_update) before_update();
  optimizer_->step(result.lr, {1.0, norm, run_.optim().clip_norm()});
  model_->updated();
  fetch(step + 1);
  result.loss = model_->reports_loss() ? loss.item() : 0;
  result.grad_norm = norm.item();
  groups_.world().all_reduce(std::span<double>(&result.loss, 1));
  check_finite(step, result.loss, result.grad_norm);
  optim::clear_gradients(model_->trained());
  return result;
}

Perplexity Trainer::evaluate(const std::vector<Window>& windows) {
  const std::int64_t tokens = run_.data().sequence_length(), micro = run_.train().micro_batch();
  const auto rows = static_cast<std::int64_t>(windows.size());
  const std::int64_t turns = (rows + micro * data_ranks_ - 1) / (micro * data_ranks_);
  const auto ranges = model_->token_ranges(tokens);
  const std::int64_t together = model_->pipeline() == nullptr ? 1 : 4 * model_->pipeline()->stages();
  double sum = 0;
  for (std::int64_t turn = 0; turn < turns; turn += together) {
    std::vector<Batch> batches;  // what a pipeline's stages work on side by side
    for (std::int64_t t = turn; t < std::min(turn + together, turns); ++t) {
      const std::int64_t first = (t * data_ranks_ + data_rank_) * micro;
      batches.push_back(padded_batch(windows, first, micro, tokens, ranges, device_));
    }
    sum += model_->evaluate(batches);
  }
  groups_.world().all_reduce(std::span<double>(&sum, 1));
  const std::int64_t scored = scored_tokens(windows);
  const double nll = sum / static_cast<double>(scored);
  return {nll, scored, std::exp(nll)};
}

void Trainer::resumed(std::int64_t steps) {
  optimizer_->set_steps(steps);
  model_->updated();
}

}  // namespace ridge
