// A cluster of blocks takes a sequence. The most likely first, ids are found by the digits of their logits'
// keys: a histogram of counts and shares by 11, 11 and 10 bits leads to the one at which a sum is reached.
#include <cooperative_groups.h>

#include "core/base/cuda_check.h"
#include "kernels/device/block.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/philox.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/sample.h"
#include "kernels/sample_share.h"

namespace ridge::kernels::cuda {
namespace {

using namespace sample_detail;
namespace cg = cooperative_groups;

constexpr int kBlocks = 8;  // of a cluster
constexpr int kSampleThreads = 512;
constexpr int kWarps = kSampleThreads / 32;
constexpr int kDigits = 2048;
constexpr int kBins = kDigits / kSampleThreads;  // a thread, side by side

struct Min {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a < b ? a : b;
  }
};

/// Where a sum is reached: a digit, or in the end a key.
struct Place {
  std::uint32_t digit, count, equal;  // count: of ids before it; equal: of its own
  std::uint64_t mass;                 // of ids before it
};

struct Shared {
  unsigned count[kDigits], low[kDigits],
      high[kDigits];  // of this block's ids; low and high of a sum of shares
  std::uint64_t scan[2][kWarps], reduce[33], slot;
  Place place;
  std::int32_t id;
  unsigned ballots[kWarps];
};

/// Sums over the cluster of a thread's own digits.
struct Bins {
  std::uint32_t count[kBins];
  std::uint64_t mass[kBins];
};

__device__ __forceinline__ int thread_id() { return static_cast<int>(threadIdx.x); }

template <class T, int N>
struct Sampler {
  const T* logits_V;
  std::int64_t ids;
  std::uint32_t* seen;  // null: none
  SampleParameters p;
  Shared& shared;
  float top = 0;

  /// Calls body(id, logit) for this block's share of the ids.
  template <class Body>
  __device__ __forceinline__ void visit(const Body& body) const {
    const auto rank = static_cast<std::int64_t>(cg::this_cluster().block_rank());
    const bool penalty = seen != nullptr && p.repetition_penalty != 1;
    for (std::int64_t i = rank * kSampleThreads + thread_id(); i * N < ids; i += kBlocks * kSampleThreads) {
      const std::int64_t first = i * N;
      device::Vec<T, N> x;
      if (first + N <= ids) {
        x = device::load_vec<T, N>(logits_V + first);
      } else {
#pragma unroll
        for (int k = 0; k < N; ++k) x.at[k] = logits_V[first + k < ids ? first + k : first];
      }
      const std::uint32_t word = penalty ? seen[first / 32] : 0;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float logit = device::load(x.at[k]);
        if (first + k < ids)
          body(first + k, is_seen(word, first + k) ? penalised(logit, p.repetition_penalty) : logit);
      }
    }
  }

  __device__ __forceinline__ bool far(float logit) const { return logit - top < -31.5f * p.temperature; }
  __device__ __forceinline__ std::uint64_t share(float logit) const {
    return share_of(logit, top, static_cast<double>(p.temperature));
  }

  /// The least of the cluster's values, or the sum.
  template <class Op>
  __device__ std::uint64_t cluster_all(std::uint64_t value, std::uint64_t identity) const {
    cg::cluster_group cluster = cg::this_cluster();
    value = device::block_all<Op>(value, shared.reduce, identity);
    if (thread_id() == 0) shared.slot = value;
    cluster.sync();
    std::uint64_t all = identity;
    for (int r = 0; r < kBlocks; ++r) all = Op()(all, *cluster.map_shared_rank(&shared.slot, r));
    cluster.sync();
    return all;
  }

  /// Counts and shares of ids whose key begins with `prefix`, by the next digit; those without a share are
  /// left out.
  __device__ Bins histogram(int prefix_shift, std::uint32_t prefix, int shift, std::uint32_t mask) const {
    cg::cluster_group cluster = cg::this_cluster();
    for (int i = thread_id(); i < kDigits; i += kSampleThreads)
      shared.count[i] = shared.low[i] = shared.high[i] = 0;
    __syncthreads();
    visit([&](std::int64_t, float logit) {
      const std::uint32_t key = key_of(logit);
      if (far(logit) || (prefix_shift < 32 && key >> prefix_shift != prefix)) return;
      const std::uint64_t of = share(logit);
      if (of == 0) return;
      const std::uint32_t digit = key >> shift & mask;
      const auto low = static_cast<std::uint32_t>(of);
      atomicAdd(&shared.count[digit], 1u);
      const std::uint32_t before = atomicAdd(&shared.low[digit], low);
      const std::uint32_t high = static_cast<std::uint32_t>(of >> 32) + (before + low < low ? 1u : 0u);
      if (high != 0) atomicAdd(&shared.high[digit], high);
    });
    cluster.sync();
    Bins bins{};
    for (int r = 0; r < kBlocks; ++r) {
      const Shared& other = *cluster.map_shared_rank(&shared, r);
#pragma unroll
      for (int i = 0; i < kBins; ++i) {
        const int digit = thread_id() * kBins + i;
        bins.count[i] += other.count[digit];
        bins.mass[i] += static_cast<std::uint64_t>(other.high[digit]) << 32 | other.low[digit];
      }
    }
    cluster.sync();
    return bins;
  }

