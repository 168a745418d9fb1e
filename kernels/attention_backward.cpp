// Backward (Dao, FlashAttention-2, 2023, section 3.1): probabilities are made again from lse, panel by panel,
// with scores transposed as in the forward tiles. One task owns the dk and dv of a key-value head, or a part
// of its rows.
#include <vector>

#include "core/base/threads.h"
#include "kernels/attention_rows.h"
#include "kernels/vector_math.h"

namespace ridge::kernels {
namespace attention_detail {
namespace {

constexpr std::int64_t kEnoughTasks = 8;  // from here on the rows of a key-value head are not cut

template <class T>
struct Operands {
  using A = acc_t<T>;
  View<const T> grad, q, k, v, o;
  View<const A> lse;
  View<T> dq, dk, dv;
};

// dk and dv of the keys that are visible at all, [keys, width].
template <class A>
struct KeyGradients {
  A* dk;
  A* dv;
};

// Scratch of one task: all its keys and values, and one panel at a time.
template <class A>
struct Memory {
  static constexpr std::int64_t kWidth = kPanel<A>;
  std::int64_t width, key_size;
  Scratch<A> all;
  A* keys = all.data();                        // [keys, width]
  A* values = keys + key_size;                 // [keys, width]
  A* q = values + key_size;                    // [kWidth, width], scaled
  A* grad = q + width * kWidth;                // [kWidth, width]
  A* dq = grad + width * kWidth;               // [kWidth, width]
  A* q_turned = dq + width * kWidth;           // [width, kWidth], scaled
  A* grad_turned = q_turned + width * kWidth;  // [width, kWidth]
  A* weights = grad_turned + width * kWidth;   // [kKeys, kWidth]
  A* dscores = weights + kKeys * kWidth;       // [kKeys, kWidth]
  A* lse = dscores + kKeys * kWidth;           // [kWidth]
  A* delta = lse + kWidth;                     // [kWidth], o . grad

  Memory(std::int64_t head_width, std::int64_t padded_keys)
      : width(head_width),
        key_size(padded_keys * head_width),
        all(2 * key_size + (5 * width + 2 * kKeys + 2) * kWidth) {}
};

template <class T>
struct Backward {
  using A = acc_t<T>;
  static constexpr std::int64_t kWidth = kPanel<A>;

  const Problem& problem;
  const Operands<T>& x;
  std::int64_t width = round_up(problem.head_dim, kTileLanes<A>);
  KeyRange span = problem.span();
  std::int64_t padded_keys = round_up(span.end - span.begin, kTileRows);
  std::int64_t panels = std::max<std::int64_t>(1, (problem.rows() + kWidth - 1) / kWidth);
  std::int64_t units = problem.batch * problem.groups;
  std::int64_t cuts = std::clamp<std::int64_t>((2 * kEnoughTasks - 1) / units, 1, panels);

  RowBlock block(std::int64_t task) const {
    const std::int64_t unit = task / cuts, cut = task % cuts;
    const std::int64_t first = panels * cut / cuts * kWidth;
    const std::int64_t end = std::min(panels * (cut + 1) / cuts * kWidth, problem.rows());
    return {unit / problem.groups, unit % problem.groups, 1, first, end - first};
  }

