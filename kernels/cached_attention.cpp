// B sequences, T queries of each, S capacity, H query heads, G key-value heads, D head dim.
//
// A unit is a few queries of a sequence, all their heads, against one part of the keys: memory is read once
// and in order. Row r of key-value head g is query r / (H / G) and query head g H / G + r % (H / G).
#include "kernels/cached_attention.h"

#include <algorithm>
#include <vector>

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/attention_rows.h"
#include "kernels/cached_attention_cut.h"
#include "kernels/kv_codes.h"

namespace ridge::kernels {

namespace {

float value_of(const KvInt8& x) { return int8_value(x.bits); }
// A code's bits are those of the number's f32 but for the sign's place and 2^120; NaN's scale is NaN already.
float value_of(const KvFp8& x) {
  const auto wide = static_cast<std::uint32_t>(static_cast<std::int8_t>(x.bits));
  return std::bit_cast<float>((wide << 20) & 0x87F00000u) * 0x1p120f;
}

using attention_detail::KeyRange, attention_detail::kKeys, attention_detail::kTogether,
    attention_detail::kAhead, attention_detail::kNothing, attention_detail::Scratch;
using namespace cached_detail;

constexpr std::int64_t kRowsTogether = 32;  // query rows of a key-value head and unit, where there are many

struct Extents {
  std::int64_t batch, queries, heads, groups, head_dim;
  std::int64_t share = heads / groups;
  std::int64_t width = round_up(head_dim, kTileLanes<float>);
  std::int64_t block = std::clamp<std::int64_t>(kRowsTogether / share, 1, queries);  // queries a unit
  std::int64_t blocks = (queries + block - 1) / block;
};

// Queries first .. first + count - 1 of sequence b, against keys [begin, end).
struct Unit {
  std::int64_t b, first, count, begin, end;
};

// What a unit has of its rows [G, count, share].
struct Sums {
  float *out, *max, *sum;  // [rows, width], [rows], [rows]

  Sums(float* memory, std::int64_t rows, std::int64_t width)
      : out(memory), max(memory + rows * width), sum(max + rows) {}
  static std::int64_t floats(std::int64_t rows, std::int64_t width) { return rows * (width + 2); }
};

template <class T, class K>
struct Attend {
  using Element = std::conditional_t<kKvScaled<K>, float, K>;  // what products are made of
  const Extents& n;
  const View<const T>& q;
  const KvView& cache;
  const View<const std::int32_t>& positions;
  const CachedAttentionOptions& options;

  // Row i of all: its query and head.
  std::int64_t query_of(const Unit& u, std::int64_t i) const { return u.first + i / n.share % u.count; }
  std::int64_t head_of(const Unit& u, std::int64_t i) const {
    return i / (u.count * n.share) * n.share + i % n.share;
  }
  KeyRange seen(const Unit& u, std::int64_t i) const {
    const std::int64_t position = positions(u.b, query_of(u, i));
    if (position < 0) return {};
    return {first_key(position, options.window), position + 1};
  }

  void start(const Unit& u, std::int64_t rows, float* queries, const Sums& sums) const {
    for (std::int64_t i = 0; i < rows; ++i) {
      const T* from = &q(u.b, query_of(u, i), head_of(u, i), 0);
      float* to = queries + i * n.width;
      for (std::int64_t d = 0; d < n.head_dim; ++d)
        to[d] = kernels::load(from[d]) * static_cast<float>(options.scale);
      sums.max[i] = kNothing<float>;
      sums.sum[i] = 0;
    }
    std::fill(sums.out, sums.out + rows * n.width, 0.0f);
  }

  std::int64_t slot(const Unit& u, std::int64_t key) const { return (u.b * cache.capacity + key) * n.groups; }

  // A row of the cache as products take it; `room` is for D floats. Asks for the row `ahead`, too.
  const Element* row_at(const K* data, std::int64_t row, std::int64_t ahead, float* room) const {
    attention_detail::prefetch_row(data + ahead * n.head_dim, n.head_dim);
    const K* from = data + row * n.head_dim;
    if constexpr (kKvScaled<K>) {
#pragma omp simd
      for (std::int64_t d = 0; d < n.head_dim; ++d) room[d] = value_of(from[d]);
      return room;
    } else {
      return from;
    }
  }

