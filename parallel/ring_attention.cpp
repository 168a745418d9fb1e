// B batch, T tokens held here, H query heads, G key-value heads, D head dim.
#include "parallel/ring_attention.h"

#include <array>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/attention_merge.h"
#include "kernels/copy.h"
#include "kernels/elementwise.h"
#include "kernels/fill.h"
#include "kernels/rotary.h"
#include "parallel/context_parallel.h"
#include "parallel/ring_parts.h"

namespace ridge::parallel {
namespace {

using autograd::Grads;
using autograd::Needs;
using kernels::AttentionOptions;

// Two buffers of one kind that go round: what is here goes to the next rank while the other is filled.
class Travelling {
 public:
  Travelling(const Tensor& here, Communicator& ranks) : here_(here), ranks_(&ranks) {}
  const Tensor& here() const { return here_; }
  void add_messages(std::vector<Message>& messages) {
    const PurposeScope purpose(Purpose::workspace);
    if (!other_.defined()) other_ = Tensor::empty(here_.shape(), here_.dtype(), here_.device());
    const int rank = ranks_->rank(), size = ranks_->size();
    messages.push_back({Message::Way::send, (rank + 1) % size, span(here_)});
    messages.push_back({Message::Way::receive, (rank + size - 1) % size, span(other_)});
  }
  /// After the messages' wait().
  void arrive() { std::swap(here_, other_); }

 private:
  static AnySpan span(const Tensor& x) {
    return {x.data(), static_cast<std::size_t>(x.numel()), x.dtype(), x.device()};
  }
  Tensor here_, other_;
  Communicator* ranks_;
};

struct RingAttention {
  static constexpr const char* kName = "ring_attention";
  Communicator* ranks;
  ops::HeadCounts n;
  AttentionOptions options;
  Tensor cos, sin;
  Tensor packed = {};       // [B, T, H + 2G, D], rotated
  Tensor o = {}, lse = {};  // [B, T, H, D], [B, H, T]

  int size() const { return ranks->size(); }
  int owner(int step) const { return (ranks->rank() - step + size()) % size(); }
  std::vector<RingBlock> blocks(int step) const {
    return ring_blocks(packed.dim(1), size(), ranks->rank(), owner(step), options);
  }
  // Every block of this rank, for counting.
  std::vector<RingBlock> all_blocks() const {
    std::vector<RingBlock> all;
    for (int step = 0; step < size(); ++step) {
      for (const RingBlock& block : blocks(step)) all.push_back(block);
    }
    return all;
  }

  Tensor query(const Tensor& t) const { return t.sliced(2, 0, n.heads); }
  Tensor key(const Tensor& t) const { return t.sliced(2, n.heads, n.heads + n.kv_heads); }
  Tensor value(const Tensor& t) const { return t.sliced(2, n.heads + n.kv_heads, n.heads + 2 * n.kv_heads); }
  // Keys and values of packed heads as one: [2, B, T, G, D].
  template <class T>
  View<T> key_values(const Tensor& t) const {
    const View<T> k = key(t).view<T>();
    const Strides& s = k.strides;
    return {k.data, {2, k.dim(0), k.dim(1), k.dim(2), k.dim(3)}, {n.kv_heads * s[2], s[0], s[1], s[2], s[3]}};
  }

  // q and k, which lie side by side, by the positions of this rank's two chunks.
  void rotate(const Tensor& t, bool inverse) const {
    const Tensor qk = t.sliced(2, 0, n.heads + n.kv_heads);
    std::int64_t at = 0;
    for (const auto& [begin, end] : zigzag_ranges(t.dim(1) * size(), size(), ranks->rank())) {
      const Tensor x = qk.sliced(1, at, at + end - begin), c = cos.sliced(0, begin, end),
                   s = sin.sliced(0, begin, end);
      visit_compute(x.dtype(), [&]<class T>(std::type_identity<T>) {
        kernels::rotary<T>(current_stream(x.device()), x.view<T>(), c.view<float>(), s.view<float>(),
                           View<std::int32_t>(), x.view<T>(), inverse);
      });
      at += end - begin;
    }
  }

