// Messages between MPI processes.
#pragma once

#include <memory>
#include <vector>

#include "parallel/communicator.h"

namespace ridge::parallel {

/// Receives that were asked for in one batch. From any thread.
class MpiReceipts {
 public:
  virtual ~MpiReceipts() = default;
  /// Whether nothing is under way any more.
  virtual bool settled() noexcept = 0;
  /// Sleeps until then; throws what went wrong.
  virtual void wait() = 0;
  /// What has not come by now is not written any more.
  virtual void cancel() noexcept = 0;
};

/// One communicator's messages. Its calls come from one thread, but for poll().
class MpiMessages {
 public:
  /// `comm`: the Fortran handle of an MPI_Comm, which nothing else sends messages over.
  explicit MpiMessages(int comm);
  /// Sends that nobody has taken yet stay alive until the process ends.
  ~MpiMessages();
  MpiMessages(const MpiMessages&) = delete;
  MpiMessages& operator=(const MpiMessages&) = delete;

  /// Begins all; what is sent is copied. Null where nothing is received.
  std::shared_ptr<MpiReceipts> begin(const std::vector<Message>& messages);
  /// Lets MPI work on what is under way; false if there is nothing.
  bool poll() noexcept;

 private:
  class UnderWay;
  std::unique_ptr<UnderWay> under_way_;
};

}  // namespace ridge::parallel
