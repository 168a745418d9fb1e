// A grid's clusters one after the other, the blocks of one by turns.
#include <fmt/format.h>
#include <algorithm>

#include "tests/emulated_gpu/warp.h"

namespace ridge::emulated {
namespace {

constexpr int kMostIdleRounds = 10000;

Size3 position(std::uint64_t flat, const Size3& size) {
  return {static_cast<unsigned>(flat % size.x), static_cast<unsigned>(flat / size.x % size.y),
          static_cast<unsigned>(flat / size.x / size.y)};
}

struct Place {
  Size3 thread, block;
  unsigned lane, warp;
};

unsigned part(const Size3& size, char dim) { return dim == 'x' ? size.x : (dim == 'y' ? size.y : size.z); }

std::uint64_t special_value(const std::string& name, const Place& place, const Block& block) {
  const Cluster& cluster = block.cluster;
  const auto is = [&](std::string_view prefix) { return name.starts_with(prefix); };
  const char dim = name.back();
  if (is("%tid.")) return part(place.thread, dim);
  if (is("%ctaid.")) return part(place.block, dim);
  if (is("%ntid.")) return part(cluster.launch.block, dim);
  if (is("%nctaid.")) return part(cluster.launch.grid, dim);
  if (name == "%laneid") return place.lane;
  if (name == "%warpid") return place.warp;
  if (name == "%lanemask_lt") return (std::uint64_t{1} << place.lane) - 1;
  if (name == "%lanemask_le") return (std::uint64_t{2} << place.lane) - 1;
  if (name == "%lanemask_eq") return std::uint64_t{1} << place.lane;
  if (name == "%smid") return 0;
  if (name == "%cluster_ctarank") return block.rank;
  if (name == "%cluster_nctarank") return cluster.blocks();
  if (is("%cluster_nctaid.")) return part(cluster.size, dim);
  if (is("%cluster_ctaid.")) return part(position(block.rank, cluster.size), dim);
  if (is("%clock") || is("%globaltimer")) return 0;
  throw std::runtime_error("register " + name + " is not emulated");
}

}  // namespace

std::byte* Block::shared_at(std::uint64_t address, std::size_t bytes) {
  Block* of = this;
  if (const auto named = static_cast<unsigned>(address >> kClusterShift); named != 0) {
    if (named > cluster.blocks()) throw std::runtime_error("a shared address of no block of the cluster");
    of = &cluster.block(named - 1);
  }
  const std::uint64_t offset = address & ((std::uint64_t{1} << kClusterShift) - 1);
  if (offset + bytes > of->shared.size() || offset < kReservedShared)
    throw std::runtime_error(fmt::format("shared address {} of {} bytes is outside the block's {} to {}",
                                         offset, bytes, kReservedShared, of->shared.size()));
  if (offset % bytes != 0)
    throw std::runtime_error(fmt::format("shared address {} is not a multiple of {} bytes", offset, bytes));
  return of->shared.data() + offset;
}

unsigned Block::threads() const {
  unsigned count = 0;
  for (const auto& warp : warps) count += static_cast<unsigned>(std::popcount(warp->present()));
  return count;
}

Cluster::Cluster(Program& of, const Launch& how, Size3 sizes, Size3 first)
    : program(of), launch(how), size(sizes), parameters(of.parameter_bytes) {
  for (std::size_t i = 0; i < of.parameter_sizes.size(); ++i)
    std::memcpy(parameters.data() + of.parameter_offsets[i], how.arguments[i], of.parameter_sizes[i]);
  const auto threads = static_cast<unsigned>(how.block.count());
  for (unsigned rank = 0; rank < size.count(); ++rank) {
    auto block = std::make_unique<Block>(Block{*this, rank, {}, {}, {}});
    const Size3 inside = position(rank, size);
    block->index = {first.x + inside.x, first.y + inside.y, first.z + inside.z};
    const unsigned fixed = (kReservedShared + of.static_shared_bytes + 127) / 128 * 128;
    block->shared.assign(fixed + how.shared_bytes, std::byte{0xFF});
    for (unsigned at = 0; at < threads; at += kLanes) {
      block->warps.push_back(std::make_unique<Warp>(*block, at / kLanes, threads - at));
      preset(*block->warps.back());
    }
    blocks_.push_back(std::move(block));
  }
}

void Cluster::preset(Warp& warp) {
  const unsigned fixed = (kReservedShared + program.static_shared_bytes + 127) / 128 * 128;
  for (const Preset& p : program.presets) {
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      const unsigned flat = warp.number * kLanes + lane;
      const Place place{position(flat, launch.block), warp.block.index, lane, warp.number};
      std::uint64_t value = p.value;
      switch (p.kind) {
        case Preset::Kind::special:
          value = special_value(p.name, place, warp.block);
          break;
        case Preset::Kind::parameter:
          value = reinterpret_cast<std::uint64_t>(parameters.data()) + p.value;
          break;
        case Preset::Kind::shared:
          value = kReservedShared + p.value;
          break;
        case Preset::Kind::dynamic_shared:
          value = fixed;
          break;
        case Preset::Kind::local:
          value = reinterpret_cast<std::uint64_t>(warp.local.data()) + lane * program.local_bytes + p.value;
          break;
        default:
          break;
      }
      warp.set<std::uint64_t>(p.at, static_cast<int>(lane), value);
    }
  }
}

