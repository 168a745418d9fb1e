// How ranks are arranged: pure arithmetic over five axes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ridge::parallel {

/// From the outermost to the innermost: neighbours in tp have neighbouring ranks.
enum class Axis : std::uint8_t { pp, replicate, shard, cp, tp };
inline constexpr int kAxes = 5;
std::string_view name_of(Axis axis);

/// A value: sizes by axis. Rank = row-major place of its coordinates.
class Mesh {
 public:
  using Coordinates = std::array<int, kAxes>;

  /// Sizes in the order of Axis; an Error where one is below 1.
  explicit Mesh(const Coordinates& sizes);

  int size(Axis axis) const { return sizes_[static_cast<std::size_t>(axis)]; }
  int ranks() const;
  Coordinates coordinates(int rank) const;
  int rank_of(const Coordinates& coordinates) const;
  /// The ranks that differ from `rank` at the most in `axes`, ascending.
  std::vector<int> group(int rank, const std::vector<Axis>& axes) const;
  /// Ranks that see different samples: replicate x shard.
  int data_ranks() const { return size(Axis::replicate) * size(Axis::shard); }
  /// This rank's place among them.
  int data_rank(int rank) const;
  /// "replicate 2 x shard 4", or "1 rank".
  std::string describe() const;
  /// A rank's coordinates on the axes that have more than one: "shard 1, tp 0", or "alone".
  std::string describe(int rank) const;

 private:
  Coordinates sizes_;
};

}  // namespace ridge::parallel