  void load_panel(const RowBlock& rows, const Panel<A>& panel, const Memory<A>& m) const;
  void step(const Panel<A>& panel, std::int64_t tile, std::int64_t n, const Memory<A>& m,
            const KeyGradients<A>& sums) const;
  template <int kVectors>
  void products_of_rows(std::int64_t tile, std::int64_t n, const Memory<A>& m) const;
  void differentiate(const Panel<A>& panel, std::int64_t tile, std::int64_t n, const Memory<A>& m) const;
  void store_dq(const RowBlock& rows, const Panel<A>& panel, const Memory<A>& m) const;
  void run_task(const RowBlock& rows, const Memory<A>& m, const KeyGradients<A>& sums) const;
  void store_keys(std::int64_t unit, const KeyGradients<A>& sums) const;
  void run() const;
  void run_cut() const;
};

template <class T>
void Backward<T>::load_panel(const RowBlock& rows, const Panel<A>& panel, const Memory<A>& m) const {
  std::fill(m.q, m.weights, A(0));
  std::fill(m.lse, m.delta + kWidth, A(0));
  const A scale = static_cast<A>(problem.options.scale);
  for (std::int64_t r = 0; r < panel.count; ++r) {
    const std::int64_t row = panel.first + r, i = row - rows.first;
    const T* __restrict q = row_of(x.q, problem, rows, i);
    const T* __restrict grad = row_of(x.grad, problem, rows, i);
    const T* __restrict o = row_of(x.o, problem, rows, i);
    A delta = 0;
#pragma omp simd reduction(+ : delta)
    for (std::int64_t d = 0; d < problem.head_dim; ++d) {
      m.q[r * width + d] = load(q[d]) * scale;
      m.grad[r * width + d] = load(grad[d]);
      delta += load(grad[d]) * load(o[d]);
    }
    m.delta[r] = delta;
    m.lse[r] = x.lse(rows.b, problem.head_of(rows.g, row), row % problem.queries);
  }
  turn(m.q, kWidth, width, m.q_turned);
  turn(m.grad, kWidth, width, m.grad_turned);
}

// weights = q k^T and dscores = grad v^T, transposed, for n keys from `tile` (counted from the span's begin).
template <class T>
template <int kVectors>
void Backward<T>::products_of_rows(std::int64_t tile, std::int64_t n, const Memory<A>& m) const {
  panel_product<A, kVectors, Lies::by_rows>(n, width, m.keys + tile * width, width, m.q_turned, kWidth,
                                            m.weights, kWidth, false);
  panel_product<A, kVectors, Lies::by_rows>(n, width, m.values + tile * width, width, m.grad_turned, kWidth,
                                            m.dscores, kWidth, false);
}

// weights become probabilities, dscores the gradient of the scores.
template <class T>
void Backward<T>::differentiate(const Panel<A>& panel, std::int64_t tile, std::int64_t n,
                                const Memory<A>& m) const {
  const std::int64_t first = span.begin + tile;
  const bool full = panel.sees_all(first, first + n);
  for (std::int64_t j = 0; j < n; ++j) {
    A* __restrict weights = m.weights + j * kWidth;
    A* __restrict dscores = m.dscores + j * kWidth;
    const A* __restrict lse = m.lse;
    const A* __restrict delta = m.delta;
#pragma omp simd
    for (std::int64_t r = 0; r < kWidth; ++r) {
      weights[r] = vexp(weights[r] - lse[r]);
      dscores[r] = weights[r] * (dscores[r] - delta[r]);
    }
    if (full) continue;
    const auto key = static_cast<std::int32_t>(first + j);
#pragma omp simd
    for (std::int64_t r = 0; r < kWidth; ++r) {
      const bool seen = (key >= panel.begin[r]) & (key < panel.end[r]);
      weights[r] = seen ? weights[r] : A(0);
      dscores[r] = seen ? dscores[r] : A(0);
    }
  }
}

template <class T>
void Backward<T>::step(const Panel<A>& panel, std::int64_t tile, std::int64_t n, const Memory<A>& m,
                       const KeyGradients<A>& sums) const {
  if (panel.columns == 3 * kTileLanes<A>) products_of_rows<3>(tile, n, m);
  if (panel.columns == 2 * kTileLanes<A>) products_of_rows<2>(tile, n, m);
  if (panel.columns == 1 * kTileLanes<A>) products_of_rows<1>(tile, n, m);
  differentiate(panel, tile, n, m);
  wide_product<A, Lies::by_rows>(n, width, panel.count, m.weights, kWidth, m.grad, width,
                                 sums.dv + tile * width, width, true);
  wide_product<A, Lies::by_rows>(n, width, panel.count, m.dscores, kWidth, m.q, width, sums.dk + tile * width,
                                 width, true);
  wide_product<A, Lies::by_columns>(panel.columns, width, n, m.dscores, kWidth, m.keys + tile * width, width,
                                    m.dq, width, true);
}

template <class T>
void Backward<T>::store_dq(const RowBlock& rows, const Panel<A>& panel, const Memory<A>& m) const {
  const A scale = static_cast<A>(problem.options.scale);
  for (std::int64_t r = 0; r < panel.count; ++r) {
    T* __restrict to = row_of(x.dq, problem, rows, panel.first - rows.first + r);
    const A* __restrict from = m.dq + r * width;
#pragma omp simd
    for (std::int64_t d = 0; d < problem.head_dim; ++d) store(to[d], from[d] * scale);
  }
}

template <class T>
void Backward<T>::run_task(const RowBlock& rows, const Memory<A>& m, const KeyGradients<A>& sums) const {
  std::fill(m.keys, m.keys + 2 * m.key_size, A(0));
  std::fill(sums.dk, sums.dk + m.key_size, A(0));
  std::fill(sums.dv, sums.dv + m.key_size, A(0));
  load_keys<T>({x.k, rows.b, rows.g}, span.begin, span.end, width, m.keys);
  load_keys<T>({x.v, rows.b, rows.g}, span.begin, span.end, width, m.values);
  for (std::int64_t r = 0; r < rows.count; r += kWidth) {
    const Panel<A> panel(problem, rows.first + r, std::min(kWidth, rows.count - r));
    load_panel(rows, panel, m);
    const std::int64_t begin =
        std::max<std::int64_t>(0, panel.any.begin - span.begin) / kTileRows * kTileRows;
    const std::int64_t end = panel.any.end - span.begin;
    for (std::int64_t tile = begin; tile < end; tile += kKeys) {
      step(panel, tile, std::min(kKeys, round_up(end - tile, kTileRows)), m, sums);
    }
    store_dq(rows, panel, m);
  }
}

template <class T>
void Backward<T>::store_keys(std::int64_t unit, const KeyGradients<A>& sums) const {
  const std::int64_t b = unit / problem.groups, g = unit % problem.groups;
  const KeyRows<T> all_dk(x.dk, b, g), all_dv(x.dv, b, g);
  for (std::int64_t j = 0; j < problem.keys; ++j) {
    const bool seen = j >= span.begin && j < span.end;
    const A* __restrict from_k = sums.dk + (seen ? j - span.begin : 0) * width;
    const A* __restrict from_v = sums.dv + (seen ? j - span.begin : 0) * width;
    T* __restrict dk = all_dk[j];
    T* __restrict dv = all_dv[j];
#pragma omp simd
    for (std::int64_t d = 0; d < problem.head_dim; ++d) {
      store(dk[d], seen ? from_k[d] : A(0));
      store(dv[d], seen ? from_v[d] : A(0));
    }
  }
}

template <class T>
void Backward<T>::run() const {
  if (cuts > 1) return run_cut();
  parallel_for(units, 1, [&](std::int64_t begin, std::int64_t end) {
    const Memory<A> memory(width, padded_keys);
    const Scratch<A> sums(2 * memory.key_size);
    const KeyGradients<A> gradients{sums.data(), sums.data() + memory.key_size};
    for (std::int64_t unit = begin; unit < end; ++unit) {
      run_task(block(unit), memory, gradients);
      store_keys(unit, gradients);
    }
  });
}

template <class T>
void Backward<T>::run_cut() const {
  const std::int64_t size = padded_keys * width;
  const Scratch<A> sums(units * cuts * 2 * size);
  const auto gradients = [&](std::int64_t task) {
    return KeyGradients<A>{sums.data() + 2 * size * task, sums.data() + 2 * size * task + size};
  };
  parallel_for(units * cuts, 1, [&](std::int64_t begin, std::int64_t end) {
    const Memory<A> memory(width, padded_keys);
    for (std::int64_t task = begin; task < end; ++task) run_task(block(task), memory, gradients(task));
  });
  parallel_for(units, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      A* __restrict total = gradients(unit * cuts).dk;  // dv follows dk
      for (std::int64_t cut = 1; cut < cuts; ++cut) {
        const A* __restrict part = gradients(unit * cuts + cut).dk;
#pragma omp simd
        for (std::int64_t i = 0; i < 2 * size; ++i) total[i] += part[i];
      }
      store_keys(unit, gradients(unit * cuts));
    }
  });
}

template <class T>
void check_gradients(const Operands<T>& x) {
  check(x.o.shape == x.q.shape && x.grad.shape == x.q.shape && x.dq.shape == x.q.shape,
        "attention_backward: o, do and dq are [B, T, H, D] as q");
  check(x.dk.shape == x.k.shape && x.dv.shape == x.k.shape,
        "attention_backward: dk and dv are [B, S, G, D] as k");
  check(x.lse.shape == Shape({x.q.dim(0), x.q.dim(2), x.q.dim(1)}), "attention_backward: lse is [B, H, T]");
  check(
      x.o.rows_dense() && x.grad.rows_dense() && x.dq.rows_dense() && x.dk.rows_dense() && x.dv.rows_dense(),
      "attention_backward: the last dim must be dense");
}

}  // namespace
}  // namespace attention_detail

