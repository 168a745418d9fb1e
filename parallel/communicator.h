// Ranks that work together. A communicator is a value that is passed to what needs one; there is no global
// group.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "core/base/device.h"
#include "core/base/dtype.h"

namespace ridge::parallel {

enum class Reduce : std::uint8_t { sum, max };

/// Elements in the memory of one device; those in host memory may also come as a std::span.
template <class T>
struct DeviceSpan {
  T* data = nullptr;  // null on meta
  std::size_t count = 0;
  Device device = Device::cpu;

  operator DeviceSpan<const T>() const requires(!std::is_const_v<T>) { return {data, count, device}; }
};

/// A span whose type is known at run time.
struct AnySpan {
  void* data;
  std::size_t count;
  DType dtype;
  Device device;

  std::size_t bytes() const { return count * size_of(dtype); }
};

/// From one rank to another; made by Communicator::send_to and receive_from.
struct Message {
  enum class Way : std::uint8_t { send, receive };

  Way way;
  int peer;  // the other rank
  AnySpan values;
};

/// A collective or messages under way. After wait() its result is there: on the CPU for the caller, on a GPU
/// for all that is queued on the compute stream from then on. wait() rethrows what went wrong.
class Pending {
 public:
  virtual ~Pending() = default;
  virtual void wait() = 0;
};

/// Collectives over the ranks of one group: every rank calls the same ones in the same order. With one rank
/// each is the identity. Reductions give the same bits on every rank, and the same from run to run.
///
/// Where its spans lie says how a collective runs. Host memory: the forms without Pending return when all is
/// done. A GPU's memory: they see what was queued on the compute stream before, what is queued after sees
/// their result, and the host does not wait. meta: nothing moves. Spans of one call lie on one device.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Of the hosts' threads: work queued on GPUs may be still under way.
  virtual void barrier() = 0;
  /// Ends all ranks of the group as soon as can be: called while an error unwinds.
  virtual void abort(const std::string& reason, int exit_code) noexcept = 0;

  /// The ranks that give the same color, in the order of this group; null for a color below 0. Every rank
  /// calls it together. An abort of either group ends both. It must not outlive what this group stands on:
  /// MPI's session, the host communicator of NCCL's.
  virtual std::unique_ptr<Communicator> split(int color) = 0;
  /// The same where every rank can tell the colors of all, from their ranks: simulated ranks can only this.
  virtual std::unique_ptr<Communicator> split_by(const std::function<int(int rank)>& color_of) {
    return split(color_of(rank()));
  }

  /// In place. T: any dtype; a sum of integers has to fit in it.
  template <class T>
  void all_reduce(DeviceSpan<T> values, Reduce op = Reduce::sum) {
    do_all_reduce(erased(values), op);
  }
  template <class T>
  void all_reduce(std::span<T> values, Reduce op = Reduce::sum) {
    all_reduce(on_host(values), op);
  }
  /// As all_reduce with sum, beside the caller's work; `values` must stay until wait().
  template <class T>
  std::unique_ptr<Pending> all_reduce_async(DeviceSpan<T> values) {
    return do_all_reduce_async(erased(values));
  }
  template <class T>
  std::unique_ptr<Pending> all_reduce_async(std::span<T> values) {
    return all_reduce_async(on_host(values));
  }

  /// `all` holds size() pieces of `mine`'s extent, by rank. `mine` may be this rank's piece of `all`.
  template <class T>
  void all_gather(DeviceSpan<const T> mine, DeviceSpan<T> all) {
    check_pieces(erased(mine), erased(all));
    do_all_gather(erased(mine), erased(all));
  }
  template <class T>
  void all_gather(std::span<const T> mine, std::span<T> all) {
    all_gather(on_host(mine), on_host(all));
  }
  /// Beside the caller's work; both must stay until wait().
  template <class T>
  std::unique_ptr<Pending> all_gather_async(DeviceSpan<const T> mine, DeviceSpan<T> all) {
    check_pieces(erased(mine), erased(all));
    return do_all_gather_async(erased(mine), erased(all));
  }
  template <class T>
  std::unique_ptr<Pending> all_gather_async(std::span<const T> mine, std::span<T> all) {
    return all_gather_async(on_host(mine), on_host(all));
  }

