#include "launch/train_loop.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>

#include "core/io/file.h"
#include "core/io/tensorboard.h"
#include "core/models/weights.h"
#include "core/text/tokenizer.h"
#include "launch/base_fingerprint.h"
#include "launch/checkpoint_writer.h"
#include "launch/evaluate.h"
#include "launch/forecast.h"
#include "launch/metrics.h"
#include "launch/output_folder.h"
#include "launch/progress.h"
#include "launch/resume.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"
#include "launch/trainer.h"
#include "launch/training_setup.h"
#include "launch/workloads.h"
#include "lora/adapter.h"

namespace ridge {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What rank 0 writes while a run goes on.
class RunLog {
 public:
  RunLog(const config::RunConfig& run, std::int64_t first_step)
      : metrics_(run.output(), first_step),
        events_(run.output()),
        progress_({run.train().steps(), first_step, run.train().log_every(), is_terminal(stderr)}, stderr) {}

  void step(const StepReport& r, std::int64_t tokens, double tokens_per_s, double limit_share,
            const std::optional<Perplexity>& valid, double elapsed) {
    std::vector<Metric> fields{
        {"loss", r.loss},           {"grad_norm", r.grad_norm},     {"lr", r.lr},
        {"tokens", tokens},         {"tokens_per_s", tokens_per_s}, {"limit_share", limit_share},
        {"step_seconds", r.seconds}};
    if (valid) {
      fields.push_back({"valid_loss", valid->nll});
      fields.push_back({"valid_perplexity", valid->value});
    }
    metrics_.write(r.step, fields);
    for (const Metric& m : fields) {
      if (const double* value = std::get_if<double>(&m.value))
        events_.scalar("train/" + std::string(m.name), r.step, *value);
    }
    std::string text = fmt::format("loss {:.4f}  norm {:.3f}  {:.0f} tok/s  {:.1f}% of limit", r.loss,
                                   r.grad_norm, tokens_per_s, 100 * limit_share);
    if (valid) text += fmt::format("  valid ppl {:.3f}", valid->value);
    progress_.update(r.step + 1, text, elapsed);
  }

  void note(const std::string& text) { progress_.note(text); }
  void flush() { events_.flush(); }

 private:
  MetricsLog metrics_;
  EventWriter events_;
  ProgressLine progress_;
};

std::vector<Window> validation_windows(const config::RunConfig& run, std::int64_t vocab_size) {
  if (run.data().valid().empty()) return {};
  const Tokenizer tokenizer = run_tokenizer(run);
  const auto stream =
      open_token_stream({run.data().valid().begin(), run.data().valid().end()}, tokenizer, vocab_size);
  std::vector<std::int32_t> tokens(
      static_cast<std::size_t>(std::min(stream->size(), run.train().eval_tokens())));
  stream->read(0, tokens);
  const std::int64_t window = std::max<std::int64_t>(2, run.data().sequence_length());
  return cut_windows(tokens, Protocol::windows, window, window, -1);
}

// Every rank helps to put the parameters together, and rank 0 writes them.
std::string save_result(const config::RunConfig& run, Trainer& trainer) {
  ParallelModel& model = trainer.model();
  const bool writes = model.groups().rank() == 0;
  const std::string folder = result_folder(run);
  const auto value_of = [&model](const std::string& name) { return model.gather(name); };
  if (model.adapter()) {
    models::Llama whole(trainer.config(), DType::f32, Device::meta);
    lora::add_adapters(whole.linears(), *model.adapter(), 0, Device::cpu);
    for (const nn::Parameter& p : whole.parameters()) {
      if (lora::is_adapter_parameter(p.name)) p.value->copy_from(value_of(p.name));
    }
    if (writes) lora::save_adapter(whole.linears(), *model.adapter(), folder);
    return folder;
  }
  models::save_parameters(trainer.config(), model.trained_shapes(), value_of, writes ? folder : "",
                          training_dtype(run), tokenizer_folder(run));
  return folder;
}

// Only a run that can start makes its folder.
void prepare_output(const config::RunConfig& run) {
  std::error_code error;
  std::filesystem::create_directories(run.output(), error);
  require(!error, "output {}: cannot be made: {}", run.output(), error.message());
  remove_leftovers(run.output());
  write_file_atomically(run.output() + "/config.yaml", dump_yaml(run));
}

// Holds what the loop of one run needs beside the trainer.
class Loop {
 public:
  Loop(const config::RunConfig& run, parallel::Groups& groups, Device device, const Forecast& forecast)
      : run_(run),
        ranks_(groups.world()),
        layout_(groups.mesh().describe()),
        trainer_(run, groups, device),
        windows_(validation_windows(run, trainer_.config().vocab_size)),
        forecast_(forecast),
        device_(device) {
    first_ = resume(run, trainer_, ranks_);
    if (ranks_.rank() == 0) {
      if (trainer_.model().adapter() && run.model().has_path()) base_ = base_fingerprint(run.model().path());
      prepare_output(run);
      log_.emplace(run, first_);
      for (const std::string& note : trainer_.model().notes()) log_->note(note);
      if (device == Device::cuda)
        log_->note("memory that rank 0 will need:\n" + memory_report(forecast.memory));
      if (first_ > 0) log_->note(fmt::format("resumed after step {}", first_ - 1));
    }
    ranks_.barrier();
    if (run.train().checkpoint_every() == 0) return;
    checkpoints_.emplace(ranks_, CheckpointWriter::Options{run.output(), run.train().keep_checkpoints()});
    checkpoints_->reserve(trainer_.pieces());
  }

