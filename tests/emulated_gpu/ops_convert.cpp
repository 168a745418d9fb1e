// Moves, conversions, and addresses of one space as those of another.
#include <cmath>

#include "kernels/formats/codes.h"
#include "tests/emulated_gpu/floats.h"
#include "tests/emulated_gpu/ops.h"

namespace ridge::emulated {
namespace {

void move(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) { w.set(i.to[0], l, w.get<std::uint64_t>(i.from[0], l)); });
}
// Between one register and several, `count` bytes each.
void pack(Warp& w, const Instruction& i, Mask mask) {
  const auto bits = static_cast<unsigned>(8 * i.count);
  const std::uint64_t part = (std::uint64_t{1} << bits) - 1;
  each(mask, [&](int l) {
    std::uint64_t all = 0;
    for (std::size_t k = 0; k < i.from.size(); ++k)
      all |= (w.get<std::uint64_t>(i.from[k], l) & (i.from.size() > 1 ? part : ~std::uint64_t{0}))
             << (bits * k % 64);
    for (std::size_t k = 0; k < i.to.size(); ++k)
      w.set(i.to[k], l, i.to.size() > 1 ? all >> (bits * k) & part : all);
  });
}

// To whole numbers values stop at the ends, and NaN is 0.
template <class R, class A>
R to_integer(A x, char rounding) {
  const A whole = rounding == 'n'
                      ? std::nearbyint(x)
                      : (rounding == 'm' ? std::floor(x) : (rounding == 'p' ? std::ceil(x) : std::trunc(x)));
  if (std::isnan(x)) return 0;
  using Limits = std::numeric_limits<R>;
  if (whole >= static_cast<A>(Limits::max())) return Limits::max();
  if (whole <= static_cast<A>(Limits::min())) return Limits::min();
  return static_cast<R>(whole);
}

template <class R, class A, char kRounding>
void convert(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const A x = w.get<A>(i.from[0], l);
    if constexpr (std::is_integral_v<R> && std::is_floating_point_v<A>) {
      w.set(i.to[0], l, to_integer<R>(x, kRounding));
    } else if constexpr (std::is_floating_point_v<R> && std::is_same_v<R, A> && kRounding != ' ') {
      w.set(i.to[0], l,
            kRounding == 'n'
                ? std::nearbyint(x)
                : (kRounding == 'm' ? std::floor(x) : (kRounding == 'p' ? std::ceil(x) : std::trunc(x))));
    } else {
      w.set(i.to[0], l, static_cast<R>(x));
    }
  });
}
template <class R, class A>
Handler rounded(const Opcode& op) {
  if (op.has("rni")) return convert<R, A, 'n'>;
  if (op.has("rmi")) return convert<R, A, 'm'>;
  if (op.has("rpi")) return convert<R, A, 'p'>;
  if (op.has("rzi")) return convert<R, A, 'z'>;
  return convert<R, A, ' '>;
}
template <class R>
Handler from_type(const Opcode& op, std::string_view from) {
  const auto make = [&]<class A>() { return rounded<R, A>(op); };
  const Handler integer = for_integer(from, make);
  return integer != nullptr ? integer : for_float(from, make);
}

void saturate(Warp& w, const Instruction& i, Mask mask) {
  unary<float, float, [](float x) { return std::isnan(x) ? 0.0f : std::fmin(std::fmax(x, 0.0f), 1.0f); }>(
      w, i, mask);
}

// 16-bit floats; the pair's first operand is its upper half.
template <auto kTo>
void narrow(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) { w.set<std::uint16_t>(i.to[0], l, kTo(w.get<float>(i.from[0], l))); });
}
template <auto kTo>
void narrow_pair(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const std::uint32_t high = kTo(w.get<float>(i.from[0], l)), low = kTo(w.get<float>(i.from[1], l));
    w.set<std::uint32_t>(i.to[0], l, high << 16 | low);
  });
}
template <auto kFrom>
void widen(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) { w.set<float>(i.to[0], l, kFrom(w.get<std::uint16_t>(i.from[0], l))); });
}

// Two of e4m3 to f16; the first in the lower half.
void widen_e4m3_pair(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const std::uint32_t codes = w.get<std::uint16_t>(i.from[0], l);
    const std::uint32_t low = to_f16(kernels::fp8_value(codes & 0xFFu)),
                        high = to_f16(kernels::fp8_value(codes >> 8));
    w.set<std::uint32_t>(i.to[0], l, high << 16 | low);
  });
}

Handler conversion(const Opcode& op, const std::string& to, const std::string& from) {
  if (to == "f16x2" && from == "e4m3x2") return widen_e4m3_pair;
  if (op.has("sat")) return to == "f32" && from == "f32" ? saturate : nullptr;
  if (op.has("rz") || op.has("rm") || op.has("rp") || op.has("relu")) return nullptr;
  if (from == "f32") {
    if (to == "bf16") return narrow<to_bf16>;
    if (to == "f16") return narrow<to_f16>;
    if (to == "bf16x2") return narrow_pair<to_bf16>;
    if (to == "f16x2") return narrow_pair<to_f16>;
  }
  if (to == "f32" && from == "bf16") return widen<from_bf16>;
  if (to == "f32" && from == "f16") return widen<from_f16>;
  const auto make = [&]<class R>() { return from_type<R>(op, from); };
  const Handler integer = for_integer(to, make);
  return integer != nullptr ? integer : for_float(to, make);
}

std::uint64_t shared_base(const Warp& w) { return reinterpret_cast<std::uint64_t>(w.block.shared.data()); }

void shared_to_generic(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) { w.set(i.to[0], l, w.get<std::uint64_t>(i.from[0], l) + shared_base(w)); });
}
void generic_to_shared(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) { w.set(i.to[0], l, w.get<std::uint64_t>(i.from[0], l) - shared_base(w)); });
}

// The same place in the shared memory of another block of the cluster.
void map_to_rank(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const auto rank = w.get<std::uint32_t>(i.from[1], l);
    w.set(i.to[0], l, w.get<std::uint32_t>(i.from[0], l) | (rank + 1) << kClusterShift);
  });
}
void map_generic_to_rank(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    Block& other = w.block.cluster.block(w.get<std::uint32_t>(i.from[1], l));
    const std::uint64_t offset = w.get<std::uint64_t>(i.from[0], l) - shared_base(w);
    w.set(i.to[0], l, reinterpret_cast<std::uint64_t>(other.shared.data()) + offset);
  });
}

}  // namespace

bool choose_convert(const Opcode& op, Instruction& i) {
  if (op.name == "mov") {
    const std::size_t parts = std::max(i.to.size(), i.from.size());
    i.run = parts > 1 ? pack : move;
    if (parts > 1) i.count = (op.type() == "b32" ? 4 : 8) / static_cast<int>(parts);
    return op.type() != "b128";
  }
  if (op.name == "mapa") {
    i.run = op.has("shared::cluster") ? map_to_rank : map_generic_to_rank;
    return true;
  }
  if (op.name == "cvta") {
    i.run = !op.has("shared") ? move : (op.has("to") ? generic_to_shared : shared_to_generic);
    return true;
  }
  if (op.name != "cvt" || op.parts.size() < 2) return false;
  i.run = conversion(op, op.parts[op.parts.size() - 2], op.parts.back());
  return i.run != nullptr;
}

}  // namespace ridge::emulated
