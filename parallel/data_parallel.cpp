#include "parallel/data_parallel.h"

#include <cstring>

#include "core/autograd.h"

namespace ridge::parallel {

struct GradientReducer::Bucket {
  Tensor memory;  // [elements], the gradients side by side
  std::vector<autograd::Leaf*> leaves;
  std::size_t arrived = 0;
  std::unique_ptr<Pending> pending;
};

namespace {

DType grad_dtype(const Tensor& parameter) {
  return parameter.dtype() == DType::f64 ? DType::f64 : DType::f32;
}

// Splits parameters, last first, into runs of at most `limit` bytes of one gradient dtype.
std::vector<std::vector<Tensor>> split(const std::vector<Tensor>& parameters, std::int64_t limit) {
  std::vector<std::vector<Tensor>> runs;
  std::int64_t bytes = 0;
  for (auto it = parameters.rbegin(); it != parameters.rend(); ++it) {
    const std::int64_t more = it->numel() * static_cast<std::int64_t>(size_of(grad_dtype(*it)));
    const bool fits =
        !runs.empty() && bytes + more <= limit && grad_dtype(runs.back().front()) == grad_dtype(*it);
    if (!fits) {
      runs.emplace_back();
      bytes = 0;
    }
    runs.back().push_back(*it);
    bytes += more;
  }
  return runs;
}

// Its place in the bucket may hold an older gradient.
void give_zero(autograd::Leaf& leaf) {
  std::memset(leaf.buffer.data(), 0, static_cast<std::size_t>(leaf.buffer.bytes()));
  leaf.grad = leaf.buffer;
}

}  // namespace

GradientReducer::GradientReducer(const std::vector<Tensor>& parameters, Communicator& communicator,
                                 std::int64_t bucket_bytes)
    : communicator_(communicator) {
  if (communicator.size() == 1) return;  // gradients stay where backward makes them
  for (const std::vector<Tensor>& run : split(parameters, bucket_bytes)) {
    auto bucket = std::make_unique<Bucket>();
    std::int64_t elements = 0;
    for (const Tensor& p : run) elements += p.numel();
    const PurposeScope purpose(Purpose::gradients);
    bucket->memory = Tensor::zeros({elements}, grad_dtype(run.front()), run.front().device());
    std::int64_t begin = 0;
    for (const Tensor& p : run) {
      autograd::Leaf& leaf = autograd::leaf_of(p);
      leaf.buffer = bucket->memory.sliced(0, begin, begin + p.numel()).reshaped(p.shape());
      leaf.hooks.push_back([this, b = bucket.get()](autograd::Leaf& l) {
        if (reduce_ && !l.grad.defined()) give_zero(l);  // on the tape, but nothing came
        arrived(*b);
      });
      bucket->leaves.push_back(&leaf);
      begin += p.numel();
    }
    buckets_.push_back(std::move(bucket));
  }
}

GradientReducer::~GradientReducer() = default;

std::int64_t GradientReducer::buckets() const { return static_cast<std::int64_t>(buckets_.size()); }

void GradientReducer::begin(bool reduce) {
  reduce_ = reduce;
  next_ = 0;
  for (auto& bucket : buckets_) bucket->arrived = 0;
}

void GradientReducer::arrived(Bucket& bucket) {
  ++bucket.arrived;
  if (reduce_) send_ready();
}

void GradientReducer::send_ready() {
  while (next_ < buckets_.size() && buckets_[next_]->arrived >= buckets_[next_]->leaves.size()) {
    Bucket& bucket = *buckets_[next_++];
    if (bucket.memory.dtype() == DType::f64) {
      bucket.pending = communicator_.all_reduce_async(bucket.memory.span<double>());
    } else {
      bucket.pending = communicator_.all_reduce_async(bucket.memory.span<float>());
    }
  }
}

void GradientReducer::finish() {
  for (auto& bucket : buckets_) {
    for (autograd::Leaf* leaf : bucket->leaves) {
      if (!leaf->grad.defined()) give_zero(*leaf);
    }
    bucket->arrived = bucket->leaves.size();
  }
  send_ready();
  for (auto& bucket : buckets_) {
    if (bucket->pending) bucket->pending->wait();
    bucket->pending.reset();
  }
  reduce_ = false;
}

}  // namespace ridge::parallel
