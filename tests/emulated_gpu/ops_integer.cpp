#include <algorithm>

#include "tests/emulated_gpu/ops.h"

namespace ridge::emulated {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

// Sums and products wrap.
template <class T>
constexpr auto kAdd =
    [](T a, T b) { return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b)); };
template <class T>
constexpr auto kSub =
    [](T a, T b) { return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b)); };
template <class T>
constexpr auto kMul =
    [](T a, T b) { return static_cast<T>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b)); };
__extension__ typedef __int128 Signed128;
__extension__ typedef unsigned __int128 Unsigned128;
template <class T>
constexpr auto kHigh = [](T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, Signed128, Unsigned128>;
  return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> (8 * sizeof(T)));
};
template <class T>
constexpr auto kDivide = [](T a, T b) { return b == 0 ? static_cast<T>(~T{0}) : static_cast<T>(a / b); };
template <class T>
constexpr auto kRemainder = [](T a, T b) { return b == 0 ? a : static_cast<T>(a % b); };

template <class T>
void shift_left(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const auto by = w.get<std::uint32_t>(i.from[1], l);
    const auto a = w.get<Unsigned<T>>(i.from[0], l);
    w.set<T>(i.to[0], l, by >= 8 * sizeof(T) ? T{0} : static_cast<T>(std::uint64_t{a} << by));
  });
}
template <class T>
void shift_right(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const auto by = std::min<std::uint32_t>(w.get<std::uint32_t>(i.from[1], l), 8 * sizeof(T));
    const T a = w.get<T>(i.from[0], l);
    const T out = by == 8 * sizeof(T) ? static_cast<T>(a < 0 ? -1 : 0) : static_cast<T>(a >> by);
    w.set<T>(i.to[0], l, out);
  });
}
template <class T, class R>
void multiply_wide(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    R value = static_cast<R>(w.get<T>(i.from[0], l)) * static_cast<R>(w.get<T>(i.from[1], l));
    if (i.from.size() > 2) value = static_cast<R>(value + w.get<R>(i.from[2], l));
    w.set<R>(i.to[0], l, value);
  });
}
Handler wide(std::string_view type) {
  if (type == "s32") return multiply_wide<std::int32_t, std::int64_t>;
  if (type == "u32") return multiply_wide<std::uint32_t, std::uint64_t>;
  if (type == "s16") return multiply_wide<std::int16_t, std::int32_t>;
  if (type == "u16") return multiply_wide<std::uint16_t, std::uint32_t>;
  return nullptr;
}
template <class T>
void multiply_add(Warp& w, const Instruction& i, Mask mask) {
  ternary<T, T, [](T a, T b, T c) { return kAdd<T>(kMul<T>(a, b), c); }>(w, i, mask);
}

template <class T>
void insert_bits(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const auto at = w.get<std::uint32_t>(i.from[2], l) & 0xFF,
               count = w.get<std::uint32_t>(i.from[3], l) & 0xFF;
    T ones = count >= 8 * sizeof(T) ? ~T{0} : static_cast<T>((T{1} << count) - 1);
    ones = at >= 8 * sizeof(T) ? T{0} : static_cast<T>(ones << at);
    const T a = at >= 8 * sizeof(T) ? T{0} : static_cast<T>(w.get<T>(i.from[0], l) << at);
    w.set<T>(i.to[0], l, (a & ones) | (w.get<T>(i.from[1], l) & ~ones));
  });
}
template <class T>
void extract_bits(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const auto at = w.get<std::uint32_t>(i.from[1], l) & 0xFF,
               count = w.get<std::uint32_t>(i.from[2], l) & 0xFF;
    constexpr unsigned kBits = 8 * sizeof(T);
    if (count == 0 || at >= kBits)
      return w.set<T>(i.to[0], l, count != 0 && w.get<T>(i.from[0], l) < 0 ? T(-1) : T{0});
    const unsigned taken = std::min(count, kBits - at);
    const auto up = static_cast<Unsigned<T>>(w.get<Unsigned<T>>(i.from[0], l) << (kBits - at - taken));
    w.set<T>(i.to[0], l, static_cast<T>(static_cast<T>(up) >> (kBits - taken)));
  });
}
void logic_of_three(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const auto a = w.get<std::uint32_t>(i.from[0], l), b = w.get<std::uint32_t>(i.from[1], l),
               c = w.get<std::uint32_t>(i.from[2], l), table = w.get<std::uint32_t>(i.from[3], l);
    std::uint32_t out = 0;
    for (std::uint32_t row = 0; row < 8; ++row) {
      if ((table >> row & 1) != 0)
        out |= ((row & 4) != 0 ? a : ~a) & ((row & 2) != 0 ? b : ~b) & ((row & 1) != 0 ? c : ~c);
    }
    w.set(i.to[0], l, out);
  });
}
void permute_bytes(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const std::uint64_t both =
        std::uint64_t{w.get<std::uint32_t>(i.from[1], l)} << 32 | w.get<std::uint32_t>(i.from[0], l);
    const auto pick = w.get<std::uint32_t>(i.from[2], l);
    std::uint32_t out = 0;
    for (unsigned k = 0; k < 4; ++k) {
      const unsigned one = pick >> (4 * k) & 0xF;
      auto byte = static_cast<std::uint8_t>(both >> (8 * (one & 7)));
      if ((one & 8) != 0) byte = (byte & 0x80) != 0 ? 0xFF : 0;
      out |= std::uint32_t{byte} << (8 * k);
    }
    w.set(i.to[0], l, out);
  });
}
// shf.l and shf.r, wrap and clamp.
template <bool kLeft, bool kWrap>
void funnel(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const std::uint64_t both =
        std::uint64_t{w.get<std::uint32_t>(i.from[1], l)} << 32 | w.get<std::uint32_t>(i.from[0], l);
    const auto asked = w.get<std::uint32_t>(i.from[2], l);
    const std::uint32_t by = kWrap ? asked & 31 : std::min<std::uint32_t>(asked, 32);
    const std::uint64_t out = kLeft ? (by == 0 ? both : both << by) >> 32 : both >> by;
    w.set(i.to[0], l, static_cast<std::uint32_t>(out));
  });
}
void bit_mask(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const auto at = w.get<std::uint32_t>(i.from[0], l), count = w.get<std::uint32_t>(i.from[1], l);
    const std::uint64_t ones = count >= 32 ? 0xFFFFFFFFu : (std::uint64_t{1} << count) - 1;
    w.set(i.to[0], l, at >= 32 ? 0u : static_cast<std::uint32_t>(ones << at));
  });
}

