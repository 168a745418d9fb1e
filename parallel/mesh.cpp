#include "parallel/mesh.h"

#include <algorithm>

#include "core/base/error.h"

namespace ridge::parallel {

std::string_view name_of(Axis axis) {
  constexpr std::array<std::string_view, kAxes> kNames{"pp", "replicate", "shard", "cp", "tp"};
  return kNames.at(static_cast<std::size_t>(axis));
}

Mesh::Mesh(const Coordinates& sizes) : sizes_(sizes) {
  check(std::all_of(sizes.begin(), sizes.end(), [](int s) { return s >= 1; }), "mesh sizes of at least 1");
}

int Mesh::ranks() const {
  int n = 1;
  for (const int size : sizes_) n *= size;
  return n;
}

Mesh::Coordinates Mesh::coordinates(int rank) const {
  check(rank >= 0 && rank < ranks(), "rank within the mesh");
  Coordinates place{};
  for (std::size_t a = kAxes; a-- > 0;) {
    place[a] = rank % sizes_[a];
    rank /= sizes_[a];
  }
  return place;
}

int Mesh::rank_of(const Coordinates& coordinates) const {
  int rank = 0;
  for (std::size_t a = 0; a < kAxes; ++a) {
    check(coordinates[a] >= 0 && coordinates[a] < sizes_[a], "coordinates within the mesh");
    rank = rank * sizes_[a] + coordinates[a];
  }
  return rank;
}

std::vector<int> Mesh::group(int rank, const std::vector<Axis>& axes) const {
  const Coordinates mine = coordinates(rank);
  std::vector<int> ranks_in_group;
  for (int other = 0; other < ranks(); ++other) {
    const Coordinates place = coordinates(other);
    bool same = true;
    for (int a = 0; a < kAxes; ++a) {
      const bool free = std::find(axes.begin(), axes.end(), static_cast<Axis>(a)) != axes.end();
      same = same && (free || place[static_cast<std::size_t>(a)] == mine[static_cast<std::size_t>(a)]);
    }
    if (same) ranks_in_group.push_back(other);
  }
  return ranks_in_group;
}

int Mesh::data_rank(int rank) const {
  const Coordinates place = coordinates(rank);
  return place[static_cast<std::size_t>(Axis::replicate)] * size(Axis::shard) +
         place[static_cast<std::size_t>(Axis::shard)];
}

std::string Mesh::describe() const {
  std::string text;
  for (int a = 0; a < kAxes; ++a) {
    const Axis axis = static_cast<Axis>(a);
    if (size(axis) > 1) text += fmt::format("{}{} {}", text.empty() ? "" : " x ", name_of(axis), size(axis));
  }
  return text.empty() ? "1 rank" : text;
}

std::string Mesh::describe(int rank) const {
  const Coordinates place = coordinates(rank);
  std::string text;
  for (std::size_t a = 0; a < kAxes; ++a) {
    if (sizes_[a] > 1)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name_of(static_cast<Axis>(a)), place[a]);
  }
  return text.empty() ? "alone" : text;
}

}  // namespace ridge::parallel
