#include "launch/resume.h"

#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <array>
#include <optional>

#include "core/base/error.h"
#include "launch/base_fingerprint.h"
#include "launch/checkpoint.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"
#include "launch/trainer.h"

namespace ridge {
namespace {

// Without the fields that may change between a stop and a resume, and those that an adapter replaces.
config::RunConfig comparable(config::RunConfig run) {
  if (run.has_adapter() && run.has_lora()) {
    const config::Lora given = run.lora();
    run.clear_lora();
    if (given.has_dropout()) run.mutable_lora()->set_dropout(given.dropout());
  }
  run.clear_output();
  run.clear_device();
  run.clear_parallel();
  run.mutable_optim()->clear_offload();
  run.mutable_data()->clear_valid();
  config::Train& train = *run.mutable_train();
  train.clear_steps();
  train.clear_eval_every();
  train.clear_eval_tokens();
  train.clear_checkpoint_every();
  train.clear_keep_checkpoints();
  train.clear_log_every();
  train.clear_micro_batch();
  train.clear_recompute();
  train.clear_deterministic();
  return run;
}

}  // namespace

void check_same_run(const std::string& stored_yaml, const config::RunConfig& run, const std::string& folder) {
  const config::RunConfig stored = comparable(parse_run_config(stored_yaml, folder));
  google::protobuf::util::MessageDifferencer differencer;
  std::string differences;
  differencer.ReportDifferencesToString(&differences);
  if (differencer.Compare(stored, comparable(run))) return;
  while (!differences.empty() && differences.back() == '\n') differences.pop_back();
  std::replace(differences.begin(), differences.end(), '\n', ';');
  fail_user("{}: a checkpoint of another run: {}. Use another output, or remove that folder", folder,
            differences);
}

namespace {

// As rank 0 sees it: another rank's view of a shared folder may be late.
std::optional<std::string> agreed_checkpoint(const std::string& output, parallel::Communicator& ranks) {
  constexpr std::size_t kLongest = 4096;
  std::array<std::uint8_t, kLongest> name{};
  if (ranks.rank() == 0) {
    const std::string folder = latest_checkpoint(output).value_or("");
    require(folder.size() < kLongest, "output {}: the path is too long", output);
    std::copy(folder.begin(), folder.end(), name.begin());
  }
  ranks.broadcast(std::span<std::uint8_t>(name), 0);
  const std::string folder = reinterpret_cast<const char*>(name.data());
  return folder.empty() ? std::nullopt : std::optional(folder);
}

void check_state(const TrainingState& state, const config::RunConfig& run, const std::string& folder) {
  check_same_run(state.config, run, folder);
  require(state.step <= run.train().steps(),
          "train.steps is {}, but {} has done {} steps already: give at least as many, or another output",
          run.train().steps(), folder, state.step);
}

// Adapters are trained on weights that the checkpoint does not hold.
void check_base(const TrainingState& state, const config::RunConfig& run, const std::string& folder) {
  if (state.base.empty() || !run.model().has_path()) return;
  const std::string found = base_fingerprint(run.model().path());
  require(state.base == found,
          "{}: its adapters were trained on another model.path {}: config.json or weights there have changed "
          "(fingerprint {}, now {}): restore them, or give another output",
          folder, run.model().path(), state.base, found);
}

}  // namespace

std::int64_t resume(const config::RunConfig& run, Trainer& trainer, parallel::Communicator& ranks) {
  const auto folder = agreed_checkpoint(run.output(), ranks);
  if (!folder) return 0;
  const CheckpointReader checkpoint(*folder);
  check_state(checkpoint.state(), run, *folder);
  if (ranks.rank() == 0) check_base(checkpoint.state(), run, *folder);
  ranks.barrier();
  checkpoint.read(trainer.pieces(), ranks);
  trainer.resumed(checkpoint.state().step);
  return checkpoint.state().step;
}

}  // namespace ridge
