// Attention of many rows: scores are kept transposed, [keys, rows], so that a row is a vector lane. Then
// neither product needs a transposed key or value tile, and the softmax has no sums across lanes.
#include <vector>

#include "kernels/attention_rows.h"
#include "kernels/vector_math.h"

namespace ridge::kernels::attention_detail {
namespace {

// Scratch of one block: a tile of keys and values, one panel's scores, and every panel's q, out and softmax
// state.
template <class A>
struct Memory {
  static constexpr std::int64_t kWidth = kPanel<A>;
  std::int64_t width;  // D rounded up to whole vectors
  Scratch<A> all;
  A* keys = all.data();                // [kKeys, width]
  A* values = keys + kKeys * width;    // [kKeys, width]
  A* scores = values + kKeys * width;  // [kKeys, kWidth]
  A* panels = scores + kKeys * kWidth;

  Memory(std::int64_t head_width, std::int64_t panel_count)
      : width(head_width), all(kKeys * (2 * width + kWidth) + panel_count * panel_size()) {}
  std::int64_t panel_size() const { return (2 * width + 2) * kWidth; }
  A* q(std::int64_t p) const { return panels + p * panel_size(); }  // [width, kWidth]
  A* out(std::int64_t p) const { return q(p) + width * kWidth; }    // [width, kWidth]
  A* max(std::int64_t p) const { return out(p) + width * kWidth; }  // [kWidth]
  A* sum(std::int64_t p) const { return max(p) + kWidth; }          // [kWidth]
};

template <class T>
struct TileKernel {
  using A = acc_t<T>;
  using V = typename VectorOf<A>::type;
  static constexpr std::int64_t kWidth = kPanel<A>;

  const Problem& problem;
  const Memory<A>& memory;

  void load_panel(const View<const T>& q, const RowBlock& block, const Panel<A>& panel,
                  std::int64_t p) const {
    A* const rows = memory.out(p);
    std::fill(rows, rows + memory.width * kWidth, A(0));
    const A scale = static_cast<A>(problem.options.scale);
    for (std::int64_t r = 0; r < panel.count; ++r) {
      const T* __restrict from = row_of(q, problem, block, panel.first - block.first + r);
      A* __restrict to = rows + r * memory.width;
#pragma omp simd
      for (std::int64_t d = 0; d < problem.head_dim; ++d) to[d] = load(from[d]) * scale;
    }
    turn(rows, kWidth, memory.width, memory.q(p));
    std::fill(memory.out(p), memory.out(p) + memory.width * kWidth, A(0));
    std::fill(memory.max(p), memory.max(p) + kWidth, kNothing<A>);
    std::fill(memory.sum(p), memory.sum(p) + kWidth, A(0));
  }

  // Keys [from, to) of the tile that starts at `tile`.
  template <int kVectors>
  void step(const Panel<A>& panel, std::int64_t p, std::int64_t tile, std::int64_t from,
            std::int64_t to) const {
    A* scores = memory.scores + from * kWidth;
    const std::int64_t n = to - from;
    panel_product<A, kVectors, Lies::by_rows>(round_up(n, kTileRows), problem.head_dim,
                                              memory.keys + from * memory.width, memory.width, memory.q(p),
                                              kWidth, scores, kWidth, false);
    if (!panel.sees_all(tile + from, tile + to)) hide<kVectors>(panel, tile + from, n, scores);
    softmax<kVectors>(p, n, scores);
    panel_product<A, kVectors, Lies::by_columns>(round_up(problem.head_dim, kTileRows), n,
                                                 memory.values + from * memory.width, memory.width, scores,
                                                 kWidth, memory.out(p), kWidth, true);
  }

  template <int kVectors>
  static void hide(const Panel<A>& panel, std::int64_t first_key, std::int64_t n, A* __restrict scores) {
    for (std::int64_t j = 0; j < n; ++j) {
      const auto key = static_cast<std::int32_t>(first_key + j);
#pragma omp simd
      for (int r = 0; r < kVectors * static_cast<int>(kTileLanes<A>); ++r) {
        const bool seen = (key >= panel.begin[r]) & (key < panel.end[r]);
        scores[j * kWidth + r] = seen ? scores[j * kWidth + r] : kNothing<A>;
      }
    }
  }

  // Scores become exp(score - max); the state moves to the new maximum.
  template <int kVectors>
  void softmax(std::int64_t p, std::int64_t n, A* scores) const {
    constexpr std::int64_t kColumns = kVectors * kTileLanes<A>;
    A* __restrict max = memory.max(p);
    A* __restrict sum = memory.sum(p);
    A base[kColumns], keep[kColumns];
    const bool moved = raise_max<kVectors>(n, scores, max, base, keep);
    for (std::int64_t j = 0; j < n; ++j) {
      A* __restrict row = scores + j * kWidth;
#pragma omp simd
      for (std::int64_t r = 0; r < kColumns; ++r) row[r] = vexp(row[r] - base[r]);
    }
    if (moved) rescale<kVectors>(memory.out(p), sum, keep);
    add_columns<kVectors>(n, scores, sum);
  }

