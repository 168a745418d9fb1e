#include "core/ops/embedding.h"

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/fill.h"

namespace ridge::ops {
namespace {

using autograd::Grads;
using autograd::Needs;

struct Embedding {
  static constexpr const char* kName = "embedding";
  Tensor ids;
  kernels::TablePiece piece;
  Shape table_shape = {};

  Tensor forward(const Tensor& table) {
    const Tensor table_VC = table.as_row_dense();
    table_shape = table_VC.shape();
    Shape shape = ids.shape();
    shape.push_back(table_VC.dim(1));
    const Tensor y = Tensor::empty(shape, table_VC.dtype(), table_VC.device());
    visit_compute(y.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::embedding<T>(current_stream(y.device()), table_VC.view<T>(),
                            ids.reshaped({-1}).view<std::int32_t>(), y.reshaped({-1, y.dim(-1)}).view<T>(),
                            piece);
    });
    return y;
  }

  Grads vjp(const Tensor& dy, const Needs&, const autograd::PassContext& pass) {
    const Tensor dy_NC = dy.as_contiguous().reshaped({-1, dy.dim(-1)});
    const DType acc = dy.dtype() == DType::bf16 ? DType::f32 : dy.dtype();
    const auto sink = pass.take_leaf(0);
    const Tensor dtable = sink ? sink->grad : Tensor::empty(table_shape, acc, dy.device());
    if (!sink || !sink->add) fill_zero(dtable);
    visit_compute(dy.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::embedding_backward<T>(current_stream(dy.device()), dy_NC.view<T>(),
                                     ids.reshaped({-1}).view<std::int32_t>(), dtable.view<acc_t<T>>(), piece);
    });
    return {sink ? Tensor() : dtable};
  }

  static void fill_zero(const Tensor& t) {
    visit_compute(t.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::fill<T>(current_stream(t.device()), t.view<T>(), 0);
    });
  }
};

}  // namespace

Tensor embedding(const Tensor& table_VC, const Tensor& ids, kernels::TablePiece piece) {
  return autograd::apply(Embedding{ids.as_contiguous(), piece}, table_VC);
}

}  // namespace ridge::ops