template <class T>
void attention_backward(Stream& stream, View<const T> grad, View<const T> q, View<const T> k, View<const T> v,
                        View<const T> o, View<const acc_t<T>> lse, View<T> dq, View<T> dk, View<T> dv,
                        const AttentionOptions& options) {
  const auto problem = attention_detail::problem_of<T>(q, k, v, options);
  const attention_detail::Operands<T> operands{grad, q, k, v, o, lse, dq, dk, dv};
  attention_detail::check_gradients(operands);
  const bool fused =
      attention_detail::fused_fits<T>(problem, {q, k, v, o, grad, dq, dk, dv}) && lse.contiguous();
  const attention_detail::DeviceScratch scratch(stream,
                                                attention_detail::backward_scratch<T>(problem, fused));
  const auto on_cpu = [&] {
    if (problem.batch * problem.head_dim == 0) return;
    attention_detail::Backward<T>{problem, operands}.run();
  };
  launch(stream, "attention_backward", attention_backward_work<T>(q, k, options), on_cpu, [&] {
    cuda::attention_backward<T>(stream, problem, grad, q, k, v, o, lse, dq, dk, dv, fused, scratch.get());
  });
}

template void attention_backward(Stream&, View<const float>, View<const float>, View<const float>,
                                 View<const float>, View<const float>, View<const float>, View<float>,
                                 View<float>, View<float>, const AttentionOptions&);
template void attention_backward(Stream&, View<const double>, View<const double>, View<const double>,
                                 View<const double>, View<const double>, View<const double>, View<double>,
                                 View<double>, View<double>, const AttentionOptions&);
template void attention_backward(Stream&, View<const bf16>, View<const bf16>, View<const bf16>,
                                 View<const bf16>, View<const bf16>, View<const float>, View<bf16>,
                                 View<bf16>, View<bf16>, const AttentionOptions&);

}  // namespace ridge::kernels
