#include "launch/resume.h"

#include <google/protobuf/util/message_differencer.h>

#include "launch/checkpoint.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"
#include "launch/trainer.h"

namespace ridge {
namespace {

// Without the fields that may change between a stop and a resume.
config::RunConfig comparable(config::RunConfig run) {
  run.clear_output();
  run.clear_device();
  run.clear_parallel();
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

std::int64_t resume(const config::RunConfig& run, Trainer& trainer) {
  const auto folder = latest_checkpoint(run.output());
  if (!folder) return 0;
  const TrainingState state = read_checkpoint_state(*folder);
  check_same_run(state.config, run, *folder);
  read_checkpoint_tensors(*folder, trainer.state_tensors());
  trainer.set_steps(state.step);
  return state.step;
}

}  // namespace ridge