constexpr auto kLeastOf = [](auto a, auto b) { return b < a ? b : a; };
constexpr auto kMostOf = [](auto a, auto b) { return a < b ? b : a; };

template <class T>
Handler arithmetic(const Opcode& op) {
  const std::string& n = op.name;
  if (n == "add") return binary<T, T, kAdd<T>>;
  if (n == "sub") return binary<T, T, kSub<T>>;
  if (n == "mul") return op.has("hi") ? binary<T, T, kHigh<T>> : binary<T, T, kMul<T>>;
  if (n == "mad" && op.has("lo")) return multiply_add<T>;
  if (n == "div") return binary<T, T, kDivide<T>>;
  if (n == "rem") return binary<T, T, kRemainder<T>>;
  if (n == "min") return binary<T, T, kLeastOf>;
  if (n == "max") return binary<T, T, kMostOf>;
  if (n == "neg") return unary<T, T, [](T a) { return kSub<T>(T{0}, a); }>;
  if (n == "abs") return unary<T, T, [](T a) { return a < T{0} ? kSub<T>(T{0}, a) : a; }>;
  if (n == "and") return binary<T, T, [](T a, T b) { return static_cast<T>(a & b); }>;
  if (n == "or") return binary<T, T, [](T a, T b) { return static_cast<T>(a | b); }>;
  if (n == "xor") return binary<T, T, [](T a, T b) { return static_cast<T>(a ^ b); }>;
  if (n == "not") return unary<T, T, [](T a) { return static_cast<T>(~a); }>;
  if (n == "shl") return shift_left<T>;
  if (n == "shr") return shift_right<T>;
  if constexpr (sizeof(T) >= 4) {
    if (n == "popc")
      return unary<std::uint32_t, T, [](T a) { return std::popcount(static_cast<Unsigned<T>>(a)); }>;
    if (n == "clz")
      return unary<std::uint32_t, T, [](T a) { return std::countl_zero(static_cast<Unsigned<T>>(a)); }>;
    if (n == "bfi") return insert_bits<Unsigned<T>>;
    if (n == "bfe") return extract_bits<T>;
  }
  return nullptr;
}

Handler predicates(const std::string& n) {
  if (n == "and") return binary<std::uint8_t, std::uint8_t, [](int a, int b) { return a & b & 1; }>;
  if (n == "or") return binary<std::uint8_t, std::uint8_t, [](int a, int b) { return (a | b) & 1; }>;
  if (n == "xor") return binary<std::uint8_t, std::uint8_t, [](int a, int b) { return (a ^ b) & 1; }>;
  if (n == "not") return unary<std::uint8_t, std::uint8_t, [](int a) { return (a & 1) ^ 1; }>;
  return nullptr;
}

}  // namespace

bool choose_integer(const Opcode& op, Instruction& i) {
  if (op.name == "lop3") return i.run = logic_of_three, true;
  if (op.name == "prmt") return i.run = permute_bytes, op.parts.size() == 1;
  if (op.name == "bmsk") return i.run = bit_mask, true;
  if (op.name == "shf") {
    const bool wraps = op.has("wrap");
    if (op.has("l")) return i.run = wraps ? funnel<true, true> : funnel<true, false>, true;
    return i.run = wraps ? funnel<false, true> : funnel<false, false>, true;
  }
  if (op.type() == "pred") return (i.run = predicates(op.name)) != nullptr;
  if (op.has("wide")) return (i.run = wide(op.type())) != nullptr;
  if (op.has("sat") || op.has("cc")) return false;
  i.run = for_integer(op.type(), [&]<class T>() { return arithmetic<T>(op); });
  return i.run != nullptr;
}

}  // namespace ridge::emulated
