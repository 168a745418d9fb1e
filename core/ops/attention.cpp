#include "core/ops/attention.h"

#include <array>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/rotary.h"

namespace ridge::ops {
namespace {

using autograd::Grads;
using autograd::Needs;

Tensor empty_like(const Tensor& x) { return Tensor::empty(x.shape(), x.dtype(), x.device()); }

// o [B, T, H, D]; with `record`, the log-sum-exps too.
struct Attended {
  Tensor o, lse_BHT;
};

Attended attend(const Tensor& q, const Tensor& k, const Tensor& v, bool record,
                const kernels::AttentionOptions& options) {
  Attended y{empty_like(q), {}};
  visit_compute(q.dtype(), [&]<class T>(std::type_identity<T>) {
    using Acc = acc_t<T>;
    if (record) y.lse_BHT = Tensor::empty({q.dim(0), q.dim(2), q.dim(1)}, dtype_of<Acc>, q.device());
    kernels::attention<T>(current_stream(q.device()), q.view<T>(), k.view<T>(), v.view<T>(), y.o.view<T>(),
                          record ? y.lse_BHT.view<Acc>() : View<Acc>(), options);
  });
  return y;
}

// Writes dq, dk and dv.
void attend_backward(const Tensor& dy_BTHD, const std::array<Tensor, 3>& qkv, const Attended& y,
                     const std::array<Tensor, 3>& grads, const kernels::AttentionOptions& options) {
  visit_compute(dy_BTHD.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::attention_backward<T>(current_stream(dy_BTHD.device()), dy_BTHD.view<T>(), qkv[0].view<T>(),
                                   qkv[1].view<T>(), qkv[2].view<T>(), y.o.view<T>(),
                                   y.lse_BHT.view<acc_t<T>>(), grads[0].view<T>(), grads[1].view<T>(),
                                   grads[2].view<T>(), options);
  });
}

struct Attention {
  static constexpr const char* kName = "attention";
  kernels::AttentionOptions options;
  bool record = false;
  std::array<Tensor, 3> qkv = {};
  Attended y = {};

  void prepare(const Needs& needs) { record = needs[0] || needs[1] || needs[2]; }

  Tensor forward(const Tensor& q_BTHD, const Tensor& k_BSGD, const Tensor& v_BSGD) {
    qkv = {q_BTHD.as_row_dense(), k_BSGD.as_row_dense(), v_BSGD.as_row_dense()};
    y = attend(qkv[0], qkv[1], qkv[2], record, options);
    return y.o;
  }

  Grads vjp(const Tensor& dy, const Needs&) {
    const std::array<Tensor, 3> grads{empty_like(qkv[0]), empty_like(qkv[1]), empty_like(qkv[2])};
    attend_backward(dy.as_contiguous(), qkv, y, grads, options);
    return {grads.begin(), grads.end()};
  }
};

void rotate_in_place(const Tensor& x_BTHD, const Tensor& cos, const Tensor& sin, bool inverse) {
  visit_compute(x_BTHD.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::rotary<T>(current_stream(x_BTHD.device()), x_BTHD.view<T>(), cos.view<float>(),
                       sin.view<float>(), View<std::int32_t>(), x_BTHD.view<T>(), inverse);
  });
}

struct RotaryAttention {
  static constexpr const char* kName = "rotary_attention";
  HeadCounts n;
  kernels::AttentionOptions options;
  Tensor cos, sin;
  bool record = false;
  Tensor packed = {};  // [B, T, H + 2G, D], rotated
  Attended y = {};

  void prepare(const Needs& needs) { record = needs[0]; }

  std::array<Tensor, 3> parts(const Tensor& t) const {
    const std::int64_t k = n.heads, v = n.heads + n.kv_heads;
    return {t.sliced(2, 0, k), t.sliced(2, k, v), t.sliced(2, v, v + n.kv_heads)};
  }
  // q and k, which lie side by side.
  Tensor rotated(const Tensor& t) const { return t.sliced(2, 0, n.heads + n.kv_heads); }

  Tensor forward(const Tensor& qkv) {
    const std::int64_t B = qkv.dim(0), T = qkv.dim(1);
    packed = qkv.reshaped({B, T, n.heads + 2 * n.kv_heads, n.head_dim});
    rotate_in_place(rotated(packed), cos, sin, false);
    const auto [q, k, v] = parts(packed);
    y = attend(q, k, v, record, options);
    return y.o.reshaped({B, T, n.heads * n.head_dim});
  }

  Grads vjp(const Tensor& dy, const Needs&) {
    const Tensor d = empty_like(packed);
    const Tensor dy_BTHD = dy.as_contiguous().reshaped(y.o.shape());
    attend_backward(dy_BTHD, parts(packed), y, parts(d), options);
    rotate_in_place(rotated(d), cos, sin, true);
    return {d.reshaped({d.dim(0), d.dim(1), d.dim(2) * d.dim(3)})};
  }
};

struct Rotary {
  static constexpr const char* kName = "rotary";
  Tensor cos, sin, positions;

  Tensor rotate(const Tensor& x, bool inverse) const {
    const Tensor y = empty_like(x);
    visit_compute(x.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::rotary<T>(current_stream(x.device()), x.view<T>(), cos.view<float>(), sin.view<float>(),
                         positions.defined() ? positions.view<std::int32_t>() : View<std::int32_t>(),
                         y.view<T>(), inverse);
    });
    return y;
  }
  Tensor forward(const Tensor& x_BTHD) { return rotate(x_BTHD.as_row_dense(), false); }
  Grads vjp(const Tensor& dy, const Needs&) { return {rotate(dy.as_row_dense(), true)}; }
};

}  // namespace

Tensor attention(const Tensor& q_BTHD, const Tensor& k_BSGD, const Tensor& v_BSGD,
                 const kernels::AttentionOptions& options) {
  return autograd::apply(Attention{options}, q_BTHD, k_BSGD, v_BSGD);
}

Tensor rotary(const Tensor& x_BTHD, const Tensor& cos_PD2, const Tensor& sin_PD2,
              const Tensor& positions_BT) {
  return autograd::apply(Rotary{cos_PD2, sin_PD2, positions_BT}, x_BTHD);
}

Tensor rotary_attention(const Tensor& qkv, const HeadCounts& heads, const Tensor& cos_PD2,
                        const Tensor& sin_PD2, const kernels::AttentionOptions& options) {
  check(qkv.ndim() == 3 && qkv.dim(2) == (heads.heads + 2 * heads.kv_heads) * heads.head_dim &&
            qkv.contiguous(),
        "rotary_attention: q, k and v side by side");
  return autograd::apply(RotaryAttention{heads, options, cos_PD2, sin_PD2}, qkv);
}

}  // namespace ridge::ops
