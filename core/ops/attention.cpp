#include "core/ops/attention.h"

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/rotary.h"

namespace ridge::ops {
namespace {

using autograd::Grads;
using autograd::Needs;

Tensor empty_like(const Tensor& x) { return Tensor::empty(x.shape(), x.dtype(), x.device()); }

struct Attention {
  static constexpr const char* kName = "attention";
  kernels::AttentionOptions options;
  bool record = false;
  Tensor q, k, v, o, lse_BHT;

  void prepare(const Needs& needs) { record = needs[0] || needs[1] || needs[2]; }

  Tensor forward(const Tensor& q_BTHD, const Tensor& k_BSGD, const Tensor& v_BSGD) {
    q = q_BTHD.as_row_dense();
    k = k_BSGD.as_row_dense();
    v = v_BSGD.as_row_dense();
    const Tensor y = empty_like(q);
    visit_compute(y.dtype(), [&]<class T>(std::type_identity<T>) {
      using Acc = acc_t<T>;
      if (record) lse_BHT = Tensor::empty({y.dim(0), y.dim(2), y.dim(1)}, dtype_of<Acc>, y.device());
      kernels::attention<T>(current_stream(y.device()), q.view<T>(), k.view<T>(), v.view<T>(), y.view<T>(),
                            record ? lse_BHT.view<Acc>() : View<Acc>(), options);
    });
    o = y;
    return y;
  }

  Grads vjp(const Tensor& dy, const Needs&) {
    const Tensor dy_BTHD = dy.as_contiguous();
    const Tensor dq = empty_like(q), dk = empty_like(k), dv = empty_like(v);
    visit_compute(dq.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::attention_backward<T>(current_stream(dq.device()), dy_BTHD.view<T>(), q.view<T>(), k.view<T>(),
                                     v.view<T>(), o.view<T>(), lse_BHT.view<acc_t<T>>(), dq.view<T>(),
                                     dk.view<T>(), dv.view<T>(), options);
    });
    return {dq, dk, dv};
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
  return autograd::apply(Attention{options, false, {}, {}, {}, {}, {}}, q_BTHD, k_BSGD, v_BSGD);
}

Tensor rotary(const Tensor& x_BTHD, const Tensor& cos_PD2, const Tensor& sin_PD2,
              const Tensor& positions_BT) {
  return autograd::apply(Rotary{cos_PD2, sin_PD2, positions_BT}, x_BTHD);
}

}  // namespace ridge::ops
