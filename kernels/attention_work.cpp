// Shapes, masks and the work that they make.
#include "kernels/attention_rows.h"

namespace ridge::kernels {
namespace attention_detail {
namespace {

AttentionOptions resolved(std::int64_t queries, std::int64_t keys, AttentionOptions options) {
  check(options.window >= 0, "attention: the window is not negative");
  check(options.window == 0 || options.causal, "attention: a window needs a causal mask");
  if (options.q_offset == -1) options.q_offset = keys - queries;
  return options;
}

// One head of one sequence.
Problem head_problem(std::int64_t queries, std::int64_t keys, const AttentionOptions& options) {
  return {1, queries, keys, 1, 1, 1, resolved(queries, keys, options)};
}

// Bytes of the keys that some query sees, in k and in v.
template <class T>
double visible_key_bytes(const View<const T>& q, const View<const T>& k, const AttentionOptions& options) {
  const KeyRange span = head_problem(q.dim(1), k.dim(1), options).span();
  return 2.0 * static_cast<double>((span.end - span.begin) * k.dim(0) * k.dim(2) * k.dim(3)) * sizeof(T);
}

template <class T>
double lse_bytes(const View<const T>& q) {
  return static_cast<double>(q.dim(0) * q.dim(1) * q.dim(2)) * sizeof(acc_t<T>);
}

template <class T>
double multiply_adds(const View<const T>& q, const View<const T>& k, const AttentionOptions& options) {
  return visible_pairs(q.dim(1), k.dim(1), options) * static_cast<double>(q.dim(0) * q.dim(2) * q.dim(3));
}

}  // namespace

template <class T>
Problem problem_of(const View<const T>& q, const View<const T>& k, const View<const T>& v,
                   const AttentionOptions& options) {
  check(q.ndim() == 4 && k.ndim() == 4 && v.shape == k.shape,
        "attention: q is [B, T, H, D], k and v [B, S, G, D]");
  check(q.dim(0) == k.dim(0) && q.dim(3) == k.dim(3), "attention: q, k and v share B and D");
  check(k.dim(2) > 0 && q.dim(2) % k.dim(2) == 0, "attention: H is a multiple of G");
  check(k.dim(1) <= std::numeric_limits<std::int32_t>::max(), "attention: fewer than 2^31 keys");
  check(q.rows_dense() && k.rows_dense() && v.rows_dense(), "attention: the last dim must be dense");
  return {q.dim(0), q.dim(1), k.dim(1), q.dim(2), k.dim(2), q.dim(3), resolved(q.dim(1), k.dim(1), options)};
}

template Problem problem_of(const View<const float>&, const View<const float>&, const View<const float>&,
                            const AttentionOptions&);
template Problem problem_of(const View<const double>&, const View<const double>&, const View<const double>&,
                            const AttentionOptions&);
template Problem problem_of(const View<const bf16>&, const View<const bf16>&, const View<const bf16>&,
                            const AttentionOptions&);

}  // namespace attention_detail

double visible_pairs(std::int64_t queries, std::int64_t keys, const AttentionOptions& options) {
  const auto problem = attention_detail::head_problem(queries, keys, options);
  double pairs = 0;
  for (std::int64_t t = 0; t < queries; ++t) {
    const auto seen = problem.visible(t);
    pairs += static_cast<double>(seen.end - seen.begin);
  }
  return pairs;
}

template <class T>
Work attention_work(View<const T> q, View<const T> k, bool with_lse, const AttentionOptions& options) {
  using namespace attention_detail;
  return {4 * multiply_adds(q, k, options),
          2 * q.bytes() + visible_key_bytes(q, k, options) + (with_lse ? lse_bytes(q) : 0)};
}

template <class T>
Work attention_backward_work(View<const T> q, View<const T> k, const AttentionOptions& options) {
  using namespace attention_detail;
  return {10 * multiply_adds(q, k, options),
          4 * q.bytes() + visible_key_bytes(q, k, options) + 2 * k.bytes() + lse_bytes(q)};
}

template Work attention_work(View<const float>, View<const float>, bool, const AttentionOptions&);
template Work attention_work(View<const double>, View<const double>, bool, const AttentionOptions&);
template Work attention_work(View<const bf16>, View<const bf16>, bool, const AttentionOptions&);
template Work attention_backward_work(View<const float>, View<const float>, const AttentionOptions&);
template Work attention_backward_work(View<const double>, View<const double>, const AttentionOptions&);
template Work attention_backward_work(View<const bf16>, View<const bf16>, const AttentionOptions&);

}  // namespace ridge::kernels
