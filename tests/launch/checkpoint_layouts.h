// A synthetic training state and the pieces of it that ranks of a mesh hold: what checkpoint tests write and
// read.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "launch/checkpoint.h"
#include "parallel/mesh.h"
#include "parallel/placement.h"
#include "tests/test_device.h"

namespace ridge::test {

/// How tensor parallelism cuts a tensor of the model.
enum class Cut { none, rows, columns, heads };  // heads: rows, of which few ranks share one

struct LogicalTensor {
  std::string name;
  std::vector<std::int64_t> dims;
  DType dtype;
  int layer;  // decides the pipeline stage
  Cut cut;
  std::vector<std::byte> bytes;
};

/// Bytes that name and place give; another `seed`, other bytes.
inline std::vector<std::byte> made_bytes(const std::string& name, std::size_t count, std::uint64_t seed) {
  std::vector<std::byte> bytes(count);
  std::uint64_t state = seed * 0x9E3779B97F4A7C15u + std::hash<std::string>{}(name);
  for (std::byte& b : bytes) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    b = static_cast<std::byte>(state >> 56);
  }
  return bytes;
}

/// Weights, moments and low halves of masters of a model of three layers, odd sizes, one tensor of several
/// chunks.
inline std::vector<LogicalTensor> logical_state(std::uint64_t seed) {
  std::vector<LogicalTensor> all;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> dims, DType dtype, int layer,
                       Cut cut) {
    std::size_t count = size_of(dtype);
    for (const std::int64_t dim : dims) count *= static_cast<std::size_t>(dim);
    all.push_back({name, dims, dtype, layer, cut, made_bytes(name, count, seed)});
  };
  const auto add_parameter = [&](const std::string& name, std::vector<std::int64_t> dims, int layer,
                                 Cut cut) {
    add("model/" + name, dims, DType::bf16, layer, cut);
    add("optimizer/" + name + ".exp_avg", dims, DType::f32, layer, cut);
    dims.back() *= 2;
    add("optimizer/" + name + ".master_low", dims, DType::i8, layer, cut);
  };
  add_parameter("embed.weight", {37, 12}, 0, Cut::rows);
  for (int layer = 0; layer < 3; ++layer) {
    const std::string path = "layers." + std::to_string(layer) + ".";
    add_parameter(path + "q.weight", {24, 12}, layer, Cut::rows);
    add_parameter(path + "k.weight", {8, 12}, layer, Cut::heads);
    add_parameter(path + "o.weight", {12, 24}, layer, Cut::columns);
    add_parameter(path + "norm.weight", {12}, layer, Cut::none);
  }
  add("model/cube", {3, 5, 7}, DType::f64, 1, Cut::none);
  add("model/head.weight", {1310, 1001}, DType::f32, 2, Cut::columns);
  return all;
}

/// A rank's share of the elements [0, n): uneven where it must be.
inline std::pair<std::int64_t, std::int64_t> share_of(std::int64_t n, int ranks, int rank) {
  const std::int64_t size = (n + ranks - 1) / ranks;
  return {std::min(n, size * rank), std::min(n, size * (rank + 1))};
}

inline parallel::Placement placement_of(const LogicalTensor& t, int tp, int rank) {
  const int copies = t.cut == Cut::heads && tp > 2 ? tp / 2 : 1;  // two KV heads
  const bool low = t.name.ends_with(".master_low");
  if (t.cut == Cut::none) return parallel::Placement::whole(tp, rank);
  const int dim = t.cut == Cut::columns ? 1 : 0;
  const std::int64_t unit = low && dim == 1 ? 2 : 1;
  const auto [begin, end] =
      share_of(t.dims[static_cast<std::size_t>(dim)] / unit, tp / copies, rank / copies);
  return {dim, begin * unit, end * unit, copies, rank % copies};
}

/// The elements of boxes, one by one: slow and plain.
template <class Fn>
void for_each_element(const std::vector<std::int64_t>& dims, const std::vector<parallel::Box>& boxes,
                      const Fn& fn) {
  for (const parallel::Box& box : boxes) {
    std::vector<std::int64_t> index(dims.size(), 0);
    for (std::int64_t i = 0; i < box.numel(); ++i) {
      std::int64_t place = 0;
      for (std::size_t d = 0; d < dims.size(); ++d) place = place * dims[d] + box.offset[d] + index[d];
      fn(place);
      for (std::size_t d = dims.size(); d-- > 0 && ++index[d] == box.extent[d];) index[d] = 0;
    }
  }
}

