// Compiled without contraction to FMA: a product that meets an addition is rounded first, as on a GPU.
#include "kernels/quantize_nested.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/threads.h"
#include "kernels/formats/codes.h"

namespace ridge::kernels {
namespace {

// One of the points that cut [0.1, 1] into `parts`, as torch.linspace has them: in f32, with FMA.
float boundary(int i, int parts) {
  const float step = (1.0f - 0.1f) / static_cast<float>(parts);
  return i < (parts + 1) / 2 ? std::fma(step, static_cast<float>(i), 0.1f)
                             : std::fma(-step, static_cast<float>(parts - i), 1.0f);
}

std::array<float, 256> make_dynamic_map() {
  constexpr std::array<float, 7> kDecades{1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  std::array<float, 256> map{};
  std::size_t at = 0;
  for (int e = 0; e < 7; ++e) {
    for (int i = 0; i < 1 << e; ++i) {
      const float middle = (boundary(i, 1 << e) + boundary(i + 1, 1 << e)) / 2.0f;
      const float value = kDecades[static_cast<std::size_t>(e)] * middle;
      map[at++] = value;
      map[at++] = -value;
    }
  }
  map[at++] = 0.0f;
  map[at++] = 1.0f;
  std::sort(map.begin(), map.end());
  return map;
}

double sum_of_part(const float* x, std::int64_t n) {
  double lane[kMeanLanes] = {};
  for (std::int64_t begin = 0; begin < n; begin += kMeanLanes) {
    const std::int64_t here = std::min<std::int64_t>(kMeanLanes, n - begin);
    for (std::int64_t k = 0; k < here; ++k) lane[k] += static_cast<double>(x[begin + k]);
  }
  for (int width = kMeanLanes / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) lane[k] += lane[k + width];
  }
  return lane[0];
}

float mean_of(const float* x, std::int64_t n) {
  std::vector<double> sums(static_cast<std::size_t>((n + kMeanPart - 1) / kMeanPart));
  parallel_for(static_cast<std::int64_t>(sums.size()), 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p)
      sums[static_cast<std::size_t>(p)] =
          sum_of_part(x + p * kMeanPart, std::min(kMeanPart, n - p * kMeanPart));
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return static_cast<float>(total / static_cast<double>(n));
}

}  // namespace

const std::array<float, 256>& dynamic_map() {
  static const std::array<float, 256> kMap = make_dynamic_map();
  return kMap;
}

void quantize_scales(const float* scales_B, std::int64_t count, const QuantTarget& out) {
  const std::array<float, 256>& map = dynamic_map();
  std::copy(map.begin(), map.end(), out.nested_map);
  std::array<float, 255> thresholds{};
  for (std::size_t i = 0; i < thresholds.size(); ++i) thresholds[i] = map_threshold(map[i], map[i + 1]);
  const float offset = count == 0 ? 0.0f : mean_of(scales_B, count);
  *out.nested_offset = offset;
  const auto encode_block = [&](std::int64_t block) {
    const float* x = scales_B + block * kNestedBlock;
    std::uint8_t* codes = out.scale_codes + block * kNestedBlock;
    const std::int64_t n = std::min(kNestedBlock, count - block * kNestedBlock);
    std::uint32_t most = 0;
    for (std::int64_t i = 0; i < n; ++i) most = std::max(most, magnitude_bits(x[i] - offset));
    const float inverse = inverse_of(std::bit_cast<float>(most));
    out.nested_scales[block] = std::bit_cast<float>(most);
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i)
      codes[i] = static_cast<std::uint8_t>(nearest_in_map(thresholds.data(), (x[i] - offset) * inverse));
  };
  parallel_for((count + kNestedBlock - 1) / kNestedBlock, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) encode_block(block);
  });
}

void decode_scales(const QuantView& w, std::int64_t begin, std::int64_t end, float* out) {
  const float offset = *w.nested_offset;
  for (std::int64_t i = begin; i < end;) {
    const std::int64_t row = w.row_blocks > 0 ? i / (w.cols / w.format.group) : 0;
    const std::int64_t each = w.row_blocks > 0 ? w.cols / w.format.group : end;
    const std::int64_t stop = std::min(end, (row + 1) * each);
    const std::int64_t shift = w.first_block + row * (w.row_blocks - each);  // to a place in the whole matrix
    for (; i < stop; ++i) {
      const float part = w.nested_map[w.scale_codes[i]] * w.nested_scales[(i + shift) / kNestedBlock];
      *out++ = part + offset;
    }
  }
}

}  // namespace ridge::kernels
