// Copies under way, barriers in shared memory, fences.
#include "tests/emulated_gpu/ops.h"

namespace ridge::emulated {
namespace {

// A barrier's word: arrivals that its phase still wants, and that each phase wants; bytes of copies that it
// waits for, below 0 where they came first; the phase's parity.
struct BarrierWord {
  std::uint64_t pending : 20;
  std::uint64_t wanted : 20;
  std::int64_t bytes : 23;
  std::uint64_t parity : 1;
};
static_assert(sizeof(BarrierWord) == 8);

BarrierWord* barrier_at(Warp& w, const Instruction& i, std::size_t operand, int lane) {
  const auto address = w.get<std::uint32_t>(i.from[operand], lane) + static_cast<std::uint32_t>(i.offset);
  return reinterpret_cast<BarrierWord*>(w.block.shared_at(address, sizeof(BarrierWord)));
}

void begin_barrier(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const auto count = w.get<std::uint32_t>(i.from[1], l);
    *barrier_at(w, i, 0, l) = BarrierWord{count, count, 0, 0};
  });
}
void end_phase(BarrierWord& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.wanted;
  barrier.parity ^= 1;
}
// With a second operand, the phase waits for so many bytes too.
void arrive(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    BarrierWord& barrier = *barrier_at(w, i, 0, l);
    if (barrier.pending == 0) throw std::runtime_error("an arrival at a barrier that is not begun");
    w.set(i.to[0], l, barrier);
    if (i.from.size() > 1) barrier.bytes += w.get<std::uint32_t>(i.from[1], l);
    --barrier.pending;
    end_phase(barrier);
  });
}
// Words of 32 bits to a place, whose barrier is the last operand.
void send(Warp& w, const Instruction& i, Mask mask) {
  const std::size_t words = i.from.size() - 2;
  each(mask, [&](int l) {
    const auto address = w.get<std::uint32_t>(i.from[0], l) + static_cast<std::uint32_t>(i.offset);
    std::byte* to = w.block.shared_at(address, 4 * words);
    for (std::size_t k = 0; k < words; ++k) {
      const auto word = w.get<std::uint32_t>(i.from[1 + k], l);
      std::memcpy(to + 4 * k, &word, 4);
    }
    const auto barrier = w.get<std::uint32_t>(i.from.back(), l);
    if (barrier >> kClusterShift != address >> kClusterShift)
      throw std::runtime_error("st.async to another block than its barrier's");
    auto& word = *reinterpret_cast<BarrierWord*>(w.block.shared_at(barrier, sizeof(BarrierWord)));
    word.bytes -= static_cast<std::int64_t>(4 * words);
    end_phase(word);
  });
}
void pending_count(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    w.set(i.to[0], l, static_cast<std::uint32_t>(w.get<BarrierWord>(i.from[0], l).pending));
  });
}
void try_wait(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const bool over = barrier_at(w, i, 0, l)->parity != (w.get<std::uint32_t>(i.from[1], l) & 1);
    w.set<std::uint8_t>(i.to[0], l, over ? 1 : 0);
    w.yields = w.yields || !over;
  });
}

// What the source holds is read, and the target written, when the copy is awaited. Of `bytes` the third
// operand says how many are copied, or a fourth; the rest are zeros.
void copy(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const auto bytes = w.get<std::uint32_t>(i.from[2], l);
    const auto given = i.table != 0 ? w.get<std::uint32_t>(i.from[3], l) : bytes;
    const auto to = w.get<std::uint32_t>(i.from[0], l) + static_cast<std::uint32_t>(i.offset);
    const auto from = w.get<std::uint64_t>(i.from[1], l);
    if (from % bytes != 0) throw std::runtime_error("cp.async from an address that is not aligned");
    w.copies[static_cast<std::size_t>(l)].back().push_back(
        {w.block.shared_at(to, bytes), reinterpret_cast<const std::byte*>(from), given, bytes - given});
  });
}
void end_group(Warp& w, const Instruction&, Mask mask) {
  each(mask, [&](int l) { w.copies[static_cast<std::size_t>(l)].emplace_back(); });
}
void await_groups(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) { w.finish_copies(l, w.get<std::uint32_t>(i.from[0], l)); });
}
void await_all(Warp& w, const Instruction&, Mask mask) {
  each(mask, [&](int l) {
    w.copies[static_cast<std::size_t>(l)].emplace_back();
    w.finish_copies(l, 0);
  });
}

void nothing(Warp&, const Instruction&, Mask) {}
void stop(Warp&, const Instruction&, Mask) { throw std::runtime_error("the kernel traps"); }
void zero(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) { w.set<std::uint64_t>(i.to[0], l, 0); });
}

bool choose_barrier(const Opcode& op, Instruction& i) {
  if (op.has("init")) return i.run = begin_barrier, true;
  if (op.has("pending_count")) return i.run = pending_count, true;
  if (op.has("arrive")) return i.run = arrive, i.from.size() == (op.has("expect_tx") ? 2 : 1);
  if (op.has("parity")) return i.run = try_wait, true;
  return false;
}

}  // namespace

bool choose_copy(const Opcode& op, Instruction& i) {
  if (op.name == "mbarrier") return choose_barrier(op, i);
  if (op.name == "st" && op.has("async")) return i.run = send, op.type() == "f32" || op.type() == "b32";
  if (op.name == "createpolicy") return i.run = zero, true;
  if (op.name == "membar" || op.name == "fence" || op.name == "griddepcontrol" || op.name == "nanosleep" ||
      op.name == "prefetch" || op.name == "discard")
    return i.run = nothing, true;
  if (op.name == "trap") return i.run = stop, true;
  if (op.name == "ret" || op.name == "exit") return i.flow = Flow::leave, true;
  if (op.name != "cp" || op.parts.empty() || op.parts[0] != "async" || op.has("bulk") || op.has("mbarrier"))
    return false;
  if (op.has("commit_group")) return i.run = end_group, true;
  if (op.has("wait_group")) return i.run = await_groups, true;
  if (op.has("wait_all")) return i.run = await_all, true;
  i.table = i.from.size() > 3 && !op.has("L2::cache_hint") ? 1 : 0;
  return i.run = copy, true;
}

}  // namespace ridge::emulated
