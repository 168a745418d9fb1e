// What attention is asked for, and how a GPU cuts that: shapes, mask, scratch. No data is read here, so that
// meta decides and takes the same as a GPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "core/base/dtype.h"
#include "core/base/memory.h"
#include "core/base/stream.h"
#include "core/base/view.h"
#include "kernels/attention.h"

namespace ridge::kernels::attention_detail {

/// The keys begin <= j < end.
struct KeyRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// Extents and the mask; no data.
struct Problem {
  std::int64_t batch, queries, keys, heads, groups, head_dim;
  AttentionOptions options;  // q_offset resolved

  std::int64_t rows() const { return heads / std::max<std::int64_t>(1, groups) * queries; }
  std::int64_t head_of(std::int64_t g, std::int64_t row) const {
    return g * (heads / groups) + row / queries;
  }
  KeyRange visible(std::int64_t row) const {
    const std::int64_t position = options.q_offset + row % queries;
    const std::int64_t end = options.causal ? std::clamp<std::int64_t>(position + 1, 0, keys) : keys;
    const std::int64_t begin = options.window > 0 ? position + 1 - options.window : 0;
    return {std::clamp<std::int64_t>(begin, 0, end), end};
  }
  /// The keys that some query sees: the visible ranges move with the position, so this is first to last.
  KeyRange span() const {
    if (queries == 0) return {};
    const KeyRange first = visible(0), last = visible(queries - 1);
    return {std::min(first.begin, last.begin), last.end};
  }
};

/// Checks shapes, strides and options; an Error names what is wrong.
template <class T>
Problem problem_of(const View<const T>& q_BTHD, const View<const T>& k_BSGD, const View<const T>& v_BSGD,
                   const AttentionOptions& options);

inline constexpr std::int64_t kDeviceHeadDims = 256;  // the most that the GPU's own kernels take

/// Query rows and keys of a tile there: four tiles of this head dim fit shared memory.
constexpr int tile_rows(std::int64_t accumulator_bytes, std::int64_t head_dim) {
  const std::int64_t padded = head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
  const std::int64_t fit = 32768 / (padded * accumulator_bytes);
  return static_cast<int>(std::min<std::int64_t>(accumulator_bytes == 8 ? 32 : 64, fit));
}

/// How the GPU's own forward kernels cut the work: parts of the keys are joined in order. The same on every
/// GPU, so that results are too.
struct ForwardCut {
  bool decode = false;         // few queries: dot products along the head dim beat tiles
  std::int64_t rows = 0;       // query rows a block
  std::int64_t parts = 1;      // of the keys
  std::int64_t part_keys = 0;  // keys a part
  std::int64_t bytes = 0;      // of the parts' results, if there are several
};
template <class T>
ForwardCut forward_cut(const Problem& problem);

/// Memory that a caller has at hand.
struct Workspace {
  void* data = nullptr;
  std::int64_t bytes = 0;
};

/// How many batch entries and key-value heads cuDNN takes at once, and the workspace that it then needs. Its
/// deterministic backward keeps the score gradients: quadratic in T, so large ones go in several calls.
struct FusedCut {
  std::int64_t batch = 0, groups = 0;
  std::int64_t bytes = 0;
};
/// Whether cuDNN may take the problem with these operands; it may still refuse. bf16 alone.
template <class T>
bool fused_fits(const Problem& problem, std::initializer_list<View<const T>> operands);
/// Whether a length is worth a plan where no training tells that it is.
bool comes_again(const Problem& problem);
/// `batch` is 0 where even one key-value head needs too much.
FusedCut fused_backward_cut(const Problem& problem);

/// Bytes that the GPU's kernels take beside their operands.
template <class T>
std::int64_t forward_scratch(const Problem& problem, bool fused);
template <class T>
std::int64_t backward_scratch(const Problem& problem, bool fused);

/// Memory of the device that the stream runs or plans for; none for the CPU.
class DeviceScratch {
 public:
  DeviceScratch(const Stream& stream, std::int64_t bytes) {
    const PurposeScope purpose(Purpose::workspace);
    if (bytes > 0 && planned_device(stream.device()) == Device::cuda)
      storage_.emplace(stream.device(), bytes);
  }
  Workspace get() const {
    if (!storage_.has_value()) return {};
    return {storage_->data(), storage_->bytes()};
  }

 private:
  std::optional<Storage> storage_;
};

}  // namespace ridge::kernels::attention_detail
