#include "tests/emulated_gpu/warp.h"

#include <algorithm>

namespace ridge::emulated {

Warp::Warp(Block& of, unsigned n, unsigned threads) : block(of), number(n) {
  exists_ = threads >= kLanes ? kAll : (Mask{1} << threads) - 1;
  for (int lane = 0; lane < kLanes; ++lane)
    state_[static_cast<std::size_t>(lane)] = (exists_ >> lane & 1) != 0 ? State::runs : State::absent;
  const Program& program = of.cluster.program;
  registers_.assign(std::size_t{program.registers} * kLanes, 0xFFFFFFFFFFFFFFFFu);
  local.assign(std::size_t{program.local_bytes} * kLanes, std::byte{0xFF});
  for (auto& groups : copies) groups.emplace_back();
}

Mask Warp::in(State state) const {
  Mask mask = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    mask |= static_cast<Mask>(state_[static_cast<std::size_t>(lane)] == state) << lane;
  return mask;
}

void Warp::place(Mask mask, std::uint32_t where, State state) {
  each(mask, [&](int lane) {
    at[static_cast<std::size_t>(lane)] = where;
    state_[static_cast<std::size_t>(lane)] = state;
  });
}

void Warp::release(Mask mask) {
  each(mask, [&](int lane) {
    ++at[static_cast<std::size_t>(lane)];
    state_[static_cast<std::size_t>(lane)] = State::runs;
  });
}

Mask Warp::guarded(const Instruction& i, Mask group) const {
  if (i.guard == kNoRegister) return group;
  const std::uint64_t* values = &registers_[std::size_t{i.guard} * kLanes];
  Mask mask = 0;
  for (int lane = 0; lane < kLanes; ++lane) mask |= static_cast<Mask>(values[lane] & 1) << lane;
  return group & (i.guard_negated ? ~mask : mask);
}

// Those furthest behind, so that threads which parted meet again; after a vain wait others first.
bool Warp::pick(Mask& group, std::uint32_t& where) {
  Mask running = in(State::runs);
  if (running == 0) return false;
  if ((running & ~avoid_) != 0) running &= ~avoid_;
  avoid_ = 0;
  where = ~std::uint32_t{0};
  each(running, [&](int lane) { where = std::min(where, at[static_cast<std::size_t>(lane)]); });
  group = 0;
  each(running, [&](int lane) {
    if (at[static_cast<std::size_t>(lane)] == where) group |= Mask{1} << lane;
  });
  return true;
}

bool Warp::run() {
  bool moved = false;
  Mask group = 0;
  std::uint32_t where = 0;
  while (pick(group, where)) {
    yields = false;
    run_group(group, where);
    if (yields) {
      avoid_ = group;
      if (spins) return moved;
      spins = true;
    } else {
      moved = true;
      spins = false;
    }
  }
  return moved;
}

void Warp::run_group(Mask group, std::uint32_t where) {
  const std::vector<Instruction>& code = block.cluster.program.code;
  std::uint32_t others = ~std::uint32_t{0};  // the first instruction of a thread that runs apart
  each(in(State::runs) & ~group,
       [&](int lane) { others = std::min(others, at[static_cast<std::size_t>(lane)]); });
  do {
    const Instruction& i = code[where];
    const Mask active = guarded(i, group);
    if (i.flow == Flow::next) {
      if (active != 0) i.run(*this, i, active);
      ++where;
    } else if (!step(group, where, i, active)) {
      return;
    }
  } while (where < others && !yields);
  place(group, where, State::runs);
}

// What is not just the next instruction; whether the group goes on, at `where`.
bool Warp::step(Mask& group, std::uint32_t& where, const Instruction& i, Mask active) {
  switch (i.flow) {
    case Flow::branch:
      if (active == group || active == 0) {
        where = active == group ? i.target : where + 1;
        return true;
      }
      place(active, i.target, State::runs);
      place(group & ~active, where + 1, State::runs);
      return false;
    case Flow::leave:
      each(active, [&](int lane) { finish_copies(lane, 0); });
      place(active, where, State::ended);
      break;
    case Flow::together:
      return meet(group, where, i, active);
    case Flow::block_barrier:
      place(active, where, State::block_barrier);
      break;
    default:
      place(active, where, State::cluster_wait);
  }
  group &= ~active;
  ++where;
  return group != 0;
}

// Lanes wait until all of their mask have come to such an instruction, this one or a copy of it elsewhere.
bool Warp::meet(Mask& group, std::uint32_t& where, const Instruction& i, Mask active) {
  if (active == 0) return ++where, true;
  place(active, where, State::together);
  Mask wanted = i.mask_at == kNoRegister ? kAll : get<std::uint32_t>(i.mask_at, std::countr_zero(active));
  wanted &= present();
  Mask here = 0;
  each(in(State::together), [&](int lane) { here |= static_cast<Mask>(own(lane).run == i.run) << lane; });
  if ((here & wanted) == wanted) {
    i.run(*this, i, wanted);
    release(wanted);
    if (wanted == group && std::all_of(at.begin(), at.end(), [&](std::uint32_t a) { return a == at[0]; })) {
      ++where;
      return true;
    }
  }
  place(group & ~active, where + 1, State::runs);
  return false;
}

void Warp::finish_copies(int lane, std::size_t groups_left) {
  auto& groups = copies[static_cast<std::size_t>(lane)];
  while (groups.size() > groups_left + 1) {
    for (const AsyncCopy& copy : groups.front()) {
      std::memcpy(copy.to, copy.from, copy.bytes);
      std::memset(copy.to + copy.bytes, 0, copy.zeros);
    }
    groups.pop_front();
  }
}

}  // namespace ridge::emulated