/// What `rank` holds: its stage's tensors, cut by tp, all of a layer laid end to end and cut flat over
/// shard x cp. Values are those of `state`, or zeros.
class RankState {
 public:
  RankState(const parallel::Mesh& mesh, int rank, const std::vector<LogicalTensor>& state, bool fill)
      : place_(mesh.coordinates(rank)), mesh_(mesh) {
    for (int layer = 0; layer < 3; ++layer) {
      if (layer * size(parallel::Axis::pp) / 3 != at(parallel::Axis::pp)) continue;
      add_unit(state, layer, fill);
    }
  }

  const std::vector<Piece>& pieces() const { return pieces_; }
  /// The name of the first piece that does not hold what `state` has there; empty: none.
  std::string first_difference(const std::vector<LogicalTensor>& state) const {
    for (const Piece& piece : pieces_) {
      for (const LogicalTensor& t : state) {
        if (t.name != piece.name) continue;
        const Tensor value = piece.value.on(Device::cpu);
        const std::vector<std::byte> wanted = elements(t, piece.boxes);
        if (std::memcmp(wanted.data(), value.data(), wanted.size()) != 0) return piece.name;
      }
    }
    return {};
  }

 private:
  int size(parallel::Axis axis) const { return mesh_.size(axis); }
  int at(parallel::Axis axis) const { return place_[static_cast<std::size_t>(axis)]; }

  static std::vector<std::byte> elements(const LogicalTensor& t, const std::vector<parallel::Box>& boxes) {
    const std::size_t size = size_of(t.dtype);
    std::vector<std::byte> out;
    for_each_element(t.dims, boxes, [&](std::int64_t place) {
      const std::byte* from = t.bytes.data() + static_cast<std::size_t>(place) * size;
      out.insert(out.end(), from, from + size);
    });
    return out;
  }

  void add_unit(const std::vector<LogicalTensor>& state, int layer, bool fill) {
    using parallel::Axis;
    std::int64_t total = 0;  // bytes of the layer's pieces laid end to end
    for (const LogicalTensor& t : state)
      if (t.layer == layer) total += local_bytes(t);
    const int shards = size(Axis::shard) * size(Axis::cp);
    const auto [begin, end] = share_of(total / 8, shards, at(Axis::shard) * size(Axis::cp) + at(Axis::cp));
    std::int64_t before = 0;
    for (const LogicalTensor& t : state) {
      if (t.layer != layer) continue;
      const std::int64_t bytes = local_bytes(t), width = static_cast<std::int64_t>(size_of(t.dtype));
      const std::int64_t first = (std::clamp(begin * 8, before, before + bytes) - before) / width;
      const bool last = begin < end && end * 8 + 8 > total;
      const std::int64_t stop = last ? bytes : std::clamp(end * 8, before, before + bytes) - before;
      if (first * width < stop) add_piece(t, first, stop / width, fill);
      before += bytes;
    }
  }

  std::int64_t local_bytes(const LogicalTensor& t) const {
    const auto p = placement_of(t, size(parallel::Axis::tp), at(parallel::Axis::tp));
    return numel(p.local_shape(Shape(std::span<const std::int64_t>(t.dims)))) *
           static_cast<std::int64_t>(size_of(t.dtype));
  }

  void add_piece(const LogicalTensor& t, std::int64_t first, std::int64_t end, bool fill) {
    const auto p = placement_of(t, size(parallel::Axis::tp), at(parallel::Axis::tp));
    Piece piece{t.name, t.dims, t.dtype, {}, {}, p.copy == 0 && at(parallel::Axis::replicate) == 0};
    piece.boxes = parallel::boxes(p, Shape(std::span<const std::int64_t>(t.dims)), first, end);
    const Tensor value = Tensor::empty({end - first}, t.dtype);
    std::memset(value.data(), 0, static_cast<std::size_t>(value.bytes()));
    if (fill) {
      const std::vector<std::byte> from = elements(t, piece.boxes);
      std::memcpy(value.data(), from.data(), from.size());
    }
    piece.value = value.on(test_device());
    pieces_.push_back(std::move(piece));
  }

  parallel::Mesh::Coordinates place_;
  parallel::Mesh mesh_;
  std::vector<Piece> pieces_;
};

}  // namespace ridge::test