  TrainResult go(const std::function<void(const StepReport&)>& on_step) {
    result_.steps = result_.first_step = first_;
    result_.predicted_bytes = forecast_.peak_bytes;
    for (std::int64_t step = first_; step < run_.train().steps(); ++step) one_step(step, on_step);
    result_.peak_bytes = memory_stats(device_).peak_reserved;
    result_.tokens_per_s = median(speeds_);
    result_.limit_share = median(shares_);
    if (log_) log_->flush();
    if (checkpoints_) checkpoints_->finish();
    result_.saved_to = save_result(run_, trainer_);
    return result_;
  }

 private:
  void one_step(std::int64_t step, const std::function<void(const StepReport&)>& on_step) {
    const auto start = Clock::now();
    const StepResult done = stepped(step);
    const StepReport report{step, done.loss, done.grad_norm, done.lr, seconds_since(start)};
    speeds_.push_back(static_cast<double>(trainer_.tokens_per_step()) / report.seconds);
    shares_.push_back(forecast_.step_seconds / report.seconds);
    result_.final_loss = done.loss;
    result_.steps = step + 1;
    if (on_step) on_step(report);
    const auto valid = evaluate_after(step);
    if (log_) {
      log_->step(report, result_.steps * trainer_.tokens_per_step(), speeds_.back(), shares_.back(), valid,
                 seconds_since(begin_));
    }
    checkpoint_after(step);
  }

  StepResult stepped(std::int64_t step) {
    try {
      return trainer_.step(step, [this] {
        if (checkpoints_) checkpoints_->release_before_update();
      });
    } catch (const NotFiniteError&) {
      if (checkpoints_) checkpoints_->finish();  // the last good state is kept
      throw;
    }
  }

  bool due(std::int64_t every, std::int64_t step) const { return every > 0 && (step + 1) % every == 0; }

  std::optional<Perplexity> evaluate_after(std::int64_t step) {
    if (windows_.empty() || !due(run_.train().eval_every(), step)) return std::nullopt;
    const Perplexity valid = trainer_.evaluate(windows_);
    result_.valid_perplexity = valid.value;
    return valid;
  }

  void checkpoint_after(std::int64_t step) {
    if (!due(run_.train().checkpoint_every(), step)) return;
    TrainingState state;
    state.step = step + 1;
    state.tokens = state.step * trainer_.tokens_per_step();
    state.next_sample = state.step * run_.train().global_batch();
    state.seed = run_.train().seed();
    state.config = dump_yaml(run_);
    state.layout = layout_;
    state.base = base_;
    checkpoints_->snapshot(state, trainer_.pieces());
  }

  const config::RunConfig& run_;
  parallel::Communicator& ranks_;
  std::string layout_;
  Trainer trainer_;
  std::vector<Window> windows_;
  Forecast forecast_;
  Device device_;
  std::int64_t first_ = 0;
  std::string base_;  // on rank 0
  std::optional<RunLog> log_;
  std::optional<CheckpointWriter> checkpoints_;
  TrainResult result_;
  std::vector<double> speeds_, shares_;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace

TrainResult train(const config::RunConfig& run, parallel::Groups& groups, Device device, const Ceilings& roof,
                  const std::function<void(const StepReport&)>& on_step) {
  const std::int64_t micro_batches =
      run.train().global_batch() / (groups.mesh().data_ranks() * run.train().micro_batch());
  const Forecast forecast =
      forecast_training(model_config(run), run, micro_batches, device, roof, groups.rank());
  require_room(forecast, device);
  groups.world().barrier();  // no rank goes on where another has no room
  Loop loop(run, groups, device, forecast);
  return loop.go(on_step);
}

}  // namespace ridge
