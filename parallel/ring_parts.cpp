#include "parallel/ring_parts.h"

#include "core/base/stream.h"
#include "kernels/attention_merge.h"

namespace ridge::parallel {
namespace {

Tensor empty_like(const Tensor& x) { return Tensor::empty(x.shape(), x.dtype(), x.device()); }

DType wide_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// A sum of that many rows in the accumulation type.
Tensor wide_like(const Tensor& x) { return Tensor::empty(x.shape(), wide_dtype(x.dtype()), x.device()); }

// Calls f with the type of a sum of parts of type T: T itself or its accumulation type.
template <class T, class F>
void visit_width(const Tensor& sum, const F& f) {
  if (sum.dtype() == dtype_of<T>) return f(std::type_identity<T>{});
  if constexpr (!std::is_same_v<T, acc_t<T>>) return f(std::type_identity<acc_t<T>>{});
  fail("a sum of {} of parts of {}", name_of(sum.dtype()), name_of(dtype_of<T>));
}

// Calls f with the types of the sum so far, of a part, and of the sum to be.
template <class F>
void visit_sum(const Tensor& sum, const Tensor& part, const Tensor& to, const F& f) {
  visit_compute(part.dtype(), [&]<class T>(std::type_identity<T> t) {
    visit_width<T>(sum, [&]<class A>(std::type_identity<A> a) {
      visit_width<T>(to, [&]<class Y>(std::type_identity<Y> y) { f(a, t, y); });
    });
  });
}

}  // namespace

RingHalves::RingHalves(std::int64_t tokens, const std::vector<RingBlock>& all) : half_(tokens / 2) {
  for (const RingBlock& block : all) {
    for (int h = 0; h < 2; ++h) total_[at(h)] += in(h, block) ? 1 : 0;
  }
}

void RingHalves::count(const RingBlock& block) {
  for (int h = 0; h < 2; ++h) done_[at(h)] += in(h, block) ? 1 : 0;
}

bool RingHalves::all_of(const RingBlock& block, const std::array<int, 2>& counts) const {
  int with = 0, without = 0;
  for (int h = 0; h < 2; ++h) {
    if (in(h, block)) ++(done_[at(h)] == counts[at(h)] ? with : without);
  }
  check(with == 0 || without == 0, "a block that is the first or the last of one half alone");
  return with > 0;
}

RingOutputs::RingOutputs(const Tensor& q_BTHD, const std::vector<RingBlock>& all)
    : q_(q_BTHD), o_(empty_like(q_BTHD)), halves_(q_BTHD.dim(1), all) {
  lse_ = Tensor::empty({q_.dim(0), q_.dim(2), q_.dim(1)}, wide_dtype(q_.dtype()), q_.device());
  for (int h = 0; h < 2; ++h)
    sums_[static_cast<std::size_t>(h)] = o_.sliced(1, halves_.begin(h), halves_.end(h));
}

void RingOutputs::attend(const RingBlock& block, const Tensor& k_BSGD, const Tensor& v_BSGD) {
  const Tensor q = q_.sliced(1, block.q_begin, block.q_end), k = k_BSGD.sliced(1, block.k_begin, block.k_end),
               v = v_BSGD.sliced(1, block.k_begin, block.k_end);
  const bool first = halves_.first(block);
  Tensor o = o_.sliced(1, block.q_begin, block.q_end), lse = lse_.sliced(2, block.q_begin, block.q_end);
  if (!first) {
    o = empty_like(o);
    lse = empty_like(lse);
  }
  visit_compute(q.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::attention<T>(current_stream(q.device()), q.view<T>(), k.view<T>(), v.view<T>(), o.view<T>(),
                          lse.view<acc_t<T>>(), block.options);
  });
  for (int h = 0; h < 2 && !first; ++h) {
    if (!halves_.in(h, block)) continue;
    const std::int64_t begin = halves_.begin(h) - block.q_begin, end = halves_.end(h) - block.q_begin;
    join(h, o.sliced(1, begin, end), lse.sliced(2, begin, end));
  }
  halves_.count(block);
}

