#include "parallel/collective_ops.h"

#include <algorithm>

#include "core/autograd.h"
#include "parallel/one_shot_reduce.h"
#include "parallel/tensor_collectives.h"

namespace ridge::parallel {
namespace {

using autograd::Grads;
using autograd::Needs;

void sum_in_place(Communicator& tp, const Tensor& x) {
  InFlight flight;
  start_all_reduce(tp, x, flight);
  flight.wait();
}

Tensor sample(const Tensor& x_BTC, std::int64_t b) {
  return x_BTC.sliced(0, b, b + 1).reshaped({x_BTC.dim(1), x_BTC.dim(2)});
}

// A collective a sample: its tokens lie side by side in memory.
Tensor gathered(Communicator& tp, const Tensor& piece) {
  const Tensor x = piece.as_contiguous();
  const Tensor whole = Tensor::empty({x.dim(0), x.dim(1) * tp.size(), x.dim(2)}, x.dtype(), x.device());
  InFlight flight;
  for (std::int64_t b = 0; b < x.dim(0); ++b) start_all_gather(tp, sample(x, b), sample(whole, b), flight);
  flight.wait();
  return whole;
}

Tensor scattered(Communicator& tp, const Tensor& whole) {
  const Tensor x = whole.as_contiguous();
  const Tensor piece = Tensor::empty({x.dim(0), x.dim(1) / tp.size(), x.dim(2)}, x.dtype(), x.device());
  InFlight flight;
  for (std::int64_t b = 0; b < x.dim(0); ++b)
    start_reduce_scatter(tp, sample(x, b), sample(piece, b), flight);
  flight.wait();
  return piece;
}

struct CopyToTp {
  static constexpr const char* kName = "copy_to_tp";
  Communicator* tp;

  Tensor forward(const Tensor& x) const { return x; }
  Grads vjp(const Tensor& dy, const Needs&) const {
    const Tensor dx = owned(dy);
    sum_in_place(*tp, dx);
    return {dx};
  }
};

struct ReduceFromTp {
  static constexpr const char* kName = "reduce_from_tp";
  Communicator* tp;
  const OneShotReduce* one_shot;

  Tensor forward(const Tensor& x) const {
    Tensor y = x.as_contiguous();
    if (one_shot != nullptr && one_shot->takes(y)) {
      one_shot->all_reduce(y);
    } else {
      sum_in_place(*tp, y);
    }
    y.set_recipe(nullptr);  // which would make this rank's part
    return y;
  }
  Grads vjp(const Tensor& dy, const Needs&) const { return {dy}; }
};

struct GatherSequence {
  static constexpr const char* kName = "gather_sequence";
  Communicator* tp;

  Tensor forward(const Tensor& x) const { return gathered(*tp, x); }
  Grads vjp(const Tensor& dy, const Needs&) const { return {scattered(*tp, dy)}; }
};

struct ScatterSequence {
  static constexpr const char* kName = "scatter_sequence";
  Communicator* tp;

  Tensor forward(const Tensor& x) const { return scattered(*tp, x); }
  Grads vjp(const Tensor& dy, const Needs&) const { return {gathered(*tp, dy)}; }
};

struct GatherColumns {
  static constexpr const char* kName = "gather_columns";
  Communicator* tp;
  std::int64_t total;

  std::int64_t width() const { return (total + tp->size() - 1) / tp->size(); }
  std::pair<std::int64_t, std::int64_t> columns_of(int rank) const {
    return {std::min(total, rank * width()), std::min(total, (rank + 1) * width())};
  }

  // Every rank sends `width` columns, the last ones some that mean nothing.
  Tensor forward(const Tensor& x) const {
    std::int64_t rows = 1;
    for (int d = 0; d + 1 < x.ndim(); ++d) rows *= x.dim(d);
    const Tensor x_Rn = x.as_contiguous().reshaped({rows, x.dim(-1)});
    const Tensor all = Tensor::zeros({tp->size(), rows, width()}, x.dtype(), x.device());
    const Tensor mine = all.sliced(0, tp->rank(), tp->rank() + 1);
    mine.reshaped({rows, width()}).sliced(1, 0, x_Rn.dim(1)).copy_from(x_Rn);
    InFlight flight;
    start_all_gather(*tp, mine, all, flight);
    flight.wait();
    const Tensor y = Tensor::empty({rows, total}, x.dtype(), x.device());
    for (int r = 0; r < tp->size(); ++r) {
      const auto [begin, end] = columns_of(r);
      const Tensor from = all.sliced(0, r, r + 1).reshaped({rows, width()}).sliced(1, 0, end - begin);
      if (begin < end) y.sliced(1, begin, end).copy_from(from);
    }
    Shape shape = x.shape();
    shape[-1] = total;
    return y.reshaped(shape);
  }
  Grads vjp(const Tensor& dy, const Needs&) const {
    const auto [begin, end] = columns_of(tp->rank());
    return {dy.sliced(dy.ndim() - 1, begin, end).contiguous_copy()};
  }
};

}  // namespace

void check_sequence(std::int64_t tokens, int ranks) {
  require(tokens % ranks == 0,
          "sequence parallelism: a sequence of {} tokens cannot be cut for {} ranks: choose a length that {} "
          "divides, or turn it off",
          tokens, ranks, ranks);
}

Tensor copy_to_tp(const Tensor& x, Communicator& tp) {
  return tp.size() == 1 ? x : autograd::apply(CopyToTp{&tp}, x);
}

Tensor reduce_from_tp(const Tensor& x, Communicator& tp, const OneShotReduce* one_shot) {
  return tp.size() == 1 ? x : autograd::apply(ReduceFromTp{&tp, one_shot}, x);
}

Tensor gather_sequence(const Tensor& x_BtC, Communicator& tp) {
  check(x_BtC.ndim() == 3, "gather_sequence: [B, T, C]");
  return tp.size() == 1 ? x_BtC : autograd::apply(GatherSequence{&tp}, x_BtC);
}

Tensor scatter_sequence(const Tensor& x_BTC, Communicator& tp) {
  check(x_BTC.ndim() == 3, "scatter_sequence: [B, T, C]");
  check_sequence(x_BTC.dim(1), tp.size());
  return tp.size() == 1 ? x_BTC : autograd::apply(ScatterSequence{&tp}, x_BTC);
}

Tensor gather_columns(const Tensor& x, std::int64_t total, Communicator& tp) {
  return tp.size() == 1 ? x : autograd::apply(GatherColumns{&tp, total}, x);
}

}  // namespace ridge::parallel