  /// The sum of what the threads before have.
  __device__ std::uint64_t before(std::uint64_t own, std::uint64_t* warps) const {
    const int lane = thread_id() % 32, warp = thread_id() / 32;
    std::uint64_t sum = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const std::uint64_t other = __shfl_up_sync(0xFFFFFFFFu, static_cast<unsigned long long>(sum), step);
      if (lane >= step) sum += other;
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    for (int w = 0; w < warp; ++w) sum += warps[w];
    return sum - own;
  }

  /// The first digit with whose ids the sum of shares, or the number of ids, exceeds `limit`: there is one.
  __device__ Place find(const Bins& bins, std::uint64_t limit, bool by_count) const {
    std::uint64_t own_count = 0, own_mass = 0;
#pragma unroll
    for (int i = 0; i < kBins; ++i) own_count += bins.count[i], own_mass += bins.mass[i];
    std::uint64_t count = before(own_count, shared.scan[0]), mass = before(own_mass, shared.scan[1]);
    const std::uint64_t from = by_count ? count : mass, own = by_count ? own_count : own_mass;
    if (from <= limit && limit < from + own) {
      bool found = false;
#pragma unroll
      for (int i = 0; i < kBins; ++i) {
        const std::uint64_t next = by_count ? count + bins.count[i] : mass + bins.mass[i];
        if (!found && next > limit) {
          found = true;
          shared.place = {static_cast<std::uint32_t>(thread_id() * kBins + i),
                          static_cast<std::uint32_t>(count), bins.count[i], mass};
        }
        count += bins.count[i];
        mass += bins.mass[i];
      }
    }
    __syncthreads();
    const Place place = shared.place;
    __syncthreads();
    return place;
  }

  /// The same down to a key: `digit` is the key.
  __device__ Place descend(const Bins& all, std::uint64_t limit, bool by_count) const {
    Place place = find(all, limit, by_count);
    std::uint32_t key = place.digit, count = place.count;
    std::uint64_t mass = place.mass;
    for (int level = 0; level < 2; ++level) {
      const int prefix_shift = level == 0 ? 21 : 10, shift = level == 0 ? 10 : 0;
      const Bins bins = histogram(prefix_shift, key, shift, level == 0 ? 2047u : 1023u);
      place = find(bins, limit - (by_count ? count : mass), by_count);
      key = key << (level == 0 ? 11 : 10) | place.digit;
      count += place.count;
      mass += place.mass;
    }
    return {key, count, place.equal, mass};
  }

  /// The id number `index` of those with this key; in the first block of the cluster.
  __device__ std::int32_t id_of(std::uint32_t key, std::uint32_t index, std::uint32_t equal) const {
    cg::cluster_group cluster = cg::this_cluster();
    if (equal == 1) {
      visit([&](std::int64_t id, float logit) {
        if (key_of(logit) == key) *cluster.map_shared_rank(&shared.id, 0) = static_cast<std::int32_t>(id);
      });
    } else if (cluster.block_rank() == 0) {
      search(key, index);
    }
    cluster.sync();
    return shared.id;
  }

  /// In the order of ids, by one block.
  __device__ void search(std::uint32_t key, std::uint32_t index) const {
    const bool penalty = seen != nullptr && p.repetition_penalty != 1;
    std::uint32_t before = 0;
    for (std::int64_t first = 0; first < ids; first += kSampleThreads) {
      const std::int64_t id = first + thread_id();
      bool same = false;
      if (id < ids) {
        const float logit = device::load(logits_V[id]);
        const bool again = penalty && is_seen(seen[id / 32], id);
        same = key_of(again ? penalised(logit, p.repetition_penalty) : logit) == key;
      }
      const unsigned ballot = __ballot_sync(0xFFFFFFFFu, same);
      if (thread_id() % 32 == 0) shared.ballots[thread_id() / 32] = ballot;
      const auto found = static_cast<std::uint32_t>(__syncthreads_count(same));
      if (before + found > index) {
        std::uint32_t rank = before + __popc(ballot & ((1u << thread_id() % 32) - 1));
        for (int w = 0; w < thread_id() / 32; ++w) rank += __popc(shared.ballots[w]);
        if (same && rank == index) shared.id = static_cast<std::int32_t>(id);
        return;
      }
      before += found;
      __syncthreads();
    }
  }

