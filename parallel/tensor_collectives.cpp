#include "parallel/tensor_collectives.h"

#include "parallel/tensor_span.h"

namespace ridge::parallel {

void InFlight::add(std::unique_ptr<Pending> pending, std::vector<Tensor> kept) {
  all_.push_back({std::move(pending), std::move(kept)});
}

void InFlight::wait(std::size_t count) {
  for (; done_ < count; ++done_) {
    all_.at(done_).pending->wait();
    all_[done_].kept.clear();
  }
}

void start_all_reduce(Communicator& ranks, const Tensor& values, InFlight& flight) {
  visit_compute(values.dtype(), [&]<class T>(std::type_identity<T>) {
    flight.add(ranks.all_reduce_async(span_of<T>(values)), {values});
  });
}

void start_all_gather(Communicator& ranks, const Tensor& mine, const Tensor& all, InFlight& flight) {
  visit_compute(all.dtype(), [&]<class T>(std::type_identity<T>) {
    flight.add(ranks.all_gather_async<T>(span_of<T>(mine), span_of<T>(all)), {mine, all});
  });
}

void start_reduce_scatter(Communicator& ranks, const Tensor& all, const Tensor& mine, InFlight& flight) {
  visit_compute(all.dtype(), [&]<class T>(std::type_identity<T>) {
    flight.add(ranks.reduce_scatter_async<T>(span_of<T>(all), span_of<T>(mine)), {mine, all});
  });
}

Tensor owned(const Tensor& t) {
  return t.contiguous() && t.storage().use_count() == 1 ? t : t.contiguous_copy();
}

}  // namespace ridge::parallel
