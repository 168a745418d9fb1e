// B batch, T tokens held here, N ranks, W features of the heads of one rank.
#include "parallel/ulysses_attention.h"

#include <algorithm>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/copy.h"
#include "kernels/elementwise.h"
#include "parallel/context_parallel.h"
#include "parallel/tensor_span.h"

namespace ridge::parallel {
namespace {

using autograd::Grads;
using autograd::Needs;

template <class T>
void move(const View<T>& from, const View<T>& to, Device device) {
  kernels::copy<T>(current_stream(device), from, to);
}

Tensor empty(const Shape& shape, const Tensor& like) {
  return Tensor::empty(shape, like.dtype(), like.device());
}

// Piece r of the result [N, ...] is this rank's piece on rank r.
Tensor all_to_all(Communicator& ranks, const Tensor& pieces) {
  const Tensor out = empty(pieces.shape(), pieces);
  visit_compute(pieces.dtype(), [&]<class T>(std::type_identity<T>) {
    ranks.all_to_all<T>(span_of<T>(pieces), span_of<T>(out));
  });
  return out;
}

// Calls move(part of pieces [N, B, T, W], part of the whole [B, N T, W]) for all chunks.
template <class Move>
void visit_chunks(const Tensor& pieces, const Tensor& whole, const Move& move_part) {
  const auto ranks = static_cast<int>(pieces.dim(0));
  const std::int64_t T = pieces.dim(2);
  for (int r = 0; r < ranks; ++r) {
    const Tensor piece = pieces.sliced(0, r, r + 1).reshaped(Shape{pieces.dim(1), T, pieces.dim(3)});
    std::int64_t at = 0;
    for (const auto& [begin, end] : zigzag_ranges(T * ranks, ranks, r)) {
      move_part(piece.sliced(1, at, at + end - begin), whole.sliced(1, begin, end));
      at += end - begin;
    }
  }
}

void copy_tensor(const Tensor& from, const Tensor& to) {
  visit_compute(from.dtype(), [&]<class T>(std::type_identity<T>) {
    move<T>(from.view<T>(), to.view<T>(), from.device());
  });
}

// Pieces [N, B, T, W] for each rank's heads to the whole sequence for this rank's: [B, N T, W].
Tensor gather_sequence(Communicator& ranks, const Tensor& pieces) {
  const Tensor arrived = all_to_all(ranks, pieces);
  const Tensor whole = empty({pieces.dim(1), pieces.dim(0) * pieces.dim(2), pieces.dim(3)}, pieces);
  visit_chunks(arrived, whole, copy_tensor);
  return whole;
}

// And back.
Tensor scatter_sequence(Communicator& ranks, const Tensor& whole) {
  const std::int64_t N = ranks.size();
  const Tensor pieces = empty({N, whole.dim(0), whole.dim(1) / N, whole.dim(2)}, whole);
  visit_chunks(pieces, whole, [](const Tensor& piece, const Tensor& part) { copy_tensor(part, piece); });
  return all_to_all(ranks, pieces);
}

// Which heads go where: H / N query heads to each rank; G / N key-value heads, or one that some share.
struct Deal {
  std::int64_t ranks;
  ops::HeadCounts n;
  std::int64_t sharing = std::max<std::int64_t>(1, ranks / n.kv_heads);  // ranks of one key-value head
  ops::HeadCounts mine = {n.heads / ranks, std::max<std::int64_t>(1, n.kv_heads / ranks), n.head_dim};

  std::int64_t width() const { return (mine.heads + 2 * mine.kv_heads) * n.head_dim; }

  // Query heads [N, B, T, H / N D] of heads side by side [B, T, ...], and of pieces [N, B, T, W].
  template <class T>
  View<T> side_queries(const Tensor& x) const {
    const std::int64_t C = x.dim(2), t = x.dim(1), w = mine.heads * n.head_dim;
    return {x.view<T>().data, {ranks, x.dim(0), t, w}, {w, t * C, C, 1}};
  }
  template <class T>
  View<T> piece_queries(const Tensor& x) const {
    const std::int64_t C = x.dim(3), t = x.dim(2);
    const Strides strides{x.dim(1) * t * C, t * C, C, 1};
    return {x.view<T>().data, {ranks, x.dim(1), t, mine.heads * n.head_dim}, strides};
  }

  // Keys and values [2, owners, B, T, G / N D] for the ranks with place `copy` among those that share.
  template <class T>
  View<T> side_keys(const Tensor& x) const {
    const std::int64_t C = x.dim(2), t = x.dim(1), w = mine.kv_heads * n.head_dim;
    return {at(x.view<T>().data, n.heads * n.head_dim),
            {2, ranks / sharing, x.dim(0), t, w},
            {n.kv_heads * n.head_dim, w, t * C, C, 1}};
  }
  template <class T>
  View<T> piece_keys(const Tensor& x, std::int64_t copy) const {
    const std::int64_t C = x.dim(3), t = x.dim(2), w = mine.kv_heads * n.head_dim, piece = x.dim(1) * t * C;
    return {at(x.view<T>().data, copy * piece + mine.heads * n.head_dim),
            {2, ranks / sharing, x.dim(1), t, w},
            {w, sharing * piece, t * C, C, 1}};
  }