// Lanes that wait at a barrier of their block, or of the cluster, go on once all have come.
bool Cluster::release_barriers() {
  bool any = false;
  unsigned waiting = 0, all = 0;
  for (auto& block : blocks_) {
    unsigned here = 0;
    for (auto& warp : block->warps) {
      here += static_cast<unsigned>(std::popcount(warp->in(Warp::State::block_barrier)));
      waiting += static_cast<unsigned>(std::popcount(warp->in(Warp::State::cluster_wait)));
    }
    all += block->threads();
    if (here == 0 || here != block->threads()) continue;
    any = true;
    for (auto& warp : block->warps) {
      const Mask mask = warp->in(Warp::State::block_barrier);
      if (mask == 0) continue;
      const Instruction& i = program.code[warp->at[static_cast<std::size_t>(std::countr_zero(mask))]];
      if (i.run != nullptr) i.run(*warp, i, mask);
    }
    for (auto& warp : block->warps) warp->release(warp->in(Warp::State::block_barrier));
  }
  if (waiting == 0 || waiting != all) return any;
  for (auto& block : blocks_) {
    for (auto& warp : block->warps) warp->release(warp->in(Warp::State::cluster_wait));
  }
  return true;
}

void Cluster::say_stuck() const {
  std::string text = "threads wait for each other for ever:";
  for (const auto& block : blocks_) {
    for (const auto& warp : block->warps) {
      for (const auto state : {Warp::State::runs, Warp::State::together, Warp::State::block_barrier,
                               Warp::State::cluster_wait}) {
        const Mask mask = warp->in(state);
        if (mask == 0) continue;
        const auto lane = static_cast<std::size_t>(std::countr_zero(mask));
        text += fmt::format("\n  block {}, warp {}, lanes {:08x}: {}", block->rank, warp->number, mask,
                            program.code[warp->at[lane]].text);
      }
    }
  }
  throw std::runtime_error(text);
}

void Cluster::run() {
  int idle = 0;
  for (;;) {
    bool moved = false;
    unsigned left = 0;
    for (auto& block : blocks_) {
      for (auto& warp : block->warps) moved = warp->run() || moved;
    }
    moved = release_barriers() || moved;
    for (auto& block : blocks_) left += block->threads();
    if (left == 0) return;
    idle = moved ? 0 : idle + 1;
    if (idle > kMostIdleRounds) say_stuck();
  }
}

void run_kernel(Module& module, const std::string& name, const Launch& launch) {
  Program& program = module.program(name);
  Size3 size = launch.cluster;
  if (size.count() == 0) size = program.cluster;
  if (launch.grid.x % size.x != 0 || launch.grid.y % size.y != 0 || launch.grid.z % size.z != 0)
    throw std::runtime_error("a grid is not whole clusters");
  for (unsigned z = 0; z < launch.grid.z; z += size.z) {
    for (unsigned y = 0; y < launch.grid.y; y += size.y) {
      for (unsigned x = 0; x < launch.grid.x; x += size.x) Cluster(program, launch, size, {x, y, z}).run();
    }
  }
}

}  // namespace ridge::emulated
