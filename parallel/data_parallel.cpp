#include "parallel/data_parallel.h"

#include <algorithm>
#include <cstring>

#include "core/autograd.h"
#include "core/base/launch.h"
#include "parallel/tensor_span.h"

namespace ridge::parallel {

struct GradientReducer::Bucket {
  Tensor memory;  // [elements], the gradients side by side
  std::vector<autograd::Leaf*> leaves;
  std::size_t arrived = 0;
  std::unique_ptr<Pending> pending;
};

namespace {

constexpr std::int64_t kAlignment = 16;  // bytes: the widest load of a GPU's thread

DType grad_dtype(const Tensor& parameter) {
  return parameter.dtype() == DType::f64 ? DType::f64 : DType::f32;
}

// Splits parameters, last first, into runs of at most `limit` bytes of one gradient dtype; a run is in their
// own order.
std::vector<std::vector<Tensor>> split(const std::vector<Tensor>& parameters, std::int64_t limit) {
  std::vector<std::vector<Tensor>> runs;
  std::int64_t bytes = 0;
  for (auto it = parameters.rbegin(); it != parameters.rend(); ++it) {
    const std::int64_t more = it->numel() * static_cast<std::int64_t>(size_of(grad_dtype(*it)));
    const bool fits = !runs.empty() && bytes + more <= limit &&
                      grad_dtype(runs.back().front()) == grad_dtype(*it) &&
                      runs.back().front().device() == it->device();
    if (!fits) {
      runs.emplace_back();
      bytes = 0;
    }
    runs.back().push_back(*it);
    bytes += more;
  }
  for (std::vector<Tensor>& run : runs) std::reverse(run.begin(), run.end());
  return runs;
}

// The element at which each parameter's gradient begins, then how many elements there are in all.
std::vector<std::int64_t> places(const std::vector<Tensor>& run) {
  const std::int64_t step = kAlignment / static_cast<std::int64_t>(size_of(grad_dtype(run.front())));
  std::vector<std::int64_t> begins;
  std::int64_t end = 0;
  for (const Tensor& p : run) {
    begins.push_back((end + step - 1) / step * step);
    end = begins.back() + p.numel();
  }
  begins.push_back(end);
  return begins;
}

void zero(const Tensor& t) {
  if (t.numel() == 0) return;
  Stream& stream = current_stream(t.device());
  launch(
      stream, "zero_gradient", Work{0, static_cast<double>(t.bytes())},
      [&] { std::memset(t.data(), 0, static_cast<std::size_t>(t.bytes())); },
      [&] { cuda::fill_bytes(t.data(), 0, t.bytes(), stream); });
}

// Its place in the bucket may hold an older gradient.
void give_zero(autograd::Leaf& leaf) {
  zero(leaf.buffer);
  leaf.grad = leaf.buffer;
}

}  // namespace

GradientReducer::GradientReducer(const std::vector<Tensor>& parameters, Communicator& communicator,
                                 std::int64_t bucket_bytes)
    : communicator_(communicator) {
  for (const std::vector<Tensor>& run : split(parameters, bucket_bytes)) {
    if (communicator.size() > 1 || planned_device(run.front().device()) != Device::cpu) add_bucket(run);
  }
}

GradientReducer::~GradientReducer() = default;

void GradientReducer::add_bucket(const std::vector<Tensor>& parameters) {
  auto bucket = std::make_unique<Bucket>();
  const std::vector<std::int64_t> begins = places(parameters);
  const PurposeScope purpose(Purpose::gradients);
  bucket->memory =
      Tensor::empty({begins.back()}, grad_dtype(parameters.front()), parameters.front().device());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const std::int64_t end = begins[i] + parameters[i].numel();
    autograd::Leaf& leaf = autograd::leaf_of(parameters[i]);
    leaf.buffer = bucket->memory.sliced(0, begins[i], end).reshaped(parameters[i].shape());
    zero(bucket->memory.sliced(0, end, std::max(end, begins[i + 1])));  // gaps are sent too
    bucket->leaves.push_back(&leaf);
    if (communicator_.size() == 1) continue;
    leaf.hooks.push_back([this, b = bucket.get()](autograd::Leaf& l) {
      if (reduce_ && !l.grad.defined()) give_zero(l);  // on the tape, but nothing came
      arrived(*b);
    });
  }
  buckets_.push_back(std::move(bucket));
}

std::int64_t GradientReducer::buckets() const { return static_cast<std::int64_t>(buckets_.size()); }

std::vector<Tensor> GradientReducer::flat() const {
  std::vector<Tensor> all;
  for (const auto& bucket : buckets_) {
    if (planned_device(bucket->memory.device()) == Device::cuda) all.push_back(bucket->memory);
  }
  return all;
}

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
      bucket.pending = communicator_.all_reduce_async(span_of<double>(bucket.memory));
    } else {
      bucket.pending = communicator_.all_reduce_async(span_of<float>(bucket.memory));
    }
  }
}

void GradientReducer::finish() {
  reduce_ = false;
  if (communicator_.size() == 1) {  // nothing came for it: no gradient, and nothing in flat()
    for (auto& bucket : buckets_) {
      for (const autograd::Leaf* leaf : bucket->leaves) {
        if (!leaf->grad.defined()) zero(leaf->buffer);
      }
    }
    return;
  }
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
}

}  // namespace ridge::parallel
