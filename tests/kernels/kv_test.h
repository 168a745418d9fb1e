// A KV cache in memory that the device under test can address, and what it holds, in f64.
#pragma once

#include "kernels/kv_cache.h"
#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {

inline constexpr KvFormat kKvFormats[] = {KvFormat::f32, KvFormat::bf16, KvFormat::fp8, KvFormat::int8};

/// e4m3fn by its definition.
inline double e4m3(std::uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::nan("");
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

class Cache {
 public:
  Cache(KvFormat format, std::int64_t batch, std::int64_t capacity, std::int64_t heads, std::int64_t dim)
      : format_(format), batch_(batch), capacity_(capacity), heads_(heads), dim_(dim) {
    const auto rows = static_cast<std::size_t>(batch * capacity * heads);
    for (auto* x : {&keys_, &values_})
      x->assign(rows * static_cast<std::size_t>(dim * element_bytes(format)), 0x5A);
    for (auto* x : {&key_scales_, &value_scales_}) x->assign(has_scales(format) ? rows : 0, -7.0f);
  }

  KvView view() {
    const bool scales = has_scales(format_);
    return {format_,
            keys_.data(),
            values_.data(),
            scales ? key_scales_.data() : nullptr,
            scales ? value_scales_.data() : nullptr,
            batch_,
            capacity_,
            heads_,
            dim_};
  }
  /// Bytes and scales that any encoder could have written; rows beyond what is used are NaN where they can
  /// be.
  Cache& randomize(std::uint64_t seed) {
    std::mt19937_64 engine(seed);
    std::uniform_real_distribution<float> draw(-2, 2), scale(0.001f, 0.01f);
    for (auto* x : {&keys_, &values_}) {
      for (std::size_t i = 0; i < x->size() / static_cast<std::size_t>(element_bytes(format_)); ++i) {
        const float value = draw(engine);
        if (format_ == KvFormat::f32) std::memcpy(x->data() + 4 * i, &value, 4);
        const bf16 half(value);
        if (format_ == KvFormat::bf16) std::memcpy(x->data() + 2 * i, &half, 2);
        auto code = static_cast<std::uint8_t>(engine());
        if (format_ == KvFormat::fp8 && (code & 0x7F) == 0x7F) code ^= 1;
        if (has_scales(format_)) (*x)[i] = code;
      }
    }
    for (auto* x : {&key_scales_, &value_scales_}) {
      for (float& s : *x) s = scale(engine) * (format_ == KvFormat::int8 ? 2.0f : 1.0f);
    }
    return *this;
  }

  double key(std::int64_t b, std::int64_t s, std::int64_t g, std::int64_t d) const {
    return value_of(keys_, key_scales_, b, s, g, d);
  }
  double value(std::int64_t b, std::int64_t s, std::int64_t g, std::int64_t d) const {
    return value_of(values_, value_scales_, b, s, g, d);
  }
  const Memory<std::uint8_t>& key_bytes() const { return keys_; }
  const Memory<std::uint8_t>& value_bytes() const { return values_; }
  Memory<std::uint8_t>& key_bytes() { return keys_; }
  Memory<std::uint8_t>& value_bytes() { return values_; }
  const Memory<float>& key_scales() const { return key_scales_; }
  const Memory<float>& value_scales() const { return value_scales_; }
  Memory<float>& key_scales() { return key_scales_; }

 private:
  double value_of(const Memory<std::uint8_t>& x, const Memory<float>& scales, std::int64_t b, std::int64_t s,
                  std::int64_t g, std::int64_t d) const {
    const auto row = static_cast<std::size_t>((b * capacity_ + s) * heads_ + g);
    const std::size_t at = row * static_cast<std::size_t>(dim_) + static_cast<std::size_t>(d);
    if (format_ == KvFormat::f32) return at_as<float>(x, at);
    if (format_ == KvFormat::bf16) return static_cast<double>(static_cast<float>(at_as<bf16>(x, at)));
    const double code = format_ == KvFormat::fp8 ? e4m3(x[at]) : static_cast<std::int8_t>(x[at]);
    return code * static_cast<double>(scales[row]);
  }
  template <class K>
  static K at_as(const Memory<std::uint8_t>& x, std::size_t at) {
    K value;
    std::memcpy(&value, x.data() + at * sizeof(K), sizeof(K));
    return value;
  }

  KvFormat format_;
  std::int64_t batch_, capacity_, heads_, dim_;
  Memory<std::uint8_t> keys_, values_;
  Memory<float> key_scales_, value_scales_;
};

}  // namespace ridge::kernels::testing
