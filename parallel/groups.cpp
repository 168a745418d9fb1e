#include "parallel/groups.h"

#include <algorithm>

#include "core/base/error.h"

namespace ridge::parallel {
namespace {

// The same for ranks that differ in `axes` alone.
int color_of(const Mesh& mesh, int rank, const std::vector<Axis>& axes) {
  Mesh::Coordinates place = mesh.coordinates(rank);
  for (const Axis axis : axes) place[static_cast<std::size_t>(axis)] = 0;
  return mesh.rank_of(place);
}

SimulatedCommunicator& simulation(Communicator& group) {
  auto* simulated = dynamic_cast<SimulatedCommunicator*>(&group);
  check(simulated != nullptr, "the time of a simulated group");
  return *simulated;
}

}  // namespace

Groups::Groups(const Mesh& mesh, int rank) : mesh_(mesh), rank_(rank) {
  check(rank >= 0 && rank < mesh.ranks(), "rank within the mesh");
}

Groups::Groups(const Mesh& mesh, Communicator& world, const Wrap& wrap) : Groups(mesh, world.rank()) {
  if (world.size() != mesh.ranks()) fail("{} ranks for a mesh of {}", world.size(), mesh.ranks());
  world_ = wrap ? keep(wrap(world)) : &world;
  make_groups([&](const std::vector<Axis>& axes) { return world_->split(color_of(mesh_, rank_, axes)); });
}

Groups Groups::simulated(const Mesh& mesh, int rank, const SimulatedNetwork& network) {
  return simulated(mesh, rank, [&](const std::vector<int>&) { return network; });
}

Groups Groups::simulated(const Mesh& mesh, int rank, const NetworkOf& network_of) {
  Groups groups(mesh, rank);
  groups.simulated_ = true;
  const Make make = [&](const std::vector<Axis>& axes) {
    const std::vector<int> ranks = mesh.group(rank, axes);
    const auto place = std::find(ranks.begin(), ranks.end(), rank) - ranks.begin();
    return simulated_communicator(network_of(ranks), static_cast<int>(ranks.size()), static_cast<int>(place));
  };
  groups.world_ = groups.keep(make({Axis::pp, Axis::replicate, Axis::shard, Axis::cp, Axis::tp}));
  groups.make_groups(make);
  return groups;
}

// In the same order on every rank: making one is collective.
void Groups::make_groups(const Make& make) {
  Communicator* const alone = keep(self_communicator());
  for (int a = 0; a < kAxes; ++a) {
    const Axis axis = static_cast<Axis>(a);
    const int size = mesh_.size(axis);
    const bool whole = size == mesh_.ranks() && !simulated_;
    along_[static_cast<std::size_t>(a)] = size == 1 ? alone : whole ? world_ : keep(make({axis}));
  }
  // Apart from along(cp) even where it has the same ranks: gathers of weights would hold up its messages.
  sharding_ = mesh_.size(Axis::cp) == 1 ? &along(Axis::shard) : keep(make({Axis::shard, Axis::cp}));
}

Communicator* Groups::keep(std::unique_ptr<Communicator> group) {
  owned_.push_back(std::move(group));
  return owned_.back().get();
}

Communicator& Groups::kv_copies(int copies) {
  const int ranks = mesh_.size(Axis::tp);
  if (copies < 1 || ranks % copies != 0) fail("runs of {} among {} ranks of tp", copies, ranks);
  if (copies == ranks) return along(Axis::tp);
  Communicator*& group = kv_copies_[copies];
  if (group == nullptr) {
    group = copies == 1 ? keep(self_communicator())
                        : keep(along(Axis::tp).split_by([&](int r) { return r / copies; }));
  }
  return *group;
}

SimulatedTime Groups::time(Axis axis) const {
  check(simulated_, "the time of simulated groups");
  SimulatedTime time;
  const auto add = [&](Communicator& group) {
    if (group.size() == 1) return;
    const SimulatedTime& more = simulation(group).time();
    time.exposed_seconds += more.exposed_seconds;
    time.busy_seconds += more.busy_seconds;
    time.bytes += more.bytes;
  };
  Communicator& group = *along_[static_cast<std::size_t>(axis)];
  add(group);
  if (axis == Axis::shard && sharding_ != &group) add(*sharding_);
  return time;
}

SimulatedTime Groups::world_time() const {
  check(simulated_, "the time of simulated groups");
  return simulation(*world_).time();
}

void Groups::reset_clocks() {
  for (const auto& group : owned_) {
    if (auto* simulated = dynamic_cast<SimulatedCommunicator*>(group.get())) simulated->reset();
  }
}

}  // namespace ridge::parallel
