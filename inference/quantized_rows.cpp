#include "inference/quantized_rows.h"

#include <algorithm>

#include "core/base/memory.h"

namespace ridge::inference {
namespace {

constexpr std::int64_t kRows = 16;  // slices begin where kernels may load whole vectors

bool fits(const QuantizedWeight& w, const QuantizedWeight& first) {
  const bool whole = w.first_block == 0 && w.codes.ndim() == 2 &&
                     w.shape[0] % (w.format.tiles ? w.format.group : kRows) == 0;
  const bool alike = w.format == first.format && w.shape[1] == first.shape[1] &&
                     w.row_blocks == first.row_blocks && w.scales.defined() &&
                     w.scales.dtype() == first.scales.dtype();
  return whole && alike && !w.format.double_quant && w.codes.device() != Device::meta;
}

}  // namespace

Tensor join_tensors(const std::vector<Tensor*>& parts) {
  std::vector<Tensor> values;
  for (const Tensor* part : parts) values.push_back(*part);
  Tensor all = Tensor::joined(values);
  if (all.defined()) return all;
  Shape shape = values.front().shape();
  shape[0] = 0;
  for (const Tensor& value : values) shape[0] += value.dim(0);
  const PurposeScope purpose(Purpose::weights);
  all = Tensor::empty(shape, values.front().dtype(), values.front().device());
  std::int64_t row = 0;
  for (Tensor* part : parts) {
    const Tensor slice = all.sliced(0, row, row + part->dim(0));
    slice.copy_from(*part);
    row += part->dim(0);
    *part = slice;
  }
  return all;
}

std::optional<QuantizedWeight> join_rows(const std::vector<QuantizedWeight*>& weights) {
  if (weights.size() < 2) return std::nullopt;
  const QuantizedWeight& first = *weights.front();
  if (!std::all_of(weights.begin(), weights.end(), [&](const QuantizedWeight* w) { return fits(*w, first); }))
    return std::nullopt;
  QuantizedWeight all = first;
  all.shape[0] = 0;
  for (const QuantizedWeight* w : weights) all.shape[0] += w->shape[0];
  const auto joined = [&](Tensor QuantizedWeight::*part) {
    std::vector<Tensor*> parts;
    for (QuantizedWeight* w : weights) parts.push_back(&(w->*part));
    return parts.front()->defined() ? join_tensors(parts) : Tensor();
  };
  all.codes = joined(&QuantizedWeight::codes);
  all.scales = joined(&QuantizedWeight::scales);
  all.zeros = joined(&QuantizedWeight::zeros);
  return all;
}

}  // namespace ridge::inference
