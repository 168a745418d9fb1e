// A tensor: shared storage, shape, strides, dtype, device. A cheap value.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/memory.h"
#include "core/base/shape.h"
#include "core/base/view.h"

namespace ridge {

namespace autograd {
class Node;
/// Where a tensor's gradient goes: output `slot` of `node`. Null for a constant.
struct Edge {
  std::shared_ptr<Node> node;
  int slot = 0;
};
class Recipe;
}  // namespace autograd

class Tensor {
 public:
  Tensor() = default;

  /// Uninitialised, contiguous.
  static Tensor empty(const Shape& shape, DType dtype, Device device = Device::cpu);
  static Tensor zeros(const Shape& shape, DType dtype, Device device = Device::cpu);
  static Tensor full(const Shape& shape, double value, DType dtype, Device device = Device::cpu);
  /// A contiguous tensor over memory that `owner` keeps alive; not to be written.
  static Tensor borrow(const void* data, const Shape& shape, DType dtype, std::shared_ptr<const void> owner);
  template <class T>
  static Tensor from(std::span<const T> values, const Shape& shape);
  template <class T>
  static Tensor from(const std::vector<T>& values, const Shape& shape) {
    return from(std::span<const T>(values), shape);
  }

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  const Strides& strides() const { return strides_; }
  int ndim() const { return shape_.ndim(); }
  std::int64_t dim(int d) const { return shape_[d]; }
  std::int64_t numel() const { return ridge::numel(shape_); }
  std::int64_t bytes() const { return numel() * static_cast<std::int64_t>(size_of(dtype_)); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool contiguous() const;
  /// Parts that follow one another in one storage, as one tensor along dimension 0; undefined where they do
  /// not.
  static Tensor joined(const std::vector<Tensor>& parts);
  /// The first element's address; null on meta.
  void* data() const;
  const std::shared_ptr<Storage>& storage() const { return storage_; }

  /// A typed view; an Error where T is not the dtype. Kernels take these.
  template <class T>
  View<T> view() const {
    check(dtype_of<T> == dtype_, "view of another dtype");
    return View<T>(static_cast<T*>(data()), shape_, strides_);
  }
  /// All elements as a span, for contiguous CPU tensors.
  template <class T>
  std::span<T> span() const {
    check(contiguous() && device_ == Device::cpu, "span of a contiguous CPU tensor");
    return {view<T>().data, static_cast<std::size_t>(numel())};
  }
  /// The value of a tensor of one element; waits for a GPU.
  double item() const;

  // Views of the same storage, without history. The differentiable ones are in core/ops/shape.h.
  Tensor reshaped(const Shape& shape) const;  // -1 once: what is left over; needs contiguous
  Tensor transposed(int dim0, int dim1) const;
  Tensor sliced(int dim, std::int64_t begin, std::int64_t end) const;
  Tensor expanded(const Shape& shape) const;  // strides 0 where broadcast

  // Copies without history.
  Tensor to(DType dtype) const;               // itself where nothing changes
  Tensor contiguous_copy() const;             // always new storage
  Tensor as_contiguous() const;               // itself where it is contiguous
  Tensor as_row_dense() const;                // itself where the last dimension is dense
  void copy_from(const Tensor& other) const;  // same shape, any dtype, any device; from a GPU it waits
  Tensor on(Device device) const;             // itself where it is there; from a GPU it waits

  /// The same data without history.
  Tensor detached() const;
  bool requires_grad() const { return edge_.node != nullptr; }
  const autograd::Edge& edge() const { return edge_; }
  void set_edge(autograd::Edge edge) { edge_ = std::move(edge); }
  /// How to make these elements again; null where nothing knows. Kept by reshaped() alone.
  const std::shared_ptr<const autograd::Recipe>& recipe() const { return recipe_; }
  void set_recipe(std::shared_ptr<const autograd::Recipe> recipe) { recipe_ = std::move(recipe); }

 private:
  std::shared_ptr<Storage> storage_;
  Shape shape_;
  Strides strides_;
  std::int64_t offset_ = 0;  // elements
  DType dtype_ = DType::f32;
  Device device_ = Device::cpu;
  autograd::Edge edge_;
  std::shared_ptr<const autograd::Recipe> recipe_;
};

}  // namespace ridge
