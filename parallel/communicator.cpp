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

std::unique_ptr<Pending> Communicator::exchange_async(const std::vector<Message>& messages) {
  for (const Message& m : messages) {
    if (m.peer < 0 || m.peer >= size()) fail("a message of rank {} of {} ranks", m.peer, size());
    check(m.values.device == messages.front().values.device, "messages of one batch on one device");
  }
  return messages.empty() ? nothing_pending() : do_exchange_async(messages);
}

std::unique_ptr<Pending> Communicator::exchange_pieces(const Span& in, const Span& out) {
  const auto ranks = static_cast<std::size_t>(size());
  if (in.count != out.count || in.count % ranks != 0)
    fail("{} elements for {} in pieces of {} ranks", in.count, out.count, ranks);
  const auto piece = [&](const Span& all, int r) {
    const std::size_t count = all.count / ranks, begin = static_cast<std::size_t>(r) * count;
    void* data = all.data == nullptr ? nullptr : static_cast<char*>(all.data) + begin * size_of(all.dtype);
    return Span{data, count, all.dtype, all.device};
  };
  std::vector<Message> messages;
  for (int r = 0; r < size(); ++r) {
    messages.push_back({Message::Way::send, r, piece(in, r)});
    messages.push_back({Message::Way::receive, r, piece(out, r)});
  }
  return exchange_async(messages);
}

void Communicator::check_pieces(const Span& mine, const Span& all) const {
  check(mine.device == all.device, "spans of one collective on one device");
  if (all.count != mine.count * static_cast<std::size_t>(size()))
    fail("{} elements for the pieces of {} ranks of {} elements", all.count, size(), mine.count);
}

void Communicator::check_root(int root) const {
  if (root < 0 || root >= size()) fail("root {} of {} ranks", root, size());
}

}  // namespace ridge::parallel
