// Rotary position embedding (Su et al., RoFormer, 2021), half-split pairs as Hugging Face models use them,
// and the frequency rules of transformers' modeling_rope_utils: linear, dynamic NTK, YaRN (Peng et al.,
// 2023), llama3.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// How the frequencies of a model are stretched beyond its first training length. Zero means absent.
struct RopeScaling {
  enum class Kind : std::uint8_t { none, linear, dynamic, yarn, llama3 };
  Kind kind = Kind::none;
  double factor = 0;                 // yarn: absent means max_position / original_max_position
  double low_freq_factor = 0;        // llama3
  double high_freq_factor = 0;       // llama3
  double original_max_position = 0;  // llama3, yarn: tokens
  double beta_fast = 32;             // yarn: rotations at which interpolation begins
  double beta_slow = 1;              // yarn: rotations at which interpolation is whole
  double attention_factor = 0;       // yarn: absent means from mscale and mscale_all_dim, or from factor
  double mscale = 0;                 // yarn
  double mscale_all_dim = 0;         // yarn
  bool truncate = true;              // yarn: the ramp's ends become whole dims
};

/// The head_dim / 2 angles per position. Every value is rounded to f32 at each step as transformers does, so
/// that tables agree. `max_position` is the config's max_position_embeddings; `sequence_length` matters to
/// dynamic only, which stretches beyond max_position. A UserError names a value that has no meaning.
std::vector<double> rotary_inv_freq(double theta, std::int64_t head_dim, const RopeScaling& scaling,
                                    std::int64_t max_position, std::int64_t sequence_length);

/// The factor on cos and sin: 1 except for yarn.
double rotary_attention_scale(const RopeScaling& scaling, std::int64_t max_position = 0);

/// Fills row p of the tables [P, D/2] with scale * cos and sin of f32(first_position + p) * f32(inv_freq):
/// the product is rounded to f32 as in transformers, its cos and sin are not approximated further.
void rotary_table(std::span<const double> inv_freq, double scale, std::int64_t first_position,
                  View<float> cos_PD2, View<float> sin_PD2);

/// Rotates the pairs (x[j], x[j + D/2]) of every head by the angle in row positions[b, t] of the tables, or
/// row t where `positions_BT` is an empty View (no dims). `inverse` rotates back: the vjp. y may be x itself.
/// x, y: [B, T, H, D], any strides with a dense last dim. Errors: shapes that differ; on the CPU a position
/// outside the table, whose rows of y a GPU leaves as they are.
template <class T>
void rotary(Stream& stream, View<const T> x_BTHD, View<const float> cos_PD2, View<const float> sin_PD2,
            View<const std::int32_t> positions_BT, View<T> y_BTHD, bool inverse = false);

/// What `launch` runs on a GPU; arguments are checked already (rotary.cu).
namespace cuda {
template <class T>
void rotary(Stream& stream, View<const T> x_BTHD, View<const float> cos_PD2, View<const float> sin_PD2,
            View<const std::int32_t> positions_BT, View<T> y_BTHD, bool inverse);
}  // namespace cuda

}  // namespace ridge::kernels
