// Forward: blocks of query rows in parallel; where there are few, the keys are cut too and the parts joined
// in order.
#include <cmath>

#include "core/base/threads.h"
#include "kernels/attention_rows.h"
#include "kernels/vector_math.h"

namespace ridge::kernels {
namespace attention_detail {
namespace {

constexpr std::int64_t kEnoughTasks = 16;     // from here on keys are not cut
constexpr std::int64_t kLeastKeysACut = 256;  // keys
constexpr std::int64_t kMostRowsTogether = 128;

template <class T>
struct Forward {
  using A = acc_t<T>;
  const Problem& problem;
  View<const T> q, k, v;
  View<T> o;
  View<A> lse;
  std::int64_t width = round_up(problem.head_dim, kTileLanes<A>);
  bool decode = problem.rows() <= kDecodeRows;
  std::int64_t together = groups_together();
  std::int64_t block_rows = std::min(problem.rows(), kBlockRows<A>);
  std::int64_t blocks = (problem.rows() + block_rows - 1) / block_rows;
  std::int64_t units = problem.batch * (problem.groups / together) * blocks;
  KeyRange span = problem.span();
  std::int64_t cuts = choose_cuts();
  std::int64_t cut_keys = round_up((span.end - span.begin + cuts - 1) / cuts, kKeys);

  // Where a token's heads lie side by side, decoding takes them together: memory is then read in order.
  std::int64_t groups_together() const {
    const bool side_by_side =
        k.strides[2] < k.strides[1] && problem.groups * problem.rows() <= kMostRowsTogether;
    return decode && side_by_side ? problem.groups : 1;
  }
  std::int64_t choose_cuts() const {
    const std::int64_t wanted = (kEnoughTasks + units - 1) / units;
    return std::clamp<std::int64_t>((span.end - span.begin) / kLeastKeysACut, 1, wanted);
  }
  RowBlock block(std::int64_t unit) const {
    const std::int64_t first = unit % blocks * block_rows, heads = unit / blocks,
                       parts = problem.groups / together;
    return {heads / parts, heads % parts * together, together, first,
            std::min(block_rows, problem.rows() - first)};
  }
  KeyRange range(std::int64_t cut) const {
    const std::int64_t begin = span.begin + cut * cut_keys;
    return {std::min(begin, span.end), std::min(begin + cut_keys, span.end)};
  }
  std::int64_t partial_rows() const { return together * block_rows; }
  std::int64_t partial_size() const { return partial_rows() * (width + 2); }
  Partial<A> partial(A* memory) const {
    return {memory, memory + partial_rows() * width, memory + partial_rows() * (width + 1)};
  }

  void attend(const RowBlock& rows, KeyRange keys, const Partial<A>& result) const {
    if (decode) {
      attend_decode<T>(problem, q, k, v, rows, keys, result);
    } else {
      attend_tiles<T>(problem, q, k, v, rows, keys, result);
    }
  }
  void finish(const RowBlock& rows, const Partial<A>& total) const;
  void join(const RowBlock& rows, const Partial<A>& total, const Partial<A>& part) const;
  void run() const;
  void run_cut() const;
};

// Normalises, and writes o and lse.
template <class T>
void Forward<T>::finish(const RowBlock& rows, const Partial<A>& total) const {
  for (std::int64_t r = 0; r < rows.size(); ++r) {
    const A factor = total.sum[r] == A(0) ? A(0) : A(1) / total.sum[r];
    const A* __restrict from = total.out + r * width;
    T* __restrict to = row_of(o, problem, rows, r);
#pragma omp simd
    for (std::int64_t d = 0; d < problem.head_dim; ++d) store(to[d], from[d] * factor);
    if (lse.ndim() == 0) continue;
    const std::int64_t row = rows.row_of(r), head = problem.head_of(rows.group_of(r), row);
    lse(rows.b, head, row % problem.queries) = total.max[r] + std::log(total.sum[r]);
  }
}

// Adds `part` to `total`, both brought to the larger maximum.
template <class T>
void Forward<T>::join(const RowBlock& rows, const Partial<A>& total, const Partial<A>& part) const {
  for (std::int64_t r = 0; r < rows.size(); ++r) {
    if (part.sum[r] == A(0)) continue;
    const A max = part.max[r] > total.max[r] ? part.max[r] : total.max[r];
    const A keep = vexp(total.max[r] - max), take = vexp(part.max[r] - max);
    A* __restrict out = total.out + r * width;
    const A* __restrict other = part.out + r * width;
#pragma omp simd
    for (std::int64_t d = 0; d < width; ++d) out[d] = out[d] * keep + other[d] * take;
    total.sum[r] = total.sum[r] * keep + part.sum[r] * take;
    total.max[r] = max;
  }
}

template <class T>
void Forward<T>::run() const {
  if (cuts > 1) return run_cut();
  parallel_for(units, 1, [&](std::int64_t begin, std::int64_t end) {
    const Scratch<A> memory(partial_size());
    for (std::int64_t unit = begin; unit < end; ++unit) {
      attend(block(unit), span, partial(memory.data()));
      finish(block(unit), partial(memory.data()));
    }
  });
}

template <class T>
void Forward<T>::run_cut() const {
  const Scratch<A> memory(units * cuts * partial_size());
  const auto part = [&](std::int64_t task) { return partial(memory.data() + task * partial_size()); };
  parallel_for(units * cuts, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task)
      attend(block(task / cuts), range(task % cuts), part(task));
  });
  parallel_for(units, 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      for (std::int64_t cut = 1; cut < cuts; ++cut)
        join(block(unit), part(unit * cuts), part(unit * cuts + cut));
      finish(block(unit), part(unit * cuts));
    }
  });
}

}  // namespace
}  // namespace attention_detail

template <class T>
void attention(Stream& stream, View<const T> q, View<const T> k, View<const T> v, View<T> o,
               View<acc_t<T>> lse, const AttentionOptions& options) {
  const auto problem = attention_detail::problem_of<T>(q, k, v, options);
  check(o.shape == q.shape && o.rows_dense(), "attention: o is [B, T, H, D] with a dense last dim");
  check(lse.ndim() == 0 || lse.shape == Shape({q.dim(0), q.dim(2), q.dim(1)}), "attention: lse is [B, H, T]");
  const bool pays = lse.ndim() != 0 ? lse.contiguous() : attention_detail::comes_again(problem);
  const bool fused = pays && attention_detail::fused_fits<T>(problem, {q, k, v, o});
  const attention_detail::DeviceScratch scratch(stream, attention_detail::forward_scratch<T>(problem, fused));
  const auto on_cpu = [&] {
    if (problem.batch * problem.groups * problem.rows() == 0) return;
    attention_detail::Forward<T>{problem, q, k, v, o, lse}.run();
  };
  launch(stream, "attention", attention_work<T>(q, k, lse.ndim() != 0, options), on_cpu,
         [&] { cuda::attention<T>(stream, problem, q, k, v, o, lse, fused, scratch.get()); });
}

template void attention(Stream&, View<const float>, View<const float>, View<const float>, View<float>,
                        View<float>, const AttentionOptions&);
template void attention(Stream&, View<const double>, View<const double>, View<const double>, View<double>,
                        View<double>, const AttentionOptions&);
template void attention(Stream&, View<const bf16>, View<const bf16>, View<const bf16>, View<bf16>,
                        View<float>, const AttentionOptions&);

}  // namespace ridge::kernels
