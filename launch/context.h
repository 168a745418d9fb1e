// What every command shares: ranks, output form, threads.
#pragma once

#include <memory>
#include <string>

#include "core/base/device.h"
#include "launch/command_line.h"
#include "launch/json_object.h"
#include "parallel/groups.h"
#include "parallel/mpi_communicator.h"

namespace ridge {

class Context {
 public:
  explicit Context(parallel::MpiSession& mpi) : mpi_(mpi) {}

  parallel::Communicator& ranks() const { return mpi_.world(); }
  bool is_root() const { return mpi_.world().rank() == 0; }
  /// The device of --device, or of `fallback` where that is auto: made ready for this rank. One rank a GPU;
  /// auto takes the CPU where a host has more ranks than GPUs.
  Device use_device(const std::string& fallback = "auto") const;
  /// The communicators of a layout of all ranks: NCCL's for GPUs. Says once where each rank is.
  std::unique_ptr<parallel::Groups> groups(const parallel::Mesh& mesh, Device device) const;
  /// On rank 0: the object on stdout with --json, else `text`.
  void emit(const JsonObject& object, const std::string& text) const;
  /// On rank 0: one line on stderr.
  void note(const std::string& line) const;

  bool json = false;
  std::string device = "auto";

 private:
  void report_places(const parallel::Mesh& mesh, Device device) const;

  parallel::MpiSession& mpi_;
};

/// Throws a UserError with both versions where a rank runs another program, with which the others would hang.
/// Collective; `mine` is this rank's version, below 64 letters.
void require_one_program(parallel::Communicator& ranks, const std::string& mine);

/// Each adds its command; the callback runs it.
void add_info(const Command& app, Context& context);
void add_tokenize(const Command& app, Context& context);
void add_pack(const Command& app, Context& context);
void add_logits(const Command& app, Context& context);
void add_generate(const Command& app, Context& context);
void add_eval(const Command& app, Context& context);
void add_train(const Command& app, Context& context);
void add_merge(const Command& app, Context& context);
void add_quantize(const Command& app, Context& context);
void add_checkpoint(const Command& app, Context& context);
void add_profile(const Command& app, Context& context);
void add_bench(const Command& app, Context& context);
void add_sample_text(const Command& app, Context& context);

}  // namespace ridge
