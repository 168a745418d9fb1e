// Data parallelism: gradients are summed over ranks in buckets, while the backward pass still runs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/tensor.h"
#include "parallel/communicator.h"

namespace ridge::parallel {

/// Owns the buckets that gradients live in, and the hooks that send them. Parameters must be leaves, and
/// stay.
class GradientReducer {
 public:
  /// Buckets fill in the reverse order of `parameters`, which is about the order in which gradients arrive.
  GradientReducer(const std::vector<Tensor>& parameters, Communicator& communicator,
                  std::int64_t bucket_bytes);
  ~GradientReducer();
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  /// Before a backward pass: whether its gradients are to be summed over ranks, that is, it is the last
  /// micro-batch.
  void begin(bool reduce);
  /// After the last one: waits until every gradient is the sum over all ranks. Parameters without a gradient
  /// count zero.
  void finish();
  std::int64_t buckets() const;

 private:
  struct Bucket;
  void arrived(Bucket& bucket);
  void send_ready();

  Communicator& communicator_;
  std::vector<std::unique_ptr<Bucket>> buckets_;
  std::size_t next_ = 0;  // the first bucket not sent: all ranks send in this order
  bool reduce_ = false;
};

}  // namespace ridge::parallel