void RingOutputs::join(int half, const Tensor& o, const Tensor& lse) {
  Tensor& sum = sums_[static_cast<std::size_t>(half)];
  const Tensor total = lse_.sliced(2, halves_.begin(half), halves_.end(half));
  Tensor to = sum;
  if (halves_.last(half)) {
    to = o_.sliced(1, halves_.begin(half), halves_.end(half));
  } else if (sum.dtype() != wide_dtype(sum.dtype())) {
    to = wide_like(sum);
  }
  visit_sum(
      sum, o, to,
      [&]<class A, class T, class Y>(std::type_identity<A>, std::type_identity<T>, std::type_identity<Y>) {
        kernels::merge_attention<A, T, Y>(current_stream(o.device()), sum.view<A>(), total.view<acc_t<T>>(),
                                          o.view<T>(), lse.view<acc_t<T>>(), to.view<Y>(),
                                          total.view<acc_t<T>>());
      });
  sum = to;
}

RingQueryGradients::RingQueryGradients(Saved saved, const Tensor& dq_BTHD, const std::vector<RingBlock>& all)
    : saved_(std::move(saved)), dq_(dq_BTHD), halves_(dq_BTHD.dim(1), all) {}

const Tensor& RingQueryGradients::lse_of(const RingBlock& block) {
  if (halves_.in(0, block) && halves_.in(1, block)) return saved_.lse_BHT;
  const int half = halves_.in(0, block) ? 0 : 1;
  Tensor& lse = lse_[static_cast<std::size_t>(half)];
  if (!lse.defined())
    lse = saved_.lse_BHT.sliced(2, halves_.begin(half), halves_.end(half)).contiguous_copy();
  return lse;
}

void RingQueryGradients::attend(const RingBlock& block, const Tensor& k_BSGD, const Tensor& v_BSGD,
                                const Tensor& dk, const Tensor& dv) {
  const auto queries = [&](const Tensor& x) { return x.sliced(1, block.q_begin, block.q_end); };
  const auto keys = [&](const Tensor& x) { return x.sliced(1, block.k_begin, block.k_end); };
  const Tensor grad = queries(saved_.dy_BTHD), q = queries(saved_.q_BTHD), o = queries(saved_.o_BTHD),
               k = keys(k_BSGD), v = keys(v_BSGD), lse = lse_of(block);
  const Tensor dq = halves_.last(block) ? queries(dq_) : empty_like(q);
  visit_compute(q.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::attention_backward<T>(current_stream(q.device()), grad.view<T>(), q.view<T>(), k.view<T>(),
                                   v.view<T>(), o.view<T>(), lse.view<acc_t<T>>(), dq.view<T>(), dk.view<T>(),
                                   dv.view<T>(), block.options);
  });
  for (int h = 0; h < 2; ++h) {
    if (halves_.in(h, block))
      add(h, dq.sliced(1, halves_.begin(h) - block.q_begin, halves_.end(h) - block.q_begin));
  }
  halves_.count(block);
}

// The last one lies in its place already.
void RingQueryGradients::add(int half, const Tensor& dq) {
  Tensor& sum = sums_[static_cast<std::size_t>(half)];
  if (!sum.defined()) {
    sum = dq;
    return;
  }
  Tensor to = sum;
  if (halves_.last(half)) {
    to = dq;
  } else if (sum.dtype() != wide_dtype(sum.dtype())) {
    to = wide_like(sum);
  }
  visit_sum(
      sum, dq, to,
      [&]<class A, class T, class Y>(std::type_identity<A>, std::type_identity<T>, std::type_identity<Y>) {
        kernels::add_parts<A, T, Y>(current_stream(dq.device()), sum.view<A>(), dq.view<T>(), to.view<Y>());
      });
  sum = to;
}

}  // namespace ridge::parallel
