#include "parallel/communicator.h"

#include "core/base/error.h"

namespace ridge::parallel {
namespace {

class Done final : public Pending {
 public:
  void wait() override {}
};

}  // namespace

bool Communicator::in_host_memory(const Span& values, const char* communicator) {
  if (values.device == Device::cuda) fail("ranks of {} carry host memory only, not a GPU's", communicator);
  return values.device == Device::cpu;
}

std::unique_ptr<Pending> Communicator::nothing_pending() { return std::make_unique<Done>(); }

void Communicator::check_pieces(const Span& mine, const Span& all) const {
  check(mine.device == all.device, "spans of one collective on one device");
  if (all.count != mine.count * static_cast<std::size_t>(size()))
    fail("{} elements for the pieces of {} ranks of {} elements", all.count, size(), mine.count);
}

void Communicator::check_root(int root) const {
  if (root < 0 || root >= size()) fail("root {} of {} ranks", root, size());
}

}  // namespace ridge::parallel
