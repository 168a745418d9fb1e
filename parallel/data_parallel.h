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
///
/// A bucket lies on its parameters' device. In it gradients stand in the order of `parameters`, each at a
/// multiple of 16 bytes and otherwise without a gap: those of neighbours are one block of memory. One rank
/// sends nothing: on the CPU it has no buckets, and gradients stay where backward makes them; on a GPU, and
/// on meta that stands for one, it has the same buckets as one rank of many.
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
  /// After the last one: every gradient is the sum over all ranks, for the caller, or on a GPU for what is
  /// queued from now on. Parameters without a gradient count zero, where there is more than one rank.
  void finish();
  std::int64_t buckets() const;
  /// On a GPU (or meta that stands for one): all gradients as a few flat tensors, whole after finish(); else
  /// empty.
  std::vector<Tensor> flat() const;

 private:
  struct Bucket;
  void add_bucket(const std::vector<Tensor>& parameters);
  void arrived(Bucket& bucket);
  void send_ready();

  Communicator& communicator_;
  std::vector<std::unique_ptr<Bucket>> buckets_;
  std::size_t next_ = 0;  // the first bucket not sent: all ranks send in this order
  bool reduce_ = false;
};

}  // namespace ridge::parallel
