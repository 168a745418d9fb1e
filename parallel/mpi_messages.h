// Messages between MPI processes. It includes MPI's header: for .cpp files.
#pragma once

#include <mpi.h>

#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "parallel/communicator.h"

namespace ridge::parallel {

/// Receives that were asked for in one batch. From any thread.
class MpiReceipts {
 public:
  /// Begins them: messages of one communicator match in this order.
  MpiReceipts(MPI_Comm comm, const std::vector<Message>& messages);
  ~MpiReceipts() { cancel(); }
  MpiReceipts(const MpiReceipts&) = delete;
  MpiReceipts& operator=(const MpiReceipts&) = delete;

  bool empty() const { return open_.empty(); }
  /// Whether nothing is under way any more.
  bool settled() noexcept;
  /// Sleeps until then; throws what went wrong.
  void wait();
  /// What has not come by now is not written any more.
  void cancel() noexcept;

 private:
  struct Receive {
    MPI_Request request;
    int from;
    int count;
    DType dtype;
  };
  static bool done(Receive& receive);

  std::mutex mutex_;
  std::deque<Receive> open_;
  std::exception_ptr error_;
};

/// One communicator's messages. Its calls come from one thread, but for poll().
class MpiMessages {
 public:
  explicit MpiMessages(MPI_Comm comm) : comm_(comm) {}
  /// Sends that nobody has taken yet stay alive until the process ends.
  ~MpiMessages();
  MpiMessages(const MpiMessages&) = delete;
  MpiMessages& operator=(const MpiMessages&) = delete;

  /// Begins all; what is sent is copied. Null where nothing is received.
  std::shared_ptr<MpiReceipts> begin(const std::vector<Message>& messages);
  /// Lets MPI work on what is under way; false if there is nothing.
  bool poll() noexcept;

 private:
  struct Send {
    std::vector<char> bytes;
    std::vector<MPI_Request> requests;
  };
  bool sending();

  MPI_Comm comm_;
  std::mutex mutex_;
  std::deque<Send> sends_;
  std::vector<std::weak_ptr<MpiReceipts>> receipts_;
};

}  // namespace ridge::parallel