  __device__ std::int32_t draw(std::uint64_t step) const {
    const Bins all = histogram(32, 0, 21, 2047u);
    std::uint64_t own_count = 0, own_mass = 0;
#pragma unroll
    for (int i = 0; i < kBins; ++i) own_count += all.count[i], own_mass += all.mass[i];
    const std::uint64_t count = device::block_all<device::Sum>(own_count, shared.reduce, std::uint64_t{0});
    std::uint64_t mass = device::block_all<device::Sum>(own_mass, shared.reduce, std::uint64_t{0});
    if (p.top_k > 0 && static_cast<std::uint64_t>(p.top_k) < count) {
      const auto k = static_cast<std::uint64_t>(p.top_k);
      const Place last = descend(all, k - 1, true);
      mass = last.mass + (k - last.count) * share(logit_of(last.digit));
    }
    if (p.top_p < 1) {
      const std::uint64_t limit = wanted_of(mass, p.top_p) - 1;
      const Place last = descend(all, limit, false);
      const std::uint64_t each = share(logit_of(last.digit));
      mass = last.mass + ((limit - last.mass) / each + 1) * each;
    }
    if (p.min_p > 0) {
      std::uint64_t likely = 0;
      visit([&](std::int64_t, float logit) {
        const std::uint64_t of = far(logit) ? 0 : share(logit);
        if (is_likely(of, p.min_p)) likely += of;
      });
      likely = cluster_all<device::Sum>(likely, 0);
      mass = likely < mass ? likely : mass;
    }
    const auto words = device::philox({p.seed, kPhiloxStream}, step);
    const std::uint64_t drawn = drawn_of(mass, words.at[0], words.at[1]);
    const Place place = descend(all, drawn, false);
    const auto index = static_cast<std::uint32_t>((drawn - place.mass) / share(logit_of(place.digit)));
    return id_of(place.digit, index, place.equal);
  }

  /// In the first block of the cluster.
  __device__ std::int32_t choose(std::int64_t step) {
    std::uint64_t best = ~std::uint64_t{0};  // the key, then the id; 0: a bad logit
    visit([&](std::int64_t id, float logit) {
      const std::uint64_t order = is_bad(logit) ? 0
                                                : (static_cast<std::uint64_t>(key_of(logit)) << 32) +
                                                      static_cast<std::uint64_t>(id) + 1;
      best = order < best ? order : best;
    });
    best = cluster_all<Min>(best, ~std::uint64_t{0});
    if (best == 0) return -1;
    top = logit_of(static_cast<std::uint32_t>((best - 1) >> 32));
    if (!(p.temperature > 0) || top == -INFINITY) return static_cast<std::int32_t>((best - 1) & 0xFFFFFFFFu);
    return draw(static_cast<std::uint64_t>(step));
  }
};

template <class T, int N>
__global__ void __cluster_dims__(kBlocks, 1, 1) __launch_bounds__(kSampleThreads)
    sample_kernel(const T* logits_BV, std::int64_t stride, std::int64_t ids,
                  const SampleParameters* parameters_B, const std::int64_t* steps_B, std::uint32_t* seen,
                  std::int32_t* out_B) {
  __shared__ Shared shared;
  const std::int64_t b = blockIdx.y;
  std::uint32_t* bits = seen == nullptr ? nullptr : seen + b * ((ids + 31) / 32);
  const std::int64_t step = steps_B[b];
  const bool first = cg::this_cluster().block_rank() == 0 && thread_id() == 0;
  if (step < 0) {
    if (first) out_B[b] = -1;
    return;
  }
  Sampler<T, N> sampler{logits_BV + b * stride, ids, bits, parameters_B[b], shared};
  const std::int32_t id = sampler.choose(step);
  if (!first) return;
  out_B[b] = id;
  if (bits != nullptr && id >= 0) bits[id / 32] |= 1u << (id % 32);
}

}  // namespace

template <class T>
void sample_ids(Stream& stream, View<const T> logits, View<const SampleParameters> parameters,
                View<const std::int64_t> steps, View<std::uint32_t> seen, View<std::int32_t> out) {
  if (logits.dim(0) > 65535) fail("sample_ids: {} sequences, of at most 65535", logits.dim(0));
  const dim3 grid(kBlocks, static_cast<unsigned>(logits.dim(0)));
  const auto run = [&](auto n) {
    sample_kernel<T, decltype(n)::value><<<grid, kSampleThreads, 0, device::native(stream)>>>(
        logits.data, logits.strides[0], logits.dim(1), parameters.data, steps.data,
        seen.ndim() == 0 ? nullptr : seen.data, out.data);
  };
  const bool vectors = device::aligned_rows(logits.data, logits.dim(0) == 1 ? 0 : logits.strides[0]);
  vectors ? run(std::integral_constant<int, device::kVec<T>>()) : run(std::integral_constant<int, 1>());
}

template void sample_ids(Stream&, View<const float>, View<const SampleParameters>, View<const std::int64_t>,
                         View<std::uint32_t>, View<std::int32_t>);
template void sample_ids(Stream&, View<const bf16>, View<const SampleParameters>, View<const std::int64_t>,
                         View<std::uint32_t>, View<std::int32_t>);

}  // namespace ridge::kernels::cuda
