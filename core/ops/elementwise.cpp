#include "core/ops/elementwise.h"

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/ops/reduce.h"
#include "core/random_state.h"
#include "kernels/dropout.h"
#include "kernels/elementwise.h"

namespace ridge::ops {
namespace {

using autograd::Grads;
using autograd::Needs;

Tensor empty_like(const Tensor& x) { return Tensor::empty(x.shape(), x.dtype(), x.device()); }

// Calls kernel(stream, T, a, b, y) with both inputs broadcast to one shape.
template <class Kernel>
Tensor binary(const Tensor& a, const Tensor& b, Kernel&& kernel) {
  const Shape shape = broadcast(a.shape(), b.shape());
  const Tensor wide_a = a.expanded(shape), wide_b = b.expanded(shape);
  const Tensor y = Tensor::empty(shape, a.dtype(), a.device());
  visit_compute(a.dtype(), [&]<class T>(std::type_identity<T>) {
    kernel(current_stream(a.device()), wide_a.view<T>(), wide_b.view<T>(), y.view<T>());
  });
  return y;
}

template <class Kernel>
Tensor unary(const Tensor& x, Kernel&& kernel) {
  const Tensor y = empty_like(x);
  visit_compute(x.dtype(), [&]<class T>(std::type_identity<T>) {
    kernel(current_stream(x.device()), View<const T>(x.view<T>()), y.view<T>());
  });
  return y;
}

constexpr auto kAdd = []<class T>(Stream& s, View<T> a, View<T> b, View<T> y) {
  kernels::add<T>(s, a, b, y);
};
constexpr auto kSub = []<class T>(Stream& s, View<T> a, View<T> b, View<T> y) {
  kernels::sub<T>(s, a, b, y);
};
constexpr auto kMul = []<class T>(Stream& s, View<T> a, View<T> b, View<T> y) {
  kernels::mul<T>(s, a, b, y);
};
constexpr auto kDiv = []<class T>(Stream& s, View<T> a, View<T> b, View<T> y) {
  kernels::div<T>(s, a, b, y);
};

struct Add {
  static constexpr const char* kName = "add";
  Shape a_shape, b_shape;

  Tensor forward(const Tensor& a, const Tensor& b) {
    a_shape = a.shape();
    b_shape = b.shape();
    return binary(a, b, kAdd);
  }
  Grads vjp(const Tensor& dy, const Needs&) { return {sum_to(dy, a_shape), sum_to(dy, b_shape)}; }
};

struct Sub {
  static constexpr const char* kName = "sub";
  Shape a_shape, b_shape;

  Tensor forward(const Tensor& a, const Tensor& b) {
    a_shape = a.shape();
    b_shape = b.shape();
    return binary(a, b, kSub);
  }
  Grads vjp(const Tensor& dy, const Needs&) { return {sum_to(dy, a_shape), sum_to(scale(dy, -1), b_shape)}; }
};

struct Mul {
  static constexpr const char* kName = "mul";
  Tensor a, b;

  Tensor forward(const Tensor& x, const Tensor& y) {
    a = x;
    b = y;
    return binary(a, b, kMul);
  }
  Grads vjp(const Tensor& dy, const Needs& needs) {
    Grads grads(2);
    if (needs[0]) grads[0] = sum_to(binary(dy, b, kMul), a.shape());
    if (needs[1]) grads[1] = sum_to(binary(dy, a, kMul), b.shape());
    return grads;
  }
};

struct Div {
  static constexpr const char* kName = "div";
  Tensor b, y;

  Tensor forward(const Tensor& a, const Tensor& divisor) {
    b = divisor;
    a_shape = a.shape();
    y = binary(a, b, kDiv);
    return y;
  }
  Grads vjp(const Tensor& dy, const Needs& needs) {
    const Tensor da = binary(dy, b, kDiv);
    Grads grads(2);
    if (needs[0]) grads[0] = sum_to(da, a_shape);
    if (needs[1]) grads[1] = sum_to(scale(binary(da, y, kMul), -1), b.shape());  // -dy a / b^2
    return grads;
  }
  Shape a_shape;
};

struct Exp {
  static constexpr const char* kName = "exp";
  Tensor y;

  Tensor forward(const Tensor& x) {
    y = unary(x, []<class T>(Stream& s, View<const T> in, View<T> out) { kernels::exp<T>(s, in, out); });
    return y;
  }
  Grads vjp(const Tensor& dy, const Needs&) { return {binary(dy, y, kMul)}; }
};

struct Log {
  static constexpr const char* kName = "log";
  Tensor x;

  Tensor forward(const Tensor& input) {
    x = input;
    return unary(x, []<class T>(Stream& s, View<const T> in, View<T> out) { kernels::log<T>(s, in, out); });
  }
  Grads vjp(const Tensor& dy, const Needs&) { return {binary(dy, x, kDiv)}; }
};

struct Sqrt {
  static constexpr const char* kName = "sqrt";
  Tensor y;

  Tensor forward(const Tensor& x) {
    y = unary(x, []<class T>(Stream& s, View<const T> in, View<T> out) { kernels::sqrt<T>(s, in, out); });
    return y;
  }
  Grads vjp(const Tensor& dy, const Needs&) { return {scale(binary(dy, y, kDiv), 0.5)}; }
};

struct Tanh {
  static constexpr const char* kName = "tanh";
  Tensor y;

