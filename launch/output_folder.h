// Folders that commands write: nothing that another program or hand put there is lost.
#pragma once

#include <string>

namespace ridge::config {
class RunConfig;
}

namespace ridge {

/// A UserError unless the folder `path` may be made: it is not there or empty, and what it lies in can be
/// written. `option` names it, such as "--out".
void require_new_folder(const std::string& option, const std::string& path);

/// OUTPUT/model or OUTPUT/adapter, which the run writes at its end.
std::string result_folder(const config::RunConfig& run);

/// A UserError unless the run may write to its output: what stands at result_folder() was left by an earlier
/// run of the same output, holds nothing else and is not read by this one. Where `config`, the file that the
/// run config was read from (empty: none), is one that the run replaces with other words, it is copied, and
/// what to tell is returned.
std::string check_output(const config::RunConfig& run, const std::string& config);

}  // namespace ridge
