// Attention of a few rows against many keys: each key and value is read once and in the order of memory, as
// vectors along the head dim, and meets every row of its head while it is at hand.
#include "kernels/attention_keys.h"
#include "kernels/attention_rows.h"

namespace ridge::kernels::attention_detail {
namespace {

template <class T>
struct Decode {
  using A = acc_t<T>;
  const Problem& problem;
  const RowBlock& block;
  KeyRows<const T> keys, values;
  const Partial<A>& result;
  std::int64_t width = round_up(problem.head_dim, kTileLanes<A>);
  Scratch<A> memory{block.size() * (width + kKeys)};
  A* queries = memory.data();                  // [rows, width], scaled
  A* scores = queries + block.size() * width;  // [rows, kKeys]

  void load_rows(const View<const T>& q) const {
    for (std::int64_t r = 0; r < block.size(); ++r) {
      const T* from = row_of(q, problem, block, r);
      for (std::int64_t d = 0; d < problem.head_dim; ++d) {
        queries[r * width + d] = load(from[d]) * static_cast<A>(problem.options.scale);
      }
      result.max[r] = kNothing<A>;
      result.sum[r] = A(0);
    }
    std::fill(result.out, result.out + block.size() * width, A(0));
  }

  // Calls `body<kRows, kCount>(keys' rows of x, j, first row)` for keys begin + j, key by key through all
  // heads.
  template <class Body>
  void visit(const KeyRows<const T>& x, std::int64_t begin, std::int64_t n, const Body& body) const {
    for (std::int64_t j = 0; j < n; j += kTogether) {
      const std::int64_t count = std::min<std::int64_t>(kTogether, n - j);
      for (std::int64_t g = 0; g < block.groups; ++g) {
        const T* rows[kTogether];
        for (std::int64_t i = 0; i < count; ++i) {
          rows[i] = x.at(g, begin + j + i);
          prefetch_row(x.at(g, std::min(begin + j + i + kAhead, x.count - 1)), x.head_dim);
        }
        for (std::int64_t r = 0; r < block.count; r += kTogether) {
          const std::int64_t first = g * block.count + r, left = block.count - r;
          if (left >= 4) visit_rows<4>(rows, count, j, first, body);
          if (left == 3) visit_rows<3>(rows, count, j, first, body);
          if (left == 2) visit_rows<2>(rows, count, j, first, body);
          if (left == 1) visit_rows<1>(rows, count, j, first, body);
        }
      }
    }
  }
  template <int kRows, class Body>
  static void visit_rows(const T* const* rows, std::int64_t count, std::int64_t j, std::int64_t first,
                         const Body& body) {
    if (count == kTogether) return body.template operator()<kRows, kTogether>(rows, j, first);
    for (std::int64_t i = 0; i < count; ++i) body.template operator()<kRows, 1>(rows + i, j + i, first);
  }

  void step(std::int64_t tile, std::int64_t n) const {
    visit(keys, tile, n,
          [&]<int kRows, int kCount>(const T* const* rows, std::int64_t j, std::int64_t first) {
            score_keys<kRows, kCount>(rows, problem.head_dim, queries + first * width, width,
                                      scores + first * kKeys + j);
          });
    for (std::int64_t r = 0; r < block.size(); ++r) {
      soften(problem.visible(block.row_of(r)), tile, n, width, scores + r * kKeys, result.out + r * width,
             result.max[r], result.sum[r]);
    }
    visit(values, tile, n,
          [&]<int kRows, int kCount>(const T* const* rows, std::int64_t j, std::int64_t first) {
            mix_values<kRows, kCount>(rows, problem.head_dim, scores + first * kKeys + j, width,
                                      result.out + first * width);
          });
  }

  // The part of `range` that some row of the block sees.
  KeyRange seen_part(KeyRange range) const {
    KeyRange seen{range.end, range.begin};
    for (std::int64_t r = 0; r < block.count; ++r) {
      const KeyRange row = problem.visible(block.first + r);
      if (row.begin >= row.end) continue;
      seen.begin = std::min(seen.begin, std::max(range.begin, row.begin));
      seen.end = std::max(seen.end, std::min(range.end, row.end));
    }
    return seen;
  }
};

}  // namespace

template <class T>
void attend_decode(const Problem& problem, const View<const T>& q, const View<const T>& k,
                   const View<const T>& v, const RowBlock& block, KeyRange range,
                   const Partial<acc_t<T>>& result) {
  const Decode<T> decode{problem, block, {k, block.b, block.g}, {v, block.b, block.g}, result};
  decode.load_rows(q);
  const KeyRange seen = decode.seen_part(range);
  for (std::int64_t tile = seen.begin; tile < seen.end; tile += kKeys) {
    decode.step(tile, std::min(kKeys, seen.end - tile));
  }
}

template void attend_decode(const Problem&, const View<const float>&, const View<const float>&,
                            const View<const float>&, const RowBlock&, KeyRange, const Partial<float>&);
template void attend_decode(const Problem&, const View<const double>&, const View<const double>&,
                            const View<const double>&, const RowBlock&, KeyRange, const Partial<double>&);
template void attend_decode(const Problem&, const View<const bf16>&, const View<const bf16>&,
                            const View<const bf16>&, const RowBlock&, KeyRange, const Partial<float>&);

}  // namespace ridge::kernels::attention_detail