  Tensor forward(const Tensor& x) {
    y = unary(x, []<class T>(Stream& s, View<const T> in, View<T> out) { kernels::tanh<T>(s, in, out); });
    return y;
  }
  Grads vjp(const Tensor& dy, const Needs&) { return {sub(dy, mul(dy, mul(y, y)))}; }
};

struct Sigmoid {
  static constexpr const char* kName = "sigmoid";
  Tensor y;

  Tensor forward(const Tensor& x) {
    y = unary(x, []<class T>(Stream& s, View<const T> in, View<T> out) { kernels::sigmoid<T>(s, in, out); });
    return y;
  }
  Grads vjp(const Tensor& dy, const Needs&) { return {mul(dy, sub(y, mul(y, y)))}; }
};

struct Scale {
  static constexpr const char* kName = "scale";
  double factor;

  Tensor forward(const Tensor& x) const {
    const double f = factor;
    return unary(
        x, [f]<class T>(Stream& s, View<const T> in, View<T> out) { kernels::scale<T>(s, in, f, out); });
  }
  Grads vjp(const Tensor& dy, const Needs&) const { return {scale(dy, factor)}; }
};

struct AddScaled {
  static constexpr const char* kName = "add_scaled";
  double factor;

  Tensor forward(const Tensor& a, const Tensor& b) const {
    if (a.shape() != b.shape()) fail("add_scaled: {} with {}", to_string(a.shape()), to_string(b.shape()));
    const double f = factor;
    return binary(a, b, [f]<class T>(Stream& s, View<T> x, View<T> z, View<T> y) {
      kernels::add_scaled<T>(s, x, z, f, y);
    });
  }
  Grads vjp(const Tensor& dy, const Needs& needs) const {
    return {dy, needs[1] ? scale(dy, factor) : Tensor()};
  }
};

// Elements of a tensor that follow one another in the mask, too.
struct Run {
  std::int64_t begin, end;  // in the tensor
  kernels::MaskRows rows;   // from `begin` on
};

struct Dropout {
  static constexpr const char* kName = "dropout";
  double p;
  RandomKey key;
  std::vector<Run> runs;

  Tensor drop(const Tensor& x) const {
    const Tensor in = x.as_contiguous().reshaped({-1}), y = empty_like(in);
    visit_compute(y.dtype(), [&]<class T>(std::type_identity<T>) {
      for (const Run& run : runs) {
        kernels::dropout<T>(current_stream(y.device()), in.sliced(0, run.begin, run.end).view<T>(), p, key,
                            run.rows, y.sliced(0, run.begin, run.end).view<T>());
      }
    });
    return y.reshaped(x.shape());
  }
  Tensor forward(const Tensor& x) const { return drop(x); }
  Grads vjp(const Tensor& dy, const Needs&) const { return {drop(dy)}; }
};

// x [B, T, ...]: rows count from the micro-batch's place, and where a rank holds parts of the sequences,
// tokens from theirs, columns too.
std::vector<Run> mask_runs(const Tensor& x) {
  const RandomState& state = random_state();
  const std::int64_t rows = x.dim(0), row = rows > 0 ? x.numel() / rows : 0;
  const std::int64_t length = std::max<std::int64_t>(1, x.dim(-1));
  const std::int64_t width = state.width > 0 ? state.width : length;
  const auto rows_from = [&](std::int64_t word) {
    return kernels::MaskRows{static_cast<std::uint64_t>(word / length * width + state.first_column), length,
                             width};
  };
  if (state.ranges.empty() || x.ndim() < 3) return {{0, x.numel(), rows_from(state.first_row * row)}};
  const std::int64_t token = row / x.dim(1);
  std::vector<Run> runs;
  std::int64_t follows = -1;  // the word after the last run, as if this rank had all columns
  std::int64_t at = 0;
  for (std::int64_t b = 0; b < rows; ++b) {
    for (const auto& [begin, end] : state.ranges) {
      const std::int64_t first = ((state.first_row + b) * state.tokens + begin) * token;
      const std::int64_t held = (end - begin) * token;
      if (first != follows) runs.push_back({at, at, rows_from(first)});
      at += held;
      runs.back().end = at;
      follows = first + held;
    }
  }
  if (at != x.numel()) fail("dropout: {} where the ranks' ranges hold {} elements", to_string(x.shape()), at);
  return runs;
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) { return autograd::apply(Add{}, a, b); }
Tensor sub(const Tensor& a, const Tensor& b) { return autograd::apply(Sub{}, a, b); }
Tensor mul(const Tensor& a, const Tensor& b) { return autograd::apply(Mul{}, a, b); }
Tensor div(const Tensor& a, const Tensor& b) { return autograd::apply(Div{}, a, b); }
Tensor exp(const Tensor& x) { return autograd::apply(Exp{}, x); }
Tensor log(const Tensor& x) { return autograd::apply(Log{}, x); }
Tensor sqrt(const Tensor& x) { return autograd::apply(Sqrt{}, x); }
Tensor tanh(const Tensor& x) { return autograd::apply(Tanh{}, x); }
Tensor sigmoid(const Tensor& x) { return autograd::apply(Sigmoid{}, x); }
Tensor scale(const Tensor& x, double factor) { return autograd::apply(Scale{factor}, x); }
Tensor add_scaled(const Tensor& a, const Tensor& b, double factor) {
  return autograd::apply(AddScaled{factor}, a, b);
}

Tensor dropout(const Tensor& x, double p) {
  if (p == 0) return x;
  return autograd::apply(Dropout{p, random_state().next_key(), mask_runs(x)}, x);
}

}  // namespace ridge::ops
