// Frequencies and tables: plain host arithmetic, rounded to f32 where transformers' tensors are f32.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/base/error.h"
#include "kernels/rotary.h"

namespace ridge::kernels {
namespace {

using Kind = RopeScaling::Kind;

void require_positive(const char* field, double value) {
  require(std::isfinite(value) && value > 0, "rope scaling: {} is {}; it must be a positive number", field,
          value);
}

void validate(double theta, std::int64_t head_dim, const RopeScaling& s, std::int64_t max_position) {
  require(std::isfinite(theta) && theta > 0, "rope_theta is {}; it must be a positive number", theta);
  require(head_dim > 0 && head_dim % 2 == 0, "rotary embedding needs an even head_dim, not {}", head_dim);
  if (s.kind == Kind::none) return;
  if (s.kind != Kind::yarn || s.factor != 0) require_positive("factor", s.factor);
  if (s.kind == Kind::dynamic) {
    require(head_dim > 2, "rope scaling: dynamic needs a head_dim above 2, not {}", head_dim);
    require_positive("max_position_embeddings", static_cast<double>(max_position));
  }
  if (s.kind != Kind::yarn && s.kind != Kind::llama3) return;
  require_positive("original_max_position_embeddings", s.original_max_position);
  if (s.kind == Kind::yarn) {
    require_positive("beta_fast", s.beta_fast);
    require_positive("beta_slow", s.beta_slow);
    require(theta > 1, "rope scaling: yarn needs a rope_theta above 1, not {}", theta);
    return;
  }
  require_positive("low_freq_factor", s.low_freq_factor);
  require(std::isfinite(s.high_freq_factor) && s.high_freq_factor > s.low_freq_factor,
          "rope scaling: high_freq_factor is {}; it must be above low_freq_factor, {}", s.high_freq_factor,
          s.low_freq_factor);
}

// The f32 nearest to base^exponent, both taken as f32.
float pow_f32(float base, float exponent) {
  return static_cast<float>(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
}

// base^(2i/D) for i < D/2.
std::vector<float> wave_numbers(float base, std::int64_t head_dim) {
  std::vector<float> result;
  for (std::int64_t i = 0; i < head_dim; i += 2) {
    result.push_back(pow_f32(base, static_cast<float>(i) / static_cast<float>(head_dim)));
  }
  return result;
}

float dynamic_base(double theta, std::int64_t head_dim, const RopeScaling& s, std::int64_t max_position,
                   std::int64_t sequence_length) {
  if (sequence_length <= max_position) return static_cast<float>(theta);
  const auto stretched = static_cast<float>(s.factor) * static_cast<float>(sequence_length);
  const float ratio = stretched / static_cast<float>(max_position) - static_cast<float>(s.factor - 1);
  const double dim = static_cast<double>(head_dim);
  return pow_f32(ratio, static_cast<float>(dim / (dim - 2))) * static_cast<float>(theta);
}

float llama3_frequency(float inv_freq, const RopeScaling& s) {
  const auto factor = static_cast<float>(s.factor), low = static_cast<float>(s.low_freq_factor);
  const float wavelength = (1.0f / inv_freq) * static_cast<float>(2 * std::numbers::pi);
  if (wavelength > static_cast<float>(s.original_max_position / s.low_freq_factor)) return inv_freq / factor;
  if (wavelength < static_cast<float>(s.original_max_position / s.high_freq_factor)) return inv_freq;
  const float turns = (1.0f / wavelength) * static_cast<float>(s.original_max_position);
  const float smooth = (turns - low) / static_cast<float>(s.high_freq_factor - s.low_freq_factor);
  return (1 - smooth) * inv_freq / factor + smooth * inv_freq;
}

double yarn_factor(const RopeScaling& s, std::int64_t max_position) {
  if (s.factor != 0) return s.factor;
  const double factor = static_cast<double>(max_position) / s.original_max_position;
  require_positive("factor", factor);
  return factor;
}

struct Ramp {
  double low;   // dim up to which frequencies stay
  double high;  // dim from which they are divided by the factor
};

// The dims that turn beta_fast and beta_slow times over the original length.
Ramp yarn_ramp(double theta, std::int64_t head_dim, const RopeScaling& s) {
  const double dim = static_cast<double>(head_dim);
  const auto at = [&](double rotations) {
    return dim * std::log(s.original_max_position / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  };
  double low = at(s.beta_fast), high = at(s.beta_slow);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  return {low, low == high ? high + 0.001 : high};
}

float yarn_frequency(float wave_number, std::int64_t i, double factor, const Ramp& ramp) {
  const float position =
      (static_cast<float>(i) - static_cast<float>(ramp.low)) / static_cast<float>(ramp.high - ramp.low);
  const float keep = 1 - std::clamp(position, 0.0f, 1.0f);
  const float interpolated = 1.0f / (static_cast<float>(factor) * wave_number);
  return interpolated * (1 - keep) + (1.0f / wave_number) * keep;
}

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

}  // namespace

std::vector<double> rotary_inv_freq(double theta, std::int64_t head_dim, const RopeScaling& scaling,
                                    std::int64_t max_position, std::int64_t sequence_length) {
  validate(theta, head_dim, scaling, max_position);
  const bool dynamic = scaling.kind == Kind::dynamic;
  const float base = dynamic ? dynamic_base(theta, head_dim, scaling, max_position, sequence_length)
                             : static_cast<float>(theta);
  const double factor = scaling.kind == Kind::yarn ? yarn_factor(scaling, max_position) : scaling.factor;
  const Ramp ramp = scaling.kind == Kind::yarn ? yarn_ramp(theta, head_dim, scaling) : Ramp{};
  std::vector<double> result;
  for (const float wave_number : wave_numbers(base, head_dim)) {
    float inv_freq = 1.0f / wave_number;
    if (scaling.kind == Kind::linear) inv_freq /= static_cast<float>(factor);
    if (scaling.kind == Kind::llama3) inv_freq = llama3_frequency(inv_freq, scaling);
    if (scaling.kind == Kind::yarn) {
      inv_freq = yarn_frequency(wave_number, static_cast<std::int64_t>(result.size()), factor, ramp);
    }
    result.push_back(static_cast<double>(inv_freq));
  }
  return result;
}

double rotary_attention_scale(const RopeScaling& scaling, std::int64_t max_position) {
  if (scaling.kind != Kind::yarn) return 1.0;
  if (scaling.attention_factor != 0) {
    require_positive("attention_factor", scaling.attention_factor);
    return scaling.attention_factor;
  }
  const double factor = yarn_factor(scaling, max_position);
  if (scaling.mscale == 0 || scaling.mscale_all_dim == 0) return yarn_mscale(factor, 1);
  return yarn_mscale(factor, scaling.mscale) / yarn_mscale(factor, scaling.mscale_all_dim);
}

void rotary_table(std::span<const double> inv_freq, double scale, std::int64_t first_position,
                  View<float> cos_PD2, View<float> sin_PD2) {
  check(cos_PD2.ndim() == 2 && cos_PD2.shape == sin_PD2.shape, "rotary tables are [P, D/2]");
  check(cos_PD2.dim(1) == static_cast<std::int64_t>(inv_freq.size()),
        "rotary tables have a column a frequency");
  const auto scale_f32 = static_cast<float>(scale);
  for (std::int64_t p = 0; p < cos_PD2.dim(0); ++p) {
    const auto position = static_cast<float>(first_position + p);
    for (std::int64_t i = 0; i < cos_PD2.dim(1); ++i) {
      const float angle = position * static_cast<float>(inv_freq[static_cast<std::size_t>(i)]);
      cos_PD2(p, i) = static_cast<float>(std::cos(static_cast<double>(angle))) * scale_f32;
      sin_PD2(p, i) = static_cast<float>(std::sin(static_cast<double>(angle))) * scale_f32;
    }
  }
}

}  // namespace ridge::kernels
