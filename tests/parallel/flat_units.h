// Fsdp over tensors without a model: units whose losses are sums, so that every gradient is known.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <vector>

#include "core/base/stream.h"
#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"
#include "core/ops/shape.h"
#include "parallel/fsdp.h"
#include "tests/core/models/reference.h"
#include "tests/core/ops/jacobian.h"

namespace ridge::test {

struct Held {
  std::string name;
  Shape shape;
  DType dtype = DType::f32;
  bool trains = true;
  bool counts = true;
  parallel::Communicator* parts = nullptr;
};

class FlatUnits {
 public:
  FlatUnits(const std::vector<std::vector<Held>>& units, parallel::Communicator& shard,
            parallel::Communicator& replicas, const parallel::FsdpOptions& options = {},
            Device device = Device::cpu, std::unique_ptr<parallel::PeerGroup> peers = nullptr) {
    std::vector<std::vector<parallel::HeldParameter>> held;
    for (const std::vector<Held>& unit : units) {
      held.emplace_back();
      for (const Held& h : unit) {
        names_.push_back(h.name);
        values_.push_back(Tensor::empty(h.shape, h.dtype, Device::meta));
        held.back().push_back({h.name, &values_.back(), h.trains, {}, h.shape, h.parts, h.counts});
      }
    }
    fsdp_ =
        std::make_unique<parallel::Fsdp>(std::move(held), shard, replicas, options, device, std::move(peers));
    if (device == Device::meta) return;
    for (std::size_t i = 0; i < names_.size(); ++i)
      fsdp_->write(names_[i], random_tensor(values_[i].shape(), i + 1, -1, 1, DType::f32));
  }

  parallel::Fsdp& fsdp() { return *fsdp_; }
  Tensor& value(const std::string& name) {
    for (std::size_t i = 0; i < names_.size(); ++i)
      if (names_[i] == name) return values_[i];
    fail("no parameter {}", name);
  }

  /// One micro-batch of the one unit there is: every element of `used` gets the gradient `factor`.
  void pass(const std::vector<std::string>& used, double factor, bool last = true) {
    fsdp_->begin(last);
    fsdp_->enter(0, Tensor::zeros({2}, DType::f32));
    Tensor total;
    for (const std::string& name : used) {
      const Tensor part = ops::cast(ops::sum(ops::scale(value(name), factor)), DType::f32);
      total = total.defined() ? ops::add(total, part) : part;
    }
    autograd::backward(fsdp_->leave(0, total));
    fsdp_->finish();
  }

  /// Every element of `name` that this rank owns has this gradient.
  void expect_all(const std::string& name, double want) const {
    for (const parallel::OwnedPiece* piece : fsdp_->pieces()) {
      if (piece->parameter->name != name) continue;
      const Tensor grad = autograd::grad_of(piece->value);
      ASSERT_TRUE(grad.defined()) << name;
      for (const double g : values_of(grad.on(Device::cpu))) ASSERT_EQ(g, want) << name;
    }
  }

  void clear() {
    for (const parallel::OwnedPiece* piece : fsdp_->pieces())
      if (piece->parameter->trains) autograd::leaf_of(piece->value).grad = {};
  }

 private:
  std::vector<std::string> names_;
  std::deque<Tensor> values_;
  std::unique_ptr<parallel::Fsdp> fsdp_;
};

}  // namespace ridge::test
