// Ranks that are not there: what their collectives would cost, on a virtual clock.
#pragma once

#include <memory>
#include <vector>

#include "core/base/stream.h"
#include "parallel/communicator.h"

namespace ridge::parallel {

/// Of one rank's link, each way.
struct SimulatedNetwork {
  double bytes_per_s = 0;
  double latency_s = 0;  // of one collective or batch of messages
};

/// What a group's collectives and messages took.
struct SimulatedTime {
  double exposed_seconds = 0;  // for which the compute stream waited
  double busy_seconds = 0;     // on the link
  double bytes = 0;            // on the link
};

/// One rank of `size`, for tensors on meta: nothing moves, clocks advance. A collective begins when the one
/// before it has ended and the compute stream has come to it, and lasts the latency and its bytes on the
/// wire, as a ring sends them: of n ranks, 2 (n-1)/n of an all-reduce, (n-1)/n of the whole of an all-gather,
/// a reduce-scatter or an all-to-all; a broadcast once; messages the larger of what is sent and received.
/// wait() moves the compute stream's clock to the end, if that is later. The other end of a message is taken
/// to be ready. In host memory up to 64 bytes, such as a loss, are left as they are; more are an Error.
class SimulatedCommunicator final : public Communicator {
 public:
  SimulatedCommunicator(const SimulatedNetwork& network, int size, int rank);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void barrier() override {}
  void abort(const std::string&, int) noexcept override {}
  /// An Error: the others' colors are not known.
  std::unique_ptr<Communicator> split(int color) override;
  /// On a stream of its own; its time counts here too.
  std::unique_ptr<Communicator> split_by(const std::function<int(int rank)>& color_of) override;

  /// With what was split off.
  const SimulatedTime& time() const { return account_->time; }
  /// Sets times and clocks to 0, as who sets the compute stream's clock back has to; with what was split off.
  void reset();
  Stream& stream() { return *stream_; }

 protected:
  void do_all_reduce(Span values, Reduce op) override;
  std::unique_ptr<Pending> do_all_reduce_async(Span values) override;
  void do_all_gather(Span mine, Span all) override;
  std::unique_ptr<Pending> do_all_gather_async(Span mine, Span all) override;
  std::unique_ptr<Pending> do_reduce_scatter_async(Span all, Span mine) override;
  void do_broadcast(Span values, int root) override;
  std::unique_ptr<Pending> do_exchange_async(const std::vector<Message>& messages) override;

 private:
  // Shared with what was split off.
  struct Account {
    SimulatedTime time;
    std::vector<std::weak_ptr<Stream>> streams;
  };
  class Arrival;

  SimulatedCommunicator(const SimulatedNetwork& network, int size, int rank,
                        std::shared_ptr<Account> account);
  std::unique_ptr<Pending> start(const char* op, const Span& values, double wire_bytes);
  double share_of_others() const { return static_cast<double>(size_ - 1) / static_cast<double>(size_); }

  SimulatedNetwork network_;
  int size_;
  int rank_;
  std::shared_ptr<Account> account_;
  std::shared_ptr<Stream> stream_;
};

std::unique_ptr<SimulatedCommunicator> simulated_communicator(const SimulatedNetwork& network, int size,
                                                              int rank);

}  // namespace ridge::parallel
