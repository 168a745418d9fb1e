// Stands in where cuDNN or its frontend is not there: every problem is left to the kernels of our own.
#include "kernels/attention_cudnn.h"

namespace ridge::kernels::cuda {

bool fused_available() { return false; }

bool fused_attention(Stream&, const attention_detail::Problem&, const View<const bf16>&,
                     const View<const bf16>&, const View<const bf16>&, const View<bf16>&,
                     const View<float>&) {
  return false;
}

bool fused_attention_backward(Stream&, const attention_detail::Problem&, const FusedGradients&,
                              attention_detail::Workspace) {
  return false;
}

FusedReport fused_report() { return {}; }

}  // namespace ridge::kernels::cuda
