// Several things under way, waited for together.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "parallel/communicator.h"

namespace ridge::parallel {

class PendingAll final : public Pending {
 public:
  void add(std::unique_ptr<Pending> part) { parts_.push_back(std::move(part)); }
  void wait() override {
    for (const auto& part : parts_) part->wait();
  }

 private:
  std::vector<std::unique_ptr<Pending>> parts_;
};

}  // namespace ridge::parallel
