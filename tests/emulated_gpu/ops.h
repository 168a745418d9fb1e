// What instructions do, by families; each sets run and flow of an instruction that is its own.
#pragma once

#include "tests/emulated_gpu/warp.h"

namespace ridge::emulated {

/// Whether the opcode is of this family.
bool choose_integer(const Opcode& op, Instruction& i);
bool choose_float(const Opcode& op, Instruction& i);
bool choose_convert(const Opcode& op, Instruction& i);
bool choose_memory(const Opcode& op, Instruction& i);
bool choose_copy(const Opcode& op, Instruction& i);
bool choose_together(const Opcode& op, Instruction& i);
bool choose_tensor(const Opcode& op, Instruction& i);

/// f.operator()<T>() for the type that PTX calls so; bits are unsigned. Null for others.
template <class F>
Handler for_integer(std::string_view type, const F& f) {
  if (type == "u32" || type == "b32") return f.template operator()<std::uint32_t>();
  if (type == "s32") return f.template operator()<std::int32_t>();
  if (type == "u64" || type == "b64") return f.template operator()<std::uint64_t>();
  if (type == "s64") return f.template operator()<std::int64_t>();
  if (type == "u16" || type == "b16") return f.template operator()<std::uint16_t>();
  if (type == "s16") return f.template operator()<std::int16_t>();
  if (type == "u8" || type == "b8") return f.template operator()<std::uint8_t>();
  if (type == "s8") return f.template operator()<std::int8_t>();
  return nullptr;
}
template <class F>
Handler for_float(std::string_view type, const F& f) {
  if (type == "f32") return f.template operator()<float>();
  if (type == "f64") return f.template operator()<double>();
  return nullptr;
}

template <class R, class A, auto kOp>
void unary(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) { w.set<R>(i.to[0], l, static_cast<R>(kOp(w.get<A>(i.from[0], l)))); });
}
template <class R, class A, auto kOp>
void binary(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    w.set<R>(i.to[0], l, static_cast<R>(kOp(w.get<A>(i.from[0], l), w.get<A>(i.from[1], l))));
  });
}
template <class R, class A, auto kOp>
void ternary(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    w.set<R>(i.to[0], l,
             static_cast<R>(kOp(w.get<A>(i.from[0], l), w.get<A>(i.from[1], l), w.get<A>(i.from[2], l))));
  });
}

}  // namespace ridge::emulated