  // Calls `body<kRows, kCount>(rows of `data`, j, first row)` for keys begin + j, key by key through all
  // heads.
  template <class Body>
  void visit(const Unit& u, const void* data, std::int64_t begin, std::int64_t count, float* room,
             const Body& body) const {
    const std::int64_t rows = u.count * n.share;
    for (std::int64_t j = 0; j < count; j += kTogether) {
      const std::int64_t some = std::min<std::int64_t>(kTogether, count - j);
      for (std::int64_t g = 0; g < n.groups; ++g) {
        const Element* keys[kTogether] = {};
        for (std::int64_t i = 0; i < some; ++i) {
          const std::int64_t key = begin + j + i, ahead = std::min(key + kAhead, u.end - 1);
          keys[i] =
              row_at(static_cast<const K*>(data), slot(u, key) + g, slot(u, ahead) + g, room + i * n.width);
        }
        for (std::int64_t r = 0; r < rows; r += kTogether) {
          const std::int64_t first = g * rows + r, left = rows - r;
          if (left >= 4) visit_rows<4>(keys, some, j, first, body);
          if (left == 3) visit_rows<3>(keys, some, j, first, body);
          if (left == 2) visit_rows<2>(keys, some, j, first, body);
          if (left == 1) visit_rows<1>(keys, some, j, first, body);
        }
      }
    }
  }
  template <int kRows, class Body>
  static void visit_rows(const Element* const* keys, std::int64_t some, std::int64_t j, std::int64_t first,
                         const Body& body) {
    if (some == kTogether) return body.template operator()<kRows, kTogether>(keys, j, first);
    for (std::int64_t i = 0; i < some; ++i) body.template operator()<kRows, 1>(keys + i, j + i, first);
  }

  // row[j] *= scale of key begin + j, for every row.
  void scale(const Unit& u, const float* scales, std::int64_t begin, std::int64_t count, std::int64_t rows,
             float* weights) const {
    if constexpr (!kKvScaled<K>) return;
    const std::int64_t group_rows = u.count * n.share;
    for (std::int64_t g = 0; g < n.groups; ++g) {
      float factor[kKeys];
      for (std::int64_t j = 0; j < count; ++j) factor[j] = scales[slot(u, begin + j) + g];
      for (std::int64_t r = g * group_rows; r < std::min(rows, (g + 1) * group_rows); ++r) {
        float* row = weights + r * kKeys;
#pragma omp simd
        for (std::int64_t j = 0; j < count; ++j) row[j] *= factor[j];
      }
    }
  }

  // Of a unit's thread.
  struct Room {
    float *queries, *scores, *keys;  // [rows, width] scaled; [rows, kKeys]; [kTogether, width]
  };

  void step(const Unit& u, std::int64_t tile, std::int64_t rows, const Room& room, const Sums& sums) const {
    const std::int64_t count = std::min(kKeys, u.end - tile);
    visit(u, cache.keys, tile, count, room.keys,
          [&]<int kRows, int kCount>(const Element* const* keys, std::int64_t j, std::int64_t first) {
            attention_detail::score_keys<kRows, kCount>(keys, n.head_dim, room.queries + first * n.width,
                                                        n.width, room.scores + first * kKeys + j);
          });
    scale(u, cache.key_scales, tile, count, rows, room.scores);
    for (std::int64_t i = 0; i < rows; ++i) {
      attention_detail::soften(seen(u, i), tile, count, n.width, room.scores + i * kKeys,
                               sums.out + i * n.width, sums.max[i], sums.sum[i]);
    }
    scale(u, cache.value_scales, tile, count, rows, room.scores);
    visit(u, cache.values, tile, count, room.keys,
          [&]<int kRows, int kCount>(const Element* const* values, std::int64_t j, std::int64_t first) {
            attention_detail::mix_values<kRows, kCount>(values, n.head_dim, room.scores + first * kKeys + j,
                                                        n.width, sums.out + first * n.width);
          });
  }

