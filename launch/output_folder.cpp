#include "launch/output_folder.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "core/base/error.h"
#include "core/io/file.h"
#include "core/models/saved_folder.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 20;

std::vector<std::string> names_in(const std::string& option, const fs::path& folder) {
  std::error_code error;
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder, error)) names.push_back(entry.path().filename());
  require(!error, "{} {}: the folder cannot be read: {}", option, folder.string(), error.message());
  std::ranges::sort(names);
  return names;
}

// Without "." , ".." and slashes at the end, so that its last part is a name and the rest is its parent.
fs::path plain(const std::string& path) {
  fs::path absolute = fs::absolute(path).lexically_normal();
  return absolute.has_filename() ? absolute : absolute.parent_path();
}

// A file that we write into a model's or an adapter's folder.
bool is_ours(const std::string& name) {
  const bool weights = name.starts_with("model") &&
                       (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"));
  return weights || name == "config.json" || name == "adapter_config.json" ||
         name == "adapter_model.safetensors" || models::is_companion(name);
}

bool lies_in(const std::string& path, const fs::path& folder) {
  if (path.empty()) return false;
  std::error_code error;
  const fs::path inner = fs::weakly_canonical(path, error), outer = fs::weakly_canonical(folder, error);
  if (inner.empty() || outer.empty()) return false;
  return std::ranges::mismatch(outer, inner).in1 == outer.end();
}

void require_not_read(const config::RunConfig& run, const std::string& folder) {
  const auto refuse = [&](const char* field, const std::string& path) {
    require(!lies_in(path, folder),
            "{} {} lies in {}, which this run replaces at its end: give another output", field, path, folder);
  };
  refuse("model.path", run.model().path());
  refuse("model.tokenizer", run.model().tokenizer());
  refuse("adapter.path", run.adapter().path());
  for (const std::string& file : run.data().train()) refuse("data.train", file);
  for (const std::string& file : run.data().valid()) refuse("data.valid", file);
}

// A config that reads back as itself loses nothing when the run writes its own; another is copied.
std::string keep_config(const config::RunConfig& run, const std::string& config) {
  const std::string replaced = run.output() + "/config.yaml", kept = run.output() + "/config.given.yaml";
  std::error_code error;
  if (config.empty() || !fs::equivalent(config, replaced, error)) return {};
  const std::string text = read_text_file(config, kMaxConfigBytes);
  if (dump_yaml(parse_run_config(text, config)) == text) return {};
  require(!fs::exists(kept, error) || read_text_file(kept, kMaxConfigBytes) == text,
          "{} is where the run keeps its resolved config, and {} is taken: give it another name, or the run "
          "another output",
          config, kept);
  write_file_atomically(kept, text);
  return fmt::format("{} will hold the resolved config; as it was it is in {}", replaced, kept);
}

void require_own_result(const config::RunConfig& run) {
  const std::string folder = result_folder(run);
  require_not_read(run, folder);
  std::error_code error;
  if (!fs::exists(fs::symlink_status(folder, error))) return;
  require(fs::is_directory(fs::status(folder, error)), "output {}: {} is no folder: move it away",
          run.output(), folder);
  const std::vector<std::string> names = names_in("output", folder);
  const auto other = std::ranges::find_if_not(names, is_ours);
  require(other == names.end(),
          "output {}: {} holds {}, which no run wrote, and the run would replace the folder: move that file "
          "away, or give another output",
          run.output(), folder, other == names.end() ? "" : *other);
  const bool ran_before =
      fs::exists(run.output() + "/config.yaml", error) && fs::exists(run.output() + "/metrics.jsonl", error);
  require(
      names.empty() || ran_before,
      "output {}: {} is there, but no run (config.yaml, metrics.jsonl) that could have written it: move it "
      "away, or give another output",
      run.output(), folder);
}

}  // namespace

void require_new_folder(const std::string& option, const std::string& path) {
  require(!path.empty(), "{} is empty: give the folder to write", option);
  const fs::path folder = plain(path), parent = folder.parent_path();
  std::error_code error;
  require(!fs::equivalent(folder, fs::current_path(), error),
          "{} {} is the folder that this command runs in, which cannot be replaced: give another name",
          option, path);
  require(fs::is_directory(parent, error), "{} {}: there is no folder {}: make it first", option, path,
          parent.string());
  require(::access(parent.c_str(), W_OK | X_OK) == 0, "{} {}: nothing can be written in {}: {}", option, path,
          parent.string(), errno_text(errno));
  const fs::file_status found = fs::symlink_status(folder, error);
  if (!fs::exists(found)) return;
  require(fs::is_directory(fs::status(folder, error)), "{} {}: a file has that name: give another", option,
          path);
  const std::vector<std::string> names = names_in(option, folder);
  require(names.empty(),
          "{} {}: the folder holds {} file(s) already, {} among them: nothing is replaced, give a new one",
          option, path, names.size(), names.empty() ? "" : names.front());
}

std::string result_folder(const config::RunConfig& run) {
  return run.output() + (run.has_lora() || run.has_adapter() ? "/adapter" : "/model");
}

std::string check_output(const config::RunConfig& run, const std::string& config) {
  require_own_result(run);
  return keep_config(run, config);
}

}  // namespace ridge
