// Collectives on tensors, beside the work that the caller goes on with.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/tensor.h"
#include "parallel/communicator.h"

namespace ridge::parallel {

/// What is under way, with the memory that must stay until it has ended.
class InFlight {
 public:
  void add(std::unique_ptr<Pending> pending, std::vector<Tensor> kept);
  /// Waits for the first `count` that were added.
  void wait(std::size_t count);
  void wait() { wait(all_.size()); }
  std::size_t count() const { return all_.size(); }

 private:
  struct One {
    std::unique_ptr<Pending> pending;
    std::vector<Tensor> kept;
  };
  std::vector<One> all_;
  std::size_t done_ = 0;
};

/// Tensors are contiguous, of one dtype (f32, f64, bf16). The sum is in place.
void start_all_reduce(Communicator& ranks, const Tensor& values, InFlight& flight);
/// `all` holds the ranks' pieces side by side along its first dimension.
void start_all_gather(Communicator& ranks, const Tensor& mine, const Tensor& all, InFlight& flight);
/// `mine` becomes the sum of this rank's piece of every `all`.
void start_reduce_scatter(Communicator& ranks, const Tensor& all, const Tensor& mine, InFlight& flight);

/// `t` itself where nobody else sees its memory, else a copy: what may be overwritten.
Tensor owned(const Tensor& t);

}  // namespace ridge::parallel