  void run(const Unit& u, const Sums& sums) const {
    const std::int64_t rows = n.groups * u.count * n.share;
    const Scratch<float> memory(rows * (n.width + kKeys) + kTogether * n.width);
    const Room room{memory.data(), memory.data() + rows * n.width, memory.data() + rows * (n.width + kKeys)};
    start(u, rows, room.queries, sums);
    for (std::int64_t tile = u.begin; tile < u.end; tile += kKeys) step(u, tile, rows, room, sums);
  }
};

// Adds `part` to `total`, both brought to the larger maximum.
void join(const Sums& total, const Sums& part, std::int64_t rows, std::int64_t width) {
  for (std::int64_t r = 0; r < rows; ++r) {
    if (part.max[r] == kNothing<float>) continue;
    const float max = std::max(part.max[r], total.max[r]);
    const float keep = vexp(total.max[r] - max), take = vexp(part.max[r] - max);
    float* __restrict out = total.out + r * width;
    const float* __restrict other = part.out + r * width;
#pragma omp simd
    for (std::int64_t d = 0; d < width; ++d) out[d] = out[d] * keep + other[d] * take;
    total.sum[r] = total.sum[r] * keep + part.sum[r] * take;
    total.max[r] = max;
  }
}

// The units of all sequences; those of one block of queries follow one another, in the order of keys.
struct Plan {
  std::vector<Unit> units;
  std::vector<std::size_t> blocks;  // where each block's begin, and the end

  Plan(const Extents& n, const View<const std::int32_t>& positions, std::int64_t capacity,
       std::int64_t window) {
    for (std::int64_t b = 0; b < n.batch; ++b) {
      for (std::int64_t first = 0; first < n.queries; first += n.block)
        add(b, first, std::min(n.block, n.queries - first), positions, capacity, window);
    }
    blocks.push_back(units.size());
  }
  void add(std::int64_t b, std::int64_t first, std::int64_t count, const View<const std::int32_t>& positions,
           std::int64_t capacity, std::int64_t window) {
    KeyRange range{capacity, 0};
    for (std::int64_t t = first; t < first + count; ++t) {
      const std::int64_t p = positions(b, t);
      if (p < -1 || p >= capacity) fail("cached_attention: position {} in a cache of {} tokens", p, capacity);
      if (p == -1) continue;
      range = {std::min(range.begin, first_key(p, window)), std::max(range.end, p + 1)};
    }
    const KeyCut cut(static_cast<std::int32_t>(range.begin), static_cast<std::int32_t>(range.end), kCpuCut);
    blocks.push_back(units.size());
    for (std::int32_t i = 0; i < std::max(1, cut.parts); ++i)
      units.push_back({b, first, count, cut.part_begin(i), cut.part_end(i)});
  }
};

template <class T>
void finish(const Extents& n, const Unit& u, const Sums& sums, const View<T>& o) {
  const std::int64_t rows = n.groups * u.count * n.share;
  for (std::int64_t i = 0; i < rows; ++i) {
    const float factor = sums.sum[i] == 0 ? 0.0f : 1 / sums.sum[i];
    const float* from = sums.out + i * n.width;
    const std::int64_t head = i / (u.count * n.share) * n.share + i % n.share;
    T* to = &o(u.b, u.first + i / n.share % u.count, head, 0);
#pragma omp simd
    for (std::int64_t d = 0; d < n.head_dim; ++d) store(to[d], from[d] * factor);
  }
}

template <class T>
void attend_on_cpu(const Extents& n, const View<const T>& q, const KvView& cache,
                   const View<const std::int32_t>& positions, const View<T>& o,
                   const CachedAttentionOptions& options) {
  const Plan plan(n, positions, cache.capacity, options.window);
  const std::int64_t rows = n.groups * n.block * n.share, each = Sums::floats(rows, n.width);
  const auto units = static_cast<std::int64_t>(plan.units.size());
  const Scratch<float> memory(units * each);
  const auto sums_of = [&](std::size_t i) {
    return Sums(memory.data() + static_cast<std::int64_t>(i) * each, rows, n.width);
  };
  visit_kv(cache.format, [&]<class K>(std::type_identity<K>) {
    const Attend<T, K> attend{n, q, cache, positions, options};
    parallel_for(units, 1, [&](std::int64_t begin, std::int64_t end) {
      for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
        attend.run(plan.units[i], sums_of(i));
    });
  });
  parallel_for(
      static_cast<std::int64_t>(plan.blocks.size()) - 1, 4, [&](std::int64_t begin, std::int64_t end) {
        for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
          const std::size_t first = plan.blocks[i];
          for (std::size_t part = first + 1; part < plan.blocks[i + 1]; ++part)
            join(sums_of(first), sums_of(part), n.groups * plan.units[first].count * n.share, n.width);
          finish(n, plan.units[first], sums_of(first), o);
        }
      });
}

template <class T>
Extents checked(const View<const T>& q, const KvView& cache, const View<const std::int32_t>& positions,
                const View<T>& o, const CachedAttentionOptions& options) {
  check(q.ndim() == 4 && o.shape == q.shape && q.rows_dense() && o.rows_dense(),
        "cached_attention: q and o are [B, T, H, D] with a dense last dim");
  check(positions.shape == Shape({q.dim(0), q.dim(1)}) && positions.contiguous(),
        "cached_attention: positions are dense [B, T]");
  check(cache.batch == q.dim(0) && cache.head_dim == q.dim(3) && cache.kv_heads > 0 &&
            q.dim(2) % cache.kv_heads == 0,
        "cached_attention: a cache of these sequences, and query heads a multiple of its heads");
  check(cache.capacity <= kMostKeys, "cached_attention: a cache of at most 2^28 tokens");
  check(options.window >= 0 && options.keys >= 0 && options.keys <= cache.capacity,
        "cached_attention: keys within the capacity");
  return {q.dim(0), q.dim(1), q.dim(2), cache.kv_heads, q.dim(3)};
}

// 4 D flops a query head and key; q, o and the keys that may be visible once.
template <class T>
Work work_of(const Extents& n, const KvView& cache, const CachedAttentionOptions& options) {
  const std::int64_t limit = options.keys > 0 ? options.keys : cache.capacity,
                     keys = options.window > 0 ? std::min(limit, options.window) : limit,
                     all_keys = options.window > 0 ? std::min(limit, options.window + n.queries) : limit;
  const double rows = static_cast<double>(n.batch * n.queries * n.heads), D = static_cast<double>(n.head_dim);
  return {4 * rows * D * static_cast<double>(keys),
          2 * rows * D * sizeof(T) +
              static_cast<double>(n.batch * all_keys * kv_bytes(cache.format, n.groups, n.head_dim))};
}

}  // namespace

