// 32 threads that run one program together, apart where they must; their block and cluster.
#pragma once

#include <array>
#include <bit>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "tests/emulated_gpu/program.h"

namespace ridge::emulated {

inline constexpr int kLanes = 32;
inline constexpr Mask kAll = ~Mask{0};
inline constexpr unsigned kReservedShared = 1024;  // of a block, as sm_90 has it
inline constexpr unsigned kClusterShift = 24;      // of a shared address: 1 + the block's rank in its cluster

class Cluster;

/// What a block's threads share.
struct Block {
  Cluster& cluster;
  unsigned rank = 0;  // in the cluster
  Size3 index;        // in the grid
  std::vector<std::byte> shared;
  std::vector<std::unique_ptr<Warp>> warps;

  std::byte* shared_at(std::uint64_t address, std::size_t bytes);
  unsigned threads() const;  // that have not ended
};

/// Blocks that run at the same time.
class Cluster {
 public:
  Cluster(Program& program, const Launch& launch, Size3 size, Size3 first);
  void run();
  Block& block(unsigned rank) { return *blocks_.at(rank); }
  unsigned blocks() const { return static_cast<unsigned>(blocks_.size()); }

  Program& program;
  const Launch& launch;
  Size3 size;
  std::vector<std::byte> parameters;

 private:
  void preset(Warp& warp);
  bool release_barriers();
  [[noreturn]] void say_stuck() const;
  std::vector<std::unique_ptr<Block>> blocks_;
};

struct AsyncCopy {
  std::byte* to;
  const std::byte* from;
  unsigned bytes, zeros;
};

class Warp {
 public:
  enum class State : std::uint8_t { absent, runs, together, block_barrier, cluster_wait, ended };

  Warp(Block& block, unsigned number, unsigned threads);

  std::uint64_t* lanes(std::uint32_t at) { return &registers_[std::size_t{at} * kLanes]; }
  template <class T>
  T get(std::uint32_t at, int lane) const {
    T value;
    std::memcpy(&value, &registers_[std::size_t{at} * kLanes + static_cast<std::size_t>(lane)], sizeof(T));
    return value;
  }
  template <class T>
  void set(std::uint32_t at, int lane, T value) {
    std::uint64_t word = 0;
    std::memcpy(&word, &value, sizeof(T));
    registers_[std::size_t{at} * kLanes + static_cast<std::size_t>(lane)] = word;
  }

  /// Until nothing of it can go on; whether anything did, and more than wait in a loop.
  bool run();
  /// Of the lanes in `state`.
  Mask in(State state) const;
  void release(Mask mask);
  /// The instruction that a lane is at.
  const Instruction& own(int lane) const {
    return block.cluster.program.code[at[static_cast<std::size_t>(lane)]];
  }
  Mask present() const { return in(State::ended) == 0 ? exists_ : exists_ & ~in(State::ended); }

  Block& block;
  const unsigned number;
  bool yields = false;  // set by an instruction that another thread must answer
  bool spins = false;   // it has done nothing else of late
  std::uint64_t cluster_phase = 0;
  std::array<std::uint32_t, kLanes> at{};                         // of the next instruction
  std::array<std::deque<std::vector<AsyncCopy>>, kLanes> copies;  // groups; the last one is open
  std::vector<std::byte> local;                                   // of all lanes

  void finish_copies(int lane, std::size_t groups_left);

 private:
  bool pick(Mask& group, std::uint32_t& where);
  void run_group(Mask group, std::uint32_t where);
  bool step(Mask& group, std::uint32_t& where, const Instruction& i, Mask active);
  bool meet(Mask& group, std::uint32_t& where, const Instruction& i, Mask active);
  Mask guarded(const Instruction& i, Mask group) const;
  void place(Mask mask, std::uint32_t where, State state);

  Mask exists_;
  Mask avoid_ = 0;
  std::array<State, kLanes> state_{};
  std::vector<std::uint64_t> registers_;
};

/// f(lane) for the lanes of a mask.
template <class F>
inline void each(Mask mask, const F& f) {
  if (mask == kAll) {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
    return;
  }
  for (; mask != 0; mask &= mask - 1) f(std::countr_zero(mask));
}

}  // namespace ridge::emulated
