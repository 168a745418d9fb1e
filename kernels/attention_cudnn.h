// cuDNN's fused attention in bf16: with a causal mask as many queries as keys, without one any. A build
// without it links a stub that serves nothing.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/stream.h"
#include "core/base/view.h"
#include "kernels/attention_problem.h"

namespace ridge::kernels::cuda {

/// Whether this build has it.
bool fused_available();

/// Queues the forward pass. False, with nothing queued, where cuDNN has no kernel for it; that is remembered.
bool fused_attention(Stream& stream, const attention_detail::Problem& problem, const View<const bf16>& q_BTHD,
                     const View<const bf16>& k_BSGD, const View<const bf16>& v_BSGD, const View<bf16>& o_BTHD,
                     const View<float>& lse_BHT);

struct FusedGradients {
  View<const bf16> do_BTHD, q_BTHD, k_BSGD, v_BSGD, o_BTHD;
  View<const float> lse_BHT;
  View<bf16> dq_BTHD, dk_BSGD, dv_BSGD;
};
/// The same for the backward pass. Takes memory of its own where `workspace` is too small.
bool fused_attention_backward(Stream& stream, const attention_detail::Problem& problem,
                              const FusedGradients& x, attention_detail::Workspace workspace);

/// What cuDNN has done in this process.
struct FusedReport {
  std::int64_t served = 0;        // calls
  std::int64_t refused = 0;       // shapes
  std::string last_refusal;       // cuDNN's words
  std::int64_t workspace = 0;     // bytes of the last plan that was built
  std::int64_t over_planned = 0;  // calls whose workspace was larger than the caller's
};
FusedReport fused_report();

}  // namespace ridge::kernels::cuda