  /// `mine` becomes the sum over ranks of this rank's piece of `all`, which is cut as in all_gather; so may
  /// `mine` lie in it. T: as all_reduce.
  template <class T>
  void reduce_scatter(DeviceSpan<const T> all, DeviceSpan<T> mine) {
    reduce_scatter_async(all, mine)->wait();
  }
  template <class T>
  void reduce_scatter(std::span<const T> all, std::span<T> mine) {
    reduce_scatter(on_host(all), on_host(mine));
  }
  /// Beside the caller's work; both must stay until wait(), and then only `mine` means something if it lies
  /// in `all`.
  template <class T>
  std::unique_ptr<Pending> reduce_scatter_async(DeviceSpan<const T> all, DeviceSpan<T> mine) {
    check_pieces(erased(mine), erased(all));
    return do_reduce_scatter_async(erased(all), erased(mine));
  }
  template <class T>
  std::unique_ptr<Pending> reduce_scatter_async(std::span<const T> all, std::span<T> mine) {
    return reduce_scatter_async(on_host(all), on_host(mine));
  }

  template <class T>
  void broadcast(DeviceSpan<T> values, int root) {
    check_root(root);
    do_broadcast(erased(values), root);
  }
  template <class T>
  void broadcast(std::span<T> values, int root) {
    broadcast(on_host(values), root);
  }

  template <class T>
  static Message send_to(int peer, DeviceSpan<const T> values) {
    return {Message::Way::send, peer, erased(values)};
  }
  template <class T>
  requires(!std::is_const_v<T>) static Message send_to(int peer, DeviceSpan<T> values) {
    return {Message::Way::send, peer, erased(values)};
  }
  template <class T>
  requires(!std::is_const_v<T>) static Message receive_from(int peer, DeviceSpan<T> values) {
    return {Message::Way::receive, peer, erased(values)};
  }
  template <class T>
  static Message send_to(int peer, std::span<T> values) {
    return {Message::Way::send, peer, erased(on_host(values))};
  }
  template <class T>
  requires(!std::is_const_v<T>) static Message receive_from(int peer, std::span<T> values) {
    return {Message::Way::receive, peer, erased(on_host(values))};
  }
  /// Sends and receives that run together, beside the caller's work; only the ranks that they name take part.
  /// Messages from one rank to another arrive in the order of calls, with the type and count that they were
  /// sent with. What is received must stay until wait(), which ends when all of it is there.
  ///
  /// Host memory: what is sent is copied, so a send waits for nobody. A GPU's memory: what is sent must stay
  /// until wait() too, a batch begins when the one before it has ended, and the first between two ranks
  /// keeps the host until both have come to it: one batch that goes both ways connects them in advance. One
  /// rank: the messages of a batch are copied, in pairs.
  std::unique_ptr<Pending> exchange_async(const std::vector<Message>& messages);
  void exchange(const std::vector<Message>& messages) { exchange_async(messages)->wait(); }

  /// `in` and `out` are size() equal pieces, and do not overlap: piece r of `in` becomes this rank's piece of
  /// `out` on rank r.
  template <class T>
  void all_to_all(std::type_identity_t<DeviceSpan<const T>> in, DeviceSpan<T> out) {
    all_to_all_async(in, out)->wait();
  }
  /// Beside the caller's work; both must stay until wait().
  template <class T>
  std::unique_ptr<Pending> all_to_all_async(std::type_identity_t<DeviceSpan<const T>> in, DeviceSpan<T> out) {
    return exchange_pieces(erased(in), erased(out));
  }

 protected:
  using Span = AnySpan;
  virtual void do_all_reduce(Span values, Reduce op) = 0;
  virtual std::unique_ptr<Pending> do_all_reduce_async(Span values) = 0;
  virtual void do_all_gather(Span mine, Span all) = 0;
  virtual std::unique_ptr<Pending> do_all_gather_async(Span mine, Span all) = 0;
  virtual std::unique_ptr<Pending> do_reduce_scatter_async(Span all, Span mine) = 0;
  virtual void do_broadcast(Span values, int root) = 0;
  /// At least one message, all on one device, peers within the group.
  virtual std::unique_ptr<Pending> do_exchange_async(const std::vector<Message>& messages) = 0;

  /// For communicators of host memory: false on meta, an Error for memory of a GPU.
  static bool in_host_memory(const Span& values, const char* communicator);
  /// What has been done already.
  static std::unique_ptr<Pending> nothing_pending();

 private:
  template <class T>
  static DeviceSpan<T> on_host(std::span<T> values) {
    return {values.data(), values.size(), Device::cpu};
  }
  template <class T>
  static Span erased(DeviceSpan<T> values) {
    return {const_cast<std::remove_const_t<T>*>(values.data), values.count, dtype_of<T>, values.device};
  }
  std::unique_ptr<Pending> exchange_pieces(const Span& in, const Span& out);
  void check_pieces(const Span& mine, const Span& all) const;
  void check_root(int root) const;
};

/// One rank: every collective is the identity.
std::unique_ptr<Communicator> self_communicator();

/// Runs `body` on `size` threads, each with a communicator of one group. The first exception stops all ranks
/// and is rethrown.
void run_ranks(int size, const std::function<void(Communicator&)>& body);

}  // namespace ridge::parallel
