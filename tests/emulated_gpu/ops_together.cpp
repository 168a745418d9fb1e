// What lanes of a warp, or threads of a block, do at once. Lanes that parted may each have an instruction of
// their own, of one kind.
#include <algorithm>

#include "tests/emulated_gpu/ops.h"

namespace ridge::emulated {
namespace {

enum class Shuffle { up, down, bfly, idx };

// d|p, a, b, c, mask: the ISA's own words.
template <Shuffle kHow>
void shuffle(Warp& w, const Instruction&, Mask mask) {
  std::uint32_t source[kLanes];
  each(mask, [&](int l) { source[l] = w.get<std::uint32_t>(w.own(l).from[0], l); });
  each(mask, [&](int l) {
    const Instruction& i = w.own(l);
    const auto by = static_cast<int>(w.get<std::uint32_t>(i.from[1], l) & 31);
    const auto c = w.get<std::uint32_t>(i.from[2], l);
    const auto clamp = static_cast<int>(c & 31), segment = static_cast<int>(c >> 8 & 31);
    const int most = (l & segment) | (clamp & ~segment), least = l & segment;
    int j = l;
    if constexpr (kHow == Shuffle::up) j = l - by;
    if constexpr (kHow == Shuffle::down) j = l + by;
    if constexpr (kHow == Shuffle::bfly) j = l ^ by;
    if constexpr (kHow == Shuffle::idx) j = least | (by & ~segment);
    const bool inside = kHow == Shuffle::up ? j >= most : j <= most;
    if (!inside) j = l;
    if ((mask >> j & 1) == 0) throw std::runtime_error("a shuffle from a lane that is not in its mask");
    w.set(i.to[0], l, source[j]);
    if (i.to.size() > 1) w.set<std::uint8_t>(i.to[1], l, inside ? 1 : 0);
  });
}

Mask votes(Warp& w, Mask mask) {
  Mask yes = 0;
  each(mask, [&](int l) {
    const Instruction& i = w.own(l);
    if (((w.get<std::uint8_t>(i.from[0], l) & 1) != 0) != i.negated_from) yes |= Mask{1} << l;
  });
  return yes;
}
template <class T>
void tell(Warp& w, Mask mask, T value) {
  each(mask, [&](int l) { w.set(w.own(l).to[0], l, value); });
}
void ballot(Warp& w, const Instruction&, Mask mask) { tell(w, mask, votes(w, mask)); }
void any(Warp& w, const Instruction&, Mask mask) { tell<std::uint8_t>(w, mask, votes(w, mask) != 0 ? 1 : 0); }
void all(Warp& w, const Instruction&, Mask mask) {
  tell<std::uint8_t>(w, mask, votes(w, mask) == mask ? 1 : 0);
}

template <class T, auto kOp>
void reduce(Warp& w, const Instruction&, Mask mask) {
  const auto value = [&](int l) { return w.get<T>(w.own(l).from[0], l); };
  T total = value(std::countr_zero(mask));
  each(mask & (mask - 1), [&](int l) { total = kOp(total, value(l)); });
  tell(w, mask, total);
}
template <class T>
Handler reduction(const Opcode& op) {
  if (op.has("add")) return reduce<T, [](T a, T b) { return static_cast<T>(a + b); }>;
  if (op.has("max")) return reduce<T, [](T a, T b) { return std::max(a, b); }>;
  if (op.has("min")) return reduce<T, [](T a, T b) { return std::min(a, b); }>;
  if (op.has("or")) return reduce<T, [](T a, T b) { return static_cast<T>(a | b); }>;
  if (op.has("and")) return reduce<T, [](T a, T b) { return static_cast<T>(a & b); }>;
  return nullptr;
}

void active_mask(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) { w.set(i.to[0], l, mask); });
}
void nothing(Warp&, const Instruction&, Mask) {}

// d, barrier, p over the whole block, whose threads have all come.
template <class F>
void over_block(Warp& w, const Instruction& i, Mask mask, const F& result) {
  unsigned yes = 0;
  for (const auto& other : w.block.warps) {
    each(other->in(Warp::State::block_barrier), [&](int l) {
      yes += ((other->get<std::uint8_t>(i.from[1], l) & 1) != 0) != i.negated_from ? 1 : 0;
    });
  }
  each(mask, [&](int l) { w.set<std::uint64_t>(i.to[0], l, result(yes)); });
}
void count_over_block(Warp& w, const Instruction& i, Mask mask) {
  over_block(w, i, mask, [](unsigned yes) { return yes; });
}
void any_over_block(Warp& w, const Instruction& i, Mask mask) {
  over_block(w, i, mask, [](unsigned yes) { return yes > 0 ? 1u : 0u; });
}
void all_over_block(Warp& w, const Instruction& i, Mask mask) {
  const unsigned threads = w.block.threads();
  over_block(w, i, mask, [&](unsigned yes) { return yes == threads ? 1u : 0u; });
}

bool choose_shuffle(const Opcode& op, Instruction& i) {
  if (op.has("up")) i.run = shuffle<Shuffle::up>;
  if (op.has("down")) i.run = shuffle<Shuffle::down>;
  if (op.has("bfly")) i.run = shuffle<Shuffle::bfly>;
  if (op.has("idx")) i.run = shuffle<Shuffle::idx>;
  return i.run != nullptr;
}
bool choose_vote(const Opcode& op, Instruction& i) {
  if (op.has("ballot")) i.run = ballot;
  if (op.has("any")) i.run = any;
  if (op.has("all")) i.run = all;
  return i.run != nullptr;
}
// Barriers of part of a block are not emulated.
bool choose_block_barrier(const Opcode& op, Instruction& i) {
  i.flow = Flow::block_barrier;
  if (op.has("warp")) {
    i.flow = Flow::together;
    i.mask_at = i.from.at(0);
    return i.run = nothing, true;
  }
  if (op.has("red")) {
    i.run = op.has("popc") ? count_over_block : (op.has("or") ? any_over_block : all_over_block);
    return i.from.size() == 2;
  }
  return op.has("sync") && i.from.size() == 1;
}

}  // namespace

bool choose_together(const Opcode& op, Instruction& i) {
  if (op.name == "barrier" && op.has("cluster")) {
    i.flow = op.has("wait") ? Flow::cluster_wait : Flow::next;
    return i.run = nothing, true;
  }
  if (op.name == "bar" || op.name == "barrier") return choose_block_barrier(op, i);
  if (op.name == "activemask") return i.run = active_mask, true;
  bool known = false;
  if (op.name == "shfl") known = choose_shuffle(op, i);
  if (op.name == "vote") known = choose_vote(op, i);
  if (op.name == "redux") {
    i.run = for_integer(op.type(), [&]<class T>() { return reduction<T>(op); });
    known = i.run != nullptr;
  }
  if (!known) return false;
  i.flow = Flow::together;
  i.mask_at = i.from.back();
  return true;
}

}  // namespace ridge::emulated
