// What the attention kernels share: the query rows of one key-value head, which keys each sees, scratch
// memory.
//
// The (H / G) * T queries that read one key-value head are numbered r = (query head in the group) * T + t,
// and cut into blocks; a block does not care where one head ends and the next begins.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/base/dtype.h"
#include "core/base/memory.h"
#include "core/base/view.h"
#include "kernels/attention_keys.h"
#include "kernels/attention_problem.h"
#include "kernels/element.h"
#include "kernels/register_tile.h"

namespace ridge::kernels::attention_detail {

/// Rows [first, first + count) of each of `groups` key-value heads from g on, of one batch entry.
struct RowBlock {
  std::int64_t b, g, groups, first, count;
  std::int64_t size() const { return groups * count; }
  std::int64_t group_of(std::int64_t i) const { return g + i / count; }
  std::int64_t row_of(std::int64_t i) const { return first + i % count; }
};

/// Row i of the block in a [B, T, H, D] view.
template <class T>
T* row_of(const View<T>& x_BTHD, const Problem& problem, const RowBlock& block, std::int64_t i) {
  const std::int64_t row = block.row_of(i);
  return &x_BTHD(block.b, row % problem.queries, problem.head_of(block.group_of(i), row), 0);
}

/// 64-byte aligned scratch from the pool, counted as workspace.
template <class A>
class Scratch {
 public:
  explicit Scratch(std::int64_t count) : storage_(make(count)) {}
  A* data() const { return static_cast<A*>(storage_.data()); }

 private:
  static Storage make(std::int64_t count) {
    const PurposeScope scope(Purpose::workspace);
    return Storage(Device::cpu, std::max<std::int64_t>(1, count) * static_cast<std::int64_t>(sizeof(A)));
  }
  Storage storage_;
};

/// The [S, D] rows of one batch entry and key-value head, and of those that follow.
template <class T>
struct KeyRows {
  T* data;
  std::int64_t stride;    // elements from key to key
  std::int64_t to_next;   // elements from head to head
  std::int64_t count;     // S
  std::int64_t head_dim;  // D

  KeyRows(const View<T>& x_BSGD, std::int64_t b, std::int64_t g)
      : data(x_BSGD.data + b * x_BSGD.strides[0] + g * x_BSGD.strides[2]),
        stride(x_BSGD.strides[1]),
        to_next(x_BSGD.strides[2]),
        count(x_BSGD.dim(1)),
        head_dim(x_BSGD.dim(3)) {}
  T* operator[](std::int64_t key) const { return data + key * stride; }
  T* at(std::int64_t head, std::int64_t key) const { return data + head * to_next + key * stride; }
};

/// Copies keys [begin, end) into tile[n, width], widened to A; zeros beyond D.
template <class T, class A>
void load_keys(const KeyRows<const T>& x, std::int64_t begin, std::int64_t end, std::int64_t width, A* tile) {
  const std::int64_t head_dim = x.head_dim;
  for (std::int64_t j = begin; j < end; ++j) {
    const T* __restrict from = x[j];
    A* __restrict to = tile + (j - begin) * width;
#pragma omp simd
    for (std::int64_t d = 0; d < head_dim; ++d) to[d] = load(from[d]);
    for (std::int64_t d = head_dim; d < width; ++d) to[d] = A(0);
  }
}

/// Up to kPanel<A> rows side by side, one a vector lane, with what each sees.
template <class A>
struct Panel {
  static constexpr std::int64_t kWidth = kPanel<A>;
  std::int64_t first = 0, count = 0;
  std::int64_t columns = 0;                           // count rounded up to whole vectors
  std::int32_t begin[kWidth] = {}, end[kWidth] = {};  // keys; lanes beyond count repeat the last row's
  KeyRange any, all;                                  // keys that some row sees; that every row sees

  Panel(const Problem& problem, std::int64_t first_row, std::int64_t rows) : first(first_row), count(rows) {
    columns = round_up(count, kTileLanes<A>);
    any = {std::numeric_limits<std::int64_t>::max(), 0};
    all = {0, std::numeric_limits<std::int64_t>::max()};
    for (std::int64_t r = 0; r < columns; ++r) {
      const KeyRange seen = problem.visible(first + std::min(r, count - 1));
      begin[r] = static_cast<std::int32_t>(seen.begin);
      end[r] = static_cast<std::int32_t>(seen.end);
      all = {std::max(all.begin, seen.begin), std::min(all.end, seen.end)};
      if (seen.begin < seen.end) any = {std::min(any.begin, seen.begin), std::max(any.end, seen.end)};
    }
  }
  bool sees_all(std::int64_t key_begin, std::int64_t key_end) const {
    return all.begin <= key_begin && key_end <= all.end;
  }
};

/// What some of the keys contribute to some rows: the sums of exp(score - max) v and of exp(score - max).
template <class A>
struct Partial {
  A* out;  // [rows, width]
  A* max;  // [rows]; -inf where no key is visible
  A* sum;  // [rows]
};

/// Rows of one block: more reuse of a key tile with more, less scratch and more parallelism with fewer.
template <class A>
inline constexpr std::int64_t kBlockRows = 4 * kPanel<A>;
/// Up to this many rows a key-value head, dot products along the head dim beat tiles of rows.
inline constexpr std::int64_t kDecodeRows = 8;

/// The block's rows, all of one key-value head, against the keys in `range`.
template <class T>
void attend_tiles(const Problem& problem, const View<const T>& q_BTHD, const View<const T>& k_BSGD,
                  const View<const T>& v_BSGD, const RowBlock& block, KeyRange range,
                  const Partial<acc_t<T>>& result);
/// The same for at most kDecodeRows rows of any number of key-value heads: keys and values are read once.
template <class T>
void attend_decode(const Problem& problem, const View<const T>& q_BTHD, const View<const T>& k_BSGD,
                   const View<const T>& v_BSGD, const RowBlock& block, KeyRange range,
                   const Partial<acc_t<T>>& result);

}  // namespace ridge::kernels::attention_detail