  // A contiguous copy of the keys and values here, to be sent.
  Tensor pack_keys() const {
    const PurposeScope purpose(Purpose::workspace);
    const Tensor kv = Tensor::empty({2, packed.dim(0), packed.dim(1), n.kv_heads, n.head_dim}, packed.dtype(),
                                    packed.device());
    visit_compute(kv.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::copy<T>(current_stream(kv.device()), key_values<T>(packed), kv.view<T>());
    });
    return kv;
  }

  Tensor forward(const Tensor& qkv);
  Grads vjp(const Tensor& dy, const Needs& needs);
};

// Tensor x of a pair [2, ...].
Tensor one_of(const Tensor& pair, int which) {
  Shape shape;
  for (int d = 1; d < pair.ndim(); ++d) shape.push_back(pair.dim(d));
  return pair.sliced(0, which, which + 1).reshaped(shape);
}

Tensor RingAttention::forward(const Tensor& qkv) {
  const std::int64_t B = qkv.dim(0), T = qkv.dim(1);
  packed = qkv.reshaped({B, T, n.heads + 2 * n.kv_heads, n.head_dim});
  rotate(packed, false);
  Travelling keys(pack_keys(), *ranks);
  RingOutputs outputs(query(packed), all_blocks());
  for (int step = 0; step < size(); ++step) {
    std::vector<Message> messages;
    const bool keys_go_on = step + 1 < size();
    if (keys_go_on) keys.add_messages(messages);
    const auto arriving = ranks->exchange_async(messages);
    const Tensor k = step == 0 ? key(packed) : one_of(keys.here(), 0),
                 v = step == 0 ? value(packed) : one_of(keys.here(), 1);
    for (const RingBlock& block : blocks(step)) outputs.attend(block, k, v);
    arriving->wait();
    if (keys_go_on) keys.arrive();
  }
  o = outputs.output();
  lse = outputs.lse();
  return o.reshaped({B, T, n.heads * n.head_dim});
}

// dk and dv of a block, until the sums that they belong to are here.
struct KeyPart {
  RingBlock block;
  Tensor dkv;  // [2, B, keys of the block, G, D]
};

// One backward pass: gradients of keys follow them round, a step behind, and come home during the local step.
class RingBackward {
 public:
  RingBackward(const RingAttention& op, const Tensor& dy_BTHD)
      : op_(op),
        d_(Tensor::empty(op.packed.shape(), op.packed.dtype(), op.packed.device())),
        queries_({dy_BTHD, op.query(op.packed), op.o, op.lse}, op.query(d_), op.all_blocks()),
        keys_(op.pack_keys(), *op.ranks),
        sums_(zero_sums(), *op.ranks) {}

  /// The gradient of the rotated, packed heads.
  Tensor run() {
    move_keys();
    for (int step = 1; step < op_.size(); ++step) visit(step);
    std::vector<Message> messages;
    sums_.add_messages(messages);
    const auto arriving = op_.ranks->exchange_async(messages);
    const auto parts = attend(0, op_.key(op_.packed), op_.value(op_.packed));
    arriving->wait();
    sums_.arrive();
    finish_keys(parts);
    return d_;
  }

 private:
  Tensor zero_sums() const {
    const PurposeScope purpose(Purpose::workspace);
    const Tensor& p = op_.packed;
    const Shape shape{2, p.dim(0), p.dim(1), op_.n.kv_heads, op_.n.head_dim};
    return visit_compute(p.dtype(), [&]<class T>(std::type_identity<T>) {
      const Tensor sums = Tensor::empty(shape, dtype_of<acc_t<T>>, p.device());
      kernels::fill<acc_t<T>>(current_stream(p.device()), sums.view<acc_t<T>>(), 0);
      return sums;
    });
  }

