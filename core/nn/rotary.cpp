#include "core/nn/rotary.h"

#include <algorithm>
#include <bit>

namespace ridge::nn {

const RotaryTable::Tables& RotaryTable::get(std::int64_t positions, Device device) {
  const bool dynamic = config_.scaling.kind == kernels::RopeScaling::Kind::dynamic;
  const std::int64_t length =
      dynamic ? std::max(positions, config_.max_position) : 0;  // what frequencies depend on
  const bool fits =
      tables_.cos.defined() && tables_.cos.dim(0) >= positions && tables_.cos.device() == device;
  if (fits && length == made_for_) return tables_;
  const auto rows = static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(positions, 64))));
  const Shape shape{rows, config_.head_dim / 2};
  made_for_ = length;
  if (device == Device::meta) {
    tables_ = {Tensor::empty(shape, DType::f32, device), Tensor::empty(shape, DType::f32, device)};
    return tables_;
  }
  const Tensor cos = Tensor::empty(shape, DType::f32), sin = Tensor::empty(shape, DType::f32);
  const auto inv_freq = kernels::rotary_inv_freq(config_.theta, config_.head_dim, config_.scaling,
                                                 config_.max_position, length);
  const double scale = kernels::rotary_attention_scale(config_.scaling, config_.max_position);
  kernels::rotary_table(inv_freq, scale, 0, cos.view<float>(), sin.view<float>());
  tables_ = {cos.on(device), sin.on(device)};
  return tables_;
}

}  // namespace ridge::nn
