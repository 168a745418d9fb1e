// Ranks that work together. A communicator is a value that is passed to what needs one; there is no global
// group.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/dtype.h"

namespace ridge::parallel {

enum class Reduce : std::uint8_t { sum, max };

/// A collective under way. wait() returns when it is done, and rethrows what went wrong.
class Pending {
 public:
  virtual ~Pending() = default;
  virtual void wait() = 0;
};

/// Collectives over the ranks of one group: every rank calls the same ones in the same order. With one rank
/// each is the identity. Reductions give the same bits on every rank, and the same from run to run.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual void barrier() = 0;
  /// Ends all ranks of the group as soon as can be: called while an error unwinds.
  virtual void abort(const std::string& reason, int exit_code) noexcept = 0;

  /// In place. T: float, double, int64.
  template <class T>
  void all_reduce(std::span<T> values, Reduce op = Reduce::sum) {
    do_all_reduce({values.data(), values.size(), dtype_of<T>}, op);
  }
  /// As all_reduce with sum, beside the caller's work; `values` must stay until wait().
  template <class T>
  std::unique_ptr<Pending> all_reduce_async(std::span<T> values) {
    return do_all_reduce_async({values.data(), values.size(), dtype_of<T>});
  }
  /// `all` holds size() pieces of `mine`'s extent, by rank.
  template <class T>
  void all_gather(std::span<const T> mine, std::span<T> all) {
    do_all_gather({const_cast<T*>(mine.data()), mine.size(), dtype_of<T>},
                  {all.data(), all.size(), dtype_of<T>});
  }
  template <class T>
  void broadcast(std::span<T> values, int root) {
    do_broadcast({values.data(), values.size(), dtype_of<T>}, root);
  }

 protected:
  /// A typed span whose type is known at run time.
  struct Span {
    void* data;
    std::size_t count;
    DType dtype;
  };
  virtual void do_all_reduce(Span values, Reduce op) = 0;
  virtual std::unique_ptr<Pending> do_all_reduce_async(Span values) = 0;
  virtual void do_all_gather(Span mine, Span all) = 0;
  virtual void do_broadcast(Span values, int root) = 0;
};

/// One rank: every collective is the identity.
std::unique_ptr<Communicator> self_communicator();

/// Runs `body` on `size` threads, each with a communicator of one group. The first exception stops all ranks
/// and is rethrown.
void run_ranks(int size, const std::function<void(Communicator&)>& body);

}  // namespace ridge::parallel