  // max over the new scores; base: what to subtract; keep: the factor on what was summed before.
  template <int kVectors>
  static bool raise_max(std::int64_t n, const A* scores, A* __restrict max, A* __restrict base,
                        A* __restrict keep) {
    V peak[kVectors];
    for (int v = 0; v < kVectors; ++v) peak[v] = at(max, v);
    for (std::int64_t j = 0; j < n; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        const V score = at(scores + j * kWidth, v);
        peak[v] = score > peak[v] ? score : peak[v];
      }
    }
    for (int v = 0; v < kVectors; ++v) put(base, v, peak[v]);
    bool moved = false;
#pragma omp simd reduction(|| : moved)
    for (std::int64_t r = 0; r < kVectors * kTileLanes<A>; ++r) {
      moved = moved || base[r] != max[r];
      const A before = max[r];
      max[r] = base[r];
      base[r] = base[r] == kNothing<A> ? A(0) : base[r];  // a row that has seen nothing: exp(-inf - 0) = 0
      keep[r] = vexp(before - base[r]);
    }
    return moved;
  }

  template <int kVectors>
  static void add_columns(std::int64_t n, const A* scores, A* sum) {
    V total[kVectors];
    for (int v = 0; v < kVectors; ++v) total[v] = at(sum, v);
    for (std::int64_t j = 0; j < n; ++j) {
      for (int v = 0; v < kVectors; ++v) total[v] += at(scores + j * kWidth, v);
    }
    for (int v = 0; v < kVectors; ++v) put(sum, v, total[v]);
  }

  template <int kVectors>
  void rescale(A* out, A* sum, const A* keep) const {
    V factor[kVectors];
    for (int v = 0; v < kVectors; ++v) factor[v] = at(keep, v);
    for (int v = 0; v < kVectors; ++v) put(sum, v, at(sum, v) * factor[v]);
    for (std::int64_t d = 0; d < memory.width; ++d) {
      for (int v = 0; v < kVectors; ++v) put(out + d * kWidth, v, at(out + d * kWidth, v) * factor[v]);
    }
  }

  static void put(A* x, int v, const V& value) { detail::store_any(x + v * kTileLanes<A>, value); }
  static V at(const A* x, int v) { return detail::load_any<V>(x + v * kTileLanes<A>); }

  void step_any(const Panel<A>& panel, std::int64_t p, std::int64_t tile, std::int64_t from,
                std::int64_t to) const {
    if (panel.columns == 3 * kTileLanes<A>) return step<3>(panel, p, tile, from, to);
    if (panel.columns == 2 * kTileLanes<A>) return step<2>(panel, p, tile, from, to);
    step<1>(panel, p, tile, from, to);
  }

  void store_panel(const Panel<A>& panel, std::int64_t p, std::int64_t first,
                   const Partial<A>& result) const {
    // q is no longer needed: its place takes the turned rows.
    turn(memory.out(p), memory.width, kWidth, memory.q(p));
    std::copy(memory.q(p), memory.q(p) + panel.count * memory.width, result.out + first * memory.width);
    std::copy(memory.max(p), memory.max(p) + panel.count, result.max + first);
    std::copy(memory.sum(p), memory.sum(p) + panel.count, result.sum + first);
  }
};

}  // namespace

template <class T>
void attend_tiles(const Problem& problem, const View<const T>& q, const View<const T>& k,
                  const View<const T>& v, const RowBlock& block, KeyRange range,
                  const Partial<acc_t<T>>& result) {
  using A = acc_t<T>;
  constexpr std::int64_t kWidth = kPanel<A>;
  const std::int64_t panel_count = (block.count + kWidth - 1) / kWidth;
  const Memory<A> memory(round_up(problem.head_dim, kTileLanes<A>), panel_count);
  const TileKernel<T> kernel{problem, memory};
  const KeyRows<const T> keys(k, block.b, block.g), values(v, block.b, block.g);
  std::vector<Panel<A>> panels;
  std::int64_t begin = range.end, end = range.begin;
  for (std::int64_t p = 0; p < panel_count; ++p) {
    panels.emplace_back(problem, block.first + p * kWidth, std::min(kWidth, block.count - p * kWidth));
    kernel.load_panel(q, block, panels.back(), p);
    begin = std::min(begin, std::max(range.begin, panels.back().any.begin));
    end = std::max(end, std::min(range.end, panels.back().any.end));
  }
  for (std::int64_t tile = begin; tile < end; tile += kKeys) {
    const std::int64_t tile_end = std::min(end, tile + kKeys);
    load_keys(keys, tile, tile_end, memory.width, memory.keys);
    load_keys(values, tile, tile_end, memory.width, memory.values);
    for (std::int64_t p = 0; p < panel_count; ++p) {
      const Panel<A>& panel = panels[static_cast<std::size_t>(p)];
      const std::int64_t from = std::max(tile, panel.any.begin) - tile,
                         to = std::min(tile_end, panel.any.end) - tile;
      if (from < to) kernel.step_any(panel, p, tile, from / kTileRows * kTileRows, to);
    }
  }
  for (std::int64_t p = 0; p < panel_count; ++p) {
    kernel.store_panel(panels[static_cast<std::size_t>(p)], p, p * kWidth, result);
  }
}

template void attend_tiles(const Problem&, const View<const float>&, const View<const float>&,
                           const View<const float>&, const RowBlock&, KeyRange, const Partial<float>&);
template void attend_tiles(const Problem&, const View<const double>&, const View<const double>&,
                           const View<const double>&, const RowBlock&, KeyRange, const Partial<double>&);
template void attend_tiles(const Problem&, const View<const bf16>&, const View<const bf16>&,
                           const View<const bf16>&, const RowBlock&, KeyRange, const Partial<float>&);

}  // namespace ridge::kernels::attention_detail
