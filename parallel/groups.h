// The communicators of one rank, by axis of the mesh.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/mesh.h"
#include "parallel/simulated_communicator.h"

namespace ridge::parallel {

/// Every rank makes it together, and ends it together. An axis of size 1 has a self communicator; one that
/// spans the whole mesh shares the world's.
class Groups {
 public:
  /// What carries tensors instead of a host communicator: nccl_communicator.
  using Wrap = std::function<std::unique_ptr<Communicator>(Communicator& host)>;
  /// The network between ranks of the mesh.
  using NetworkOf = std::function<SimulatedNetwork(const std::vector<int>& ranks)>;

  /// `world` has the mesh's ranks, and stays.
  Groups(const Mesh& mesh, Communicator& world, const Wrap& wrap = {});
  /// Rank `rank` alone, with each group's own virtual clock.
  static Groups simulated(const Mesh& mesh, int rank, const SimulatedNetwork& network);
  static Groups simulated(const Mesh& mesh, int rank, const NetworkOf& network_of);

  const Mesh& mesh() const { return mesh_; }
  int rank() const { return rank_; }
  Mesh::Coordinates place() const { return mesh_.coordinates(rank_); }
  int coordinate(Axis axis) const { return place()[static_cast<std::size_t>(axis)]; }

  /// All ranks.
  Communicator& world() { return *world_; }
  /// Ranks that differ from this one in `axis` alone; by their coordinate.
  Communicator& along(Axis axis) { return *along_[static_cast<std::size_t>(axis)]; }
  /// shard x cp: the ranks that FSDP cuts parameters over.
  Communicator& sharding() { return *sharding_; }
  /// Runs of `copies` neighbours in tp, which divide it: ranks that hold the same KV heads. Every rank of tp
  /// asks for it together when it is first used.
  Communicator& kv_copies(int copies);

  /// Of simulated groups: sharding() counts as shard, kv_copies() as tp.
  SimulatedTime time(Axis axis) const;
  SimulatedTime world_time() const;
  /// Sets all times and clocks of simulated groups to 0.
  void reset_clocks();

 private:
  using Make = std::function<std::unique_ptr<Communicator>(const std::vector<Axis>& axes)>;

  Groups(const Mesh& mesh, int rank);
  void make_groups(const Make& make);
  Communicator* keep(std::unique_ptr<Communicator> group);

  Mesh mesh_;
  int rank_;
  std::vector<std::unique_ptr<Communicator>> owned_;  // ends in the order of making
  Communicator* world_ = nullptr;
  std::array<Communicator*, kAxes> along_{};
  Communicator* sharding_ = nullptr;
  std::map<int, Communicator*> kv_copies_;
  bool simulated_ = false;
};

}  // namespace ridge::parallel