std::int64_t cached_attention_scratch(std::int64_t batch, std::int64_t queries, std::int64_t heads,
                                      std::int64_t kv_heads, std::int64_t head_dim) {
  // Several parts a block of rows: at most kGpuUnits of them a sequence, with sums, maximum and sum of
  // weights.
  const std::int64_t all = heads / kv_heads * queries,
                     rows = all < kGpuWideRows ? std::min<std::int64_t>(kGpuRows, all) : kGpuWideRows;
  return kGpuCounters + batch * kGpuUnits * rows * (head_dim + 2);
}

template <class T>
void cached_attention(Stream& stream, View<const T> q, const KvView& cache,
                      View<const std::int32_t> positions, View<T> o, const CachedAttentionOptions& options,
                      View<float> scratch) {
  const Extents n = checked(q, cache, positions, o, options);
  CachedAttentionOptions resolved = options;
  if (resolved.keys == 0) resolved.keys = cache.capacity;
  check(scratch.contiguous() &&
            scratch.numel() >= cached_attention_scratch(n.batch, n.queries, n.heads, n.groups, n.head_dim),
        "cached_attention: scratch as cached_attention_scratch says");
  if (o.numel() == 0) return;
  launch(
      stream, "cached_attention", work_of<T>(n, cache, resolved),
      [&] { attend_on_cpu<T>(n, q, cache, positions, o, resolved); },
      [&] { cuda::cached_attention<T>(stream, q, cache, positions, o, resolved, scratch); });
}

template void cached_attention(Stream&, View<const float>, const KvView&, View<const std::int32_t>,
                               View<float>, const CachedAttentionOptions&, View<float>);
template void cached_attention(Stream&, View<const bf16>, const KvView&, View<const std::int32_t>, View<bf16>,
                               const CachedAttentionOptions&, View<float>);

}  // namespace ridge::kernels