  void move_keys() {
    std::vector<Message> messages;
    keys_.add_messages(messages);
    op_.ranks->exchange(messages);
    keys_.arrive();
  }

  void visit(int step) {
    std::vector<Message> messages;
    const bool keys_go_on = step + 1 < op_.size(), sums_came = step > 1;
    if (keys_go_on) keys_.add_messages(messages);
    if (sums_came) sums_.add_messages(messages);
    const auto arriving = op_.ranks->exchange_async(messages);
    const auto parts = attend(step, one_of(keys_.here(), 0), one_of(keys_.here(), 1));
    arriving->wait();
    if (keys_go_on) keys_.arrive();
    if (sums_came) sums_.arrive();
    for (const KeyPart& part : parts) add_to_sums(part);
  }

  std::vector<KeyPart> attend(int step, const Tensor& k, const Tensor& v) {
    std::vector<KeyPart> parts;
    for (const RingBlock& block : op_.blocks(step)) {
      const Tensor dkv = Tensor::empty({2, k.dim(0), block.k_end - block.k_begin, k.dim(2), k.dim(3)},
                                       k.dtype(), k.device());
      queries_.attend(block, k, v, one_of(dkv, 0), one_of(dkv, 1));
      parts.push_back({block, dkv});
    }
    return parts;
  }

  Tensor sums_of(const RingBlock& block) const { return sums_.here().sliced(2, block.k_begin, block.k_end); }

  void add_to_sums(const KeyPart& part) {
    visit_compute(part.dkv.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::accumulate<T, acc_t<T>>(current_stream(part.dkv.device()), part.dkv.view<T>(),
                                       sums_of(part.block).view<acc_t<T>>());
    });
  }

  // The last block of the local ones that has a key ends its sum.
  void finish_keys(const std::vector<KeyPart>& parts) {
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const RingBlock& block = parts[i].block;
      bool last = true;
      for (std::size_t j = i + 1; j < parts.size(); ++j)
        last = last && parts[j].block.k_begin != block.k_begin;
      if (!last) {
        add_to_sums(parts[i]);
        continue;
      }
      visit_compute(d_.dtype(), [&]<class T>(std::type_identity<T>) {
        const View<T> to = op_.key_values<T>(d_.sliced(1, block.k_begin, block.k_end));
        kernels::add_parts<acc_t<T>, T, T>(current_stream(d_.device()), sums_of(block).view<acc_t<T>>(),
                                           parts[i].dkv.view<T>(), to);
      });
    }
  }

  const RingAttention& op_;
  Tensor d_;
  RingQueryGradients queries_;
  Travelling keys_, sums_;
};

Grads RingAttention::vjp(const Tensor& dy, const Needs&) {
  const Tensor d = RingBackward(*this, dy.as_contiguous().reshaped(o.shape())).run();
  rotate(d, true);
  return {d.reshaped({d.dim(0), d.dim(1), d.dim(2) * d.dim(3)})};
}

}  // namespace

Tensor ring_attention(Communicator& ranks, const Tensor& qkv, const ops::HeadCounts& heads,
                      const Tensor& cos_PD2, const Tensor& sin_PD2, const AttentionOptions& options) {
  check(qkv.ndim() == 3 && qkv.dim(2) == (heads.heads + 2 * heads.kv_heads) * heads.head_dim &&
            qkv.contiguous(),
        "ring_attention: q, k and v side by side");
  const std::int64_t tokens = qkv.dim(1) * ranks.size();
  check_context(tokens, ranks.size());
  check(cos_PD2.dim(0) >= tokens && options.causal, "ring_attention: tables of the whole sequence; causal");
  if (ranks.size() == 1) {
    const Tensor cos = cos_PD2.sliced(0, 0, tokens), sin = sin_PD2.sliced(0, 0, tokens);
    return ops::rotary_attention(qkv, heads, cos, sin, options);
  }
  return autograd::apply(RingAttention{&ranks, heads, options, cos_PD2, sin_PD2}, qkv);
}

}  // namespace ridge::parallel
