// B sequences, H query heads, G key-value heads, D head dim.
#include "kernels/decode_attention.h"

#include <algorithm>

#include "core/base/cuda_check.h"
#include "kernels/decode_attention_kernel.cuh"

namespace ridge::kernels::cuda {
namespace {

using namespace decode_detail;

constexpr int kFewStages = 3, kManyStages = 3;
constexpr int kManyBlocks = 2;         // of a multiprocessor
constexpr int kManyBytes = 80 * 1024;  // at least: a third block beside two would leave others idle

struct DecodeLaunch {
  const Stream& stream;
  DecodeAttentionParams params;
  std::int64_t batch;
  int keys;  // a sequence attends to at most so many

  // A warp's tiles of the longest part that there may be.
  template <class K, int kDim>
  int tiles() const {
    const auto of = [&](int n) { return DecodeCut(0, n, params.groups).part_keys; };
    return static_cast<int>(device::ceil_div(std::max(of(keys), of(std::min(keys, few_keys(params.groups)))),
                                             Ring<K, kDim>::kKeys));
  }
  template <class K, int kDim, class Kernel>
  void run(Kernel* kernel, int blocks, int most_stages, int more_bytes, int least_bytes) {
    const int all = tiles<K, kDim>(), warps = std::min(kPartWarps, all),
              stages = std::min<int>(most_stages, static_cast<int>(device::ceil_div(all, kPartWarps)));
    params.ring_bytes = stages * Ring<K, kDim>::kStageBytes;
    const int bytes = more_bytes + std::max({warps * params.ring_bytes,
                                             DecodeWarps<kDim>::bytes(params.share), least_bytes});
    device::launch_overlapped(
        device::native(stream), kernel,
        dim3(static_cast<unsigned>(blocks * params.groups), static_cast<unsigned>(batch)), 32 * kPartWarps,
        static_cast<std::size_t>(bytes), params);
  }
  template <class K, int kDim>
  void few() {
    const auto kernel = attend_few_keys<K, kDim, kFewStages>;
    static const cudaError_t kAllowed = device::allow_shared_memory(kernel, most_bytes<K, kDim>(kFewStages));
    check_cuda(kAllowed);
    run<K, kDim>(kernel, kClusterParts, kFewStages, DecodeExchange<K, kDim>::bytes(params.share), 0);
  }
  template <class K, int kDim>
  void many() {
    const auto kernel = attend_many_keys<K, kDim, kManyStages, kManyBlocks>;
    static const cudaError_t kAllowed = device::allow_shared_memory(kernel, most_bytes<K, kDim>(kManyStages));
    check_cuda(kAllowed);
    run<K, kDim>(kernel, most_parts(params.groups), kManyStages, 0, kManyBytes);
  }
  template <class K, int kDim>
  static int most_bytes(int stages) {
    return DecodeExchange<K, kDim>::bytes(kMostShare) +
           std::max({kPartWarps * stages * Ring<K, kDim>::kStageBytes, DecodeWarps<kDim>::bytes(kMostShare),
                     kManyBytes});
  }
  template <class K, int kDim>
  void queue() {
    keys <= few_keys(params.groups) ? few<K, kDim>() : many<K, kDim>();
  }
};

DecodeAttentionParams params_of(const View<bf16>& qkv, const QkvHeads& heads, const View<const float>& cos,
                                const View<const float>& sin, const View<const std::int32_t>& positions,
                                const KvView& cache, const View<bf16>& o,
                                const CachedAttentionOptions& options, const View<float>& scratch) {
  constexpr double kLog2e = 1.4426950408889634;
  DecodeAttentionParams p{};
  p.qkv_BX = qkv.data, p.o_BX = o.data;
  p.qkv_stride = qkv.strides[0], p.o_stride = o.strides[0];
  p.cos_PD2 = cos.data, p.sin_PD2 = sin.data;
  p.positions_B = positions.data;
  p.keys_BSGD = cache.keys, p.values_BSGD = cache.values;
  p.key_scales_BSG = cache.key_scales, p.value_scales_BSG = cache.value_scales;
  p.capacity = cache.capacity;
  p.window = static_cast<int>(std::min<std::int64_t>(options.window, cached_detail::kMostKeys));
  p.limit = static_cast<int>(std::min({options.keys, cache.capacity, cos.dim(0)}));
  p.heads = static_cast<int>(heads.heads), p.groups = static_cast<int>(heads.kv_heads);
  p.share = p.heads / p.groups;
  p.scale = static_cast<float>(options.scale * kLog2e);
  p.counters = reinterpret_cast<unsigned*>(scratch.data);
  p.part_sums = scratch.data + cached_detail::kGpuCounters;
  p.part_peaks = reinterpret_cast<float2*>(p.part_sums +
                                           qkv.dim(0) * heads.heads * most_parts(p.groups) * heads.head_dim);
  return p;
}

}  // namespace

void decode_attention(Stream& stream, const View<bf16>& qkv, const QkvHeads& heads,
                      const View<const float>& cos, const View<const float>& sin,
                      const View<const std::int32_t>& positions, const KvView& cache, const View<bf16>& o,
                      const CachedAttentionOptions& options, const View<float>& scratch) {
  const DecodeAttentionParams p = params_of(qkv, heads, cos, sin, positions, cache, o, options, scratch);
  DecodeLaunch launch{stream, p, qkv.dim(0), p.window > 0 ? std::min(p.limit, p.window) : p.limit};
  const auto queue = [&](auto tag) {
    using K = typename decltype(tag)::type;
    heads.head_dim == 64 ? launch.queue<K, 64>() : launch.queue<K, 128>();
  };
  if (cache.format == KvFormat::bf16) queue(std::type_identity<bf16>{});
  if (cache.format == KvFormat::fp8) queue(std::type_identity<KvFp8>{});
  if (cache.format == KvFormat::int8) queue(std::type_identity<KvInt8>{});
}

}  // namespace ridge::kernels::cuda