 private:
  template <class T>
  static T* at(T* data, std::int64_t offset) {
    return data == nullptr ? nullptr : data + offset;
  }
};

// qkv [B, T, (H + 2G) D] to [B, N T, W].
struct SequenceToHeads {
  static constexpr const char* kName = "sequence_to_heads";
  Communicator* ranks;
  Deal deal;

  Tensor forward(const Tensor& qkv) {
    const Tensor pieces = empty({deal.ranks, qkv.dim(0), qkv.dim(1), deal.width()}, qkv);
    visit_compute(qkv.dtype(), [&]<class T>(std::type_identity<T>) {
      move<T>(deal.side_queries<T>(qkv), deal.piece_queries<T>(pieces), qkv.device());
      for (std::int64_t copy = 0; copy < deal.sharing; ++copy)
        move<T>(deal.side_keys<T>(qkv), deal.piece_keys<T>(pieces, copy), qkv.device());
    });
    return gather_sequence(*ranks, pieces);
  }

  Grads vjp(const Tensor& dy, const Needs&) {
    const Tensor pieces = scatter_sequence(*ranks, dy.as_contiguous());
    const std::int64_t C = (deal.n.heads + 2 * deal.n.kv_heads) * deal.n.head_dim;
    const Tensor d = empty({pieces.dim(1), pieces.dim(2), C}, dy);
    visit_compute(dy.dtype(), [&]<class T>(std::type_identity<T>) {
      move<T>(deal.piece_queries<T>(pieces), deal.side_queries<T>(d), d.device());
      if (deal.sharing == 1) {
        move<T>(deal.piece_keys<T>(pieces, 0), deal.side_keys<T>(d), d.device());
      } else {
        sum_copies<T>(pieces, deal.side_keys<T>(d));
      }
    });
    return {d};
  }

 private:
  // Gradients of shared key-value heads, in the order of ranks.
  template <class T>
  void sum_copies(const Tensor& pieces, const View<T>& to) const {
    using A = acc_t<T>;
    Stream& stream = current_stream(pieces.device());
    const Tensor sum = Tensor::empty(to.shape, dtype_of<A>, pieces.device());
    kernels::convert<T, A>(stream, deal.piece_keys<T>(pieces, 0), sum.view<A>());
    for (std::int64_t copy = 1; copy < deal.sharing; ++copy)
      kernels::accumulate<T, A>(stream, deal.piece_keys<T>(pieces, copy), sum.view<A>());
    kernels::convert<A, T>(stream, sum.view<A>(), to);
  }
};

// o [B, N T, H / N D] to [B, T, H D].
struct HeadsToSequence {
  static constexpr const char* kName = "heads_to_sequence";
  Communicator* ranks;
  Deal deal;

  Tensor forward(const Tensor& o) {
    const Tensor pieces = scatter_sequence(*ranks, o.as_contiguous());
    const Tensor y = empty({pieces.dim(1), pieces.dim(2), deal.ranks * pieces.dim(3)}, o);
    visit_compute(o.dtype(), [&]<class T>(std::type_identity<T>) {
      move<T>(pieces.view<T>(), deal.side_queries<T>(y), o.device());
    });
    return y;
  }

  Grads vjp(const Tensor& dy, const Needs&) {
    const Tensor d = dy.as_contiguous();
    const Tensor pieces = empty({deal.ranks, d.dim(0), d.dim(1), d.dim(2) / deal.ranks}, d);
    visit_compute(d.dtype(), [&]<class T>(std::type_identity<T>) {
      move<T>(deal.side_queries<T>(d), pieces.view<T>(), d.device());
    });
    return {gather_sequence(*ranks, pieces)};
  }
};

}  // namespace

Tensor ulysses_attention(Communicator& ranks, const Tensor& qkv, const ops::HeadCounts& heads,
                         const Tensor& cos_PD2, const Tensor& sin_PD2,
                         const kernels::AttentionOptions& options) {
  check(qkv.ndim() == 3 && qkv.dim(2) == (heads.heads + 2 * heads.kv_heads) * heads.head_dim &&
            qkv.contiguous(),
        "ulysses_attention: q, k and v side by side");
  const std::int64_t tokens = qkv.dim(1) * ranks.size();
  check_context(tokens, ranks.size());
  check_context_heads(ContextKind::ulysses, heads.heads, heads.kv_heads, ranks.size());
  check(cos_PD2.dim(0) >= tokens && options.causal,
        "ulysses_attention: tables of the whole sequence; causal");
  const Tensor cos = cos_PD2.sliced(0, 0, tokens), sin = sin_PD2.sliced(0, 0, tokens);
  if (ranks.size() == 1) return ops::rotary_attention(qkv, heads, cos, sin, options);
  const Deal deal{ranks.size(), heads};
  const Tensor part = autograd::apply(SequenceToHeads{&ranks, deal}, qkv);
  return autograd::apply(HeadsToSequence{&ranks, deal},
                         ops::rotary_attention(part, deal.mine, cos, sin, options));
}

}  // namespace ridge::parallel
