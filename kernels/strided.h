// Walks several operands of one shape and any strides as rows, merged as far as their strides allow.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/base/threads.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// Bytes of the distinct elements: a dimension of stride 0 is one element.
template <class T>
double distinct_bytes(const View<T>& view) {
  double bytes = sizeof(T);
  for (int d = 0; d < view.ndim(); ++d)
    bytes *= view.strides[d] == 0 ? 1.0 : static_cast<double>(view.shape[d]);
  return view.numel() == 0 ? 0.0 : bytes;
}

/// A piece of a row: where each operand starts, in elements, and its row-major index.
template <int N>
struct Span {
  std::array<std::int64_t, N> offset{};
  std::int64_t count = 0;
  std::int64_t first = 0;
};

/// The loop nest over N operands. Rows longer than kTile are cut, so that a tile is the unit of work.
template <int N>
class Walk {
 public:
  static constexpr std::int64_t kTile = 16384;  // elements

  Walk(const Shape& shape, const std::array<Strides, N>& strides) {
    for (int d = 0; d < shape.ndim(); ++d) {
      if (shape[d] != 1) push(shape[d], strides, d);
    }
    if (ndim_ == 0) {
      extent_[0] = 1;
      for (auto& s : stride_) s[0] = 1;
      ndim_ = 1;
    }
    for (int d = 0; d + 1 < ndim_; ++d) rows_ *= extent_[d];
    parts_ = (inner() + kTile - 1) / kTile;
  }

  std::int64_t inner() const { return extent_[ndim_ - 1]; }
  std::int64_t step(int operand) const { return stride_[operand][ndim_ - 1]; }
  std::int64_t tiles() const { return rows_ * parts_; }
  /// Tiles that make one chunk of about kTile elements.
  std::int64_t grain() const { return std::max<std::int64_t>(1, kTile / std::max<std::int64_t>(1, inner())); }
  std::int64_t chunks() const { return (tiles() + grain() - 1) / grain(); }
  bool dense() const {
    for (int k = 0; k < N; ++k) {
      if (step(k) != 1) return false;
    }
    return true;
  }

  /// Calls `body(Span)` for every tile of the chunk, in row-major order.
  template <class Body>
  void visit_chunk(std::int64_t chunk, const Body& body) const {
    const std::int64_t begin = chunk * grain(), end = std::min(tiles(), begin + grain());
    Position at = position(begin / parts_);
    std::int64_t part = begin % parts_;
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t from = part * kTile;
      Span<N> span{at.offset, std::min(kTile, inner() - from), at.row * inner() + from};
      for (int k = 0; k < N; ++k) span.offset[k] += from * step(k);
      body(span);
      if (++part == parts_) {
        part = 0;
        advance(at);
      }
    }
  }

  /// Calls `body(Span)` for all tiles, on several threads.
  template <class Body>
  void visit(const Body& body) const {
    parallel_for(chunks(), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t chunk = begin; chunk < end; ++chunk) visit_chunk(chunk, body);
    });
  }

 private:
  struct Position {
    std::int64_t row = 0;
    std::array<std::int64_t, kMaxDims> index{};
    std::array<std::int64_t, N> offset{};
  };

  void push(std::int64_t extent, const std::array<Strides, N>& strides, int d) {
    bool merges = ndim_ > 0;
    for (int k = 0; k < N && merges; ++k) merges = stride_[k][ndim_ - 1] == strides[k][d] * extent;
    if (!merges) extent_[ndim_++] = 1;
    extent_[ndim_ - 1] *= extent;
    for (int k = 0; k < N; ++k) stride_[k][ndim_ - 1] = strides[k][d];
  }

  Position position(std::int64_t row) const {
    Position at;
    at.row = row;
    for (int d = ndim_ - 2; d >= 0; --d) {
      at.index[d] = row % extent_[d];
      row /= extent_[d];
      for (int k = 0; k < N; ++k) at.offset[k] += at.index[d] * stride_[k][d];
    }
    return at;
  }

  void advance(Position& at) const {
    ++at.row;
    for (int d = ndim_ - 2; d >= 0; --d) {
      for (int k = 0; k < N; ++k) at.offset[k] += stride_[k][d];
      if (++at.index[d] < extent_[d]) return;
      for (int k = 0; k < N; ++k) at.offset[k] -= stride_[k][d] * extent_[d];
      at.index[d] = 0;
    }
  }

  int ndim_ = 0;
  std::int64_t rows_ = 1;
  std::int64_t parts_ = 1;
  std::array<std::int64_t, kMaxDims> extent_{};
  std::array<std::array<std::int64_t, kMaxDims>, N> stride_{};
};

/// A loop nest of one operand with random access by row-major index.
struct Nest {
  int ndim = 0;
  std::int64_t count = 1;
  std::array<std::int64_t, kMaxDims> extent{};
  std::array<std::int64_t, kMaxDims> stride{};

  void push(std::int64_t n, std::int64_t step) {
    count *= n;
    if (n == 1) return;
    if (ndim > 0 && stride[at(ndim - 1)] == step * n) {
      extent[at(ndim - 1)] *= n;
      stride[at(ndim - 1)] = step;
      return;
    }
    extent[at(ndim)] = n;
    stride[at(ndim++)] = step;
  }
  std::int64_t inner() const { return ndim == 0 ? 1 : extent[at(ndim - 1)]; }
  std::int64_t step() const { return ndim == 0 ? 1 : stride[at(ndim - 1)]; }
  std::int64_t offset(std::int64_t index) const {
    std::int64_t sum = 0;
    for (int d = ndim - 1; d > 0; --d) {
      sum += index % extent[at(d)] * stride[at(d)];
      index /= extent[at(d)];
    }
    return ndim == 0 ? 0 : sum + index * stride[0];
  }

 private:
  static std::size_t at(int d) { return static_cast<std::size_t>(d); }
};

template <class First, class... T>
Walk<1 + sizeof...(T)> walk_over(const View<First>& first, const View<T>&... rest) {
  check(((rest.shape == first.shape) && ...), "operands of one shape");
  return Walk<1 + sizeof...(T)>(first.shape, {first.strides, rest.strides...});
}

namespace detail {

/// A step known at compile time, or not.
template <std::int64_t S>
using Step = std::integral_constant<std::int64_t, S>;

template <class Op, class... P>
void map_row(std::int64_t n, const Op& op, const P&... operand) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) op(operand.first[i * operand.second]...);
}

template <class Op, std::size_t... I, class... T>
void map_span(const Walk<sizeof...(T)>& walk, const Op& op, std::index_sequence<I...>,
              const Span<sizeof...(T)>& span, T*... data) {
  if (walk.dense()) return map_row(span.count, op, std::pair(data + span.offset[I], Step<1>{})...);
  map_row(span.count, op, std::pair(data + span.offset[I], walk.step(I))...);
}

}  // namespace detail

/// Calls `op(element&...)` for every element; outputs are the operands that op writes.
template <class Op, class... T>
void map_elements(const Op& op, const View<T>&... views) {
  const auto walk = walk_over(views...);
  walk.visit([&](const auto& span) {
    detail::map_span(walk, op, std::index_sequence_for<T...>{}, span, views.data...);
  });
}

}  // namespace ridge::kernels
