#include "launch/resume.h"

#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <array>
#include <optional>

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

}  // namespace

std::int64_t resume(const config::RunConfig& run, Trainer& trainer, parallel::Communicator& ranks) {
  const auto folder = agreed_checkpoint(run.output(), ranks);
  if (!folder) return 0;
  const CheckpointReader checkpoint(*folder);
  check_same_run(checkpoint.state().config, run, *folder);
  checkpoint.read(trainer.pieces(), ranks);
  trainer.resumed(checkpoint.state().step);
  return checkpoint.state().step;
}

}  // namespace ridge
