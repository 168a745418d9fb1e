#include "parallel/simulated_communicator.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/base/launch.h"

namespace ridge::parallel {
namespace {

constexpr std::size_t kSmallBytes = 64;  // of host memory: a loss, a norm, a flag

}  // namespace

class SimulatedCommunicator::Arrival final : public Pending {
 public:
  Arrival(std::shared_ptr<Account> account, double end) : account_(std::move(account)), end_(end) {}
  void wait() override {
    Stream& compute = current_stream(Device::meta);
    if (compute.virtual_seconds >= end_) return;
    account_->time.exposed_seconds += end_ - compute.virtual_seconds;
    compute.virtual_seconds = end_;
  }

 private:
  std::shared_ptr<Account> account_;
  double end_;
};

SimulatedCommunicator::SimulatedCommunicator(const SimulatedNetwork& network, int size, int rank)
    : SimulatedCommunicator(network, size, rank, std::make_shared<Account>()) {}

SimulatedCommunicator::SimulatedCommunicator(const SimulatedNetwork& network, int size, int rank,
                                             std::shared_ptr<Account> account)
    : network_(network),
      size_(size),
      rank_(rank),
      account_(std::move(account)),
      stream_(std::make_shared<Stream>(Device::meta, "network")) {
  check(size >= 1 && rank >= 0 && rank < size, "a simulated rank within its group");
  check(network.bytes_per_s > 0 && network.latency_s >= 0, "a simulated network that moves");
  stream_->meta_ceilings.read_bytes_per_s = network.bytes_per_s;
  account_->streams.push_back(stream_);
}

std::unique_ptr<Communicator> SimulatedCommunicator::split(int) {
  fail("a simulated rank does not know the others' colors: use split_by");
}

std::unique_ptr<Communicator> SimulatedCommunicator::split_by(const std::function<int(int)>& color_of) {
  const int color = color_of(rank_);
  if (color < 0) return nullptr;
  int members = 0, place = 0;
  for (int r = 0; r < size_; ++r) {
    if (color_of(r) != color) continue;
    if (r < rank_) ++place;
    ++members;
  }
  std::unique_ptr<SimulatedCommunicator> part(new SimulatedCommunicator(network_, members, place, account_));
  part->stream_->profiler = stream_->profiler;
  return part;
}

void SimulatedCommunicator::reset() {
  account_->time = {};
  for (const std::weak_ptr<Stream>& weak : account_->streams) {
    if (const auto stream = weak.lock()) stream->virtual_seconds = 0;
  }
}

std::unique_ptr<Pending> SimulatedCommunicator::start(const char* op, const Span& values, double wire_bytes) {
  if (values.device != Device::meta) {
    check(values.device == Device::cpu && values.bytes() <= kSmallBytes,
          "simulated ranks carry what is on meta, and a few bytes of host memory");
    return nothing_pending();
  }
  if (size_ == 1 || wire_bytes == 0) return nothing_pending();
  const double begin = std::max(stream_->virtual_seconds, current_stream(Device::meta).virtual_seconds);
  stream_->virtual_seconds = begin + network_.latency_s;
  launch(*stream_, op, Work{0, wire_bytes}, [] {});
  account_->time.busy_seconds += stream_->virtual_seconds - begin;
  account_->time.bytes += wire_bytes;
  return std::make_unique<Arrival>(account_, stream_->virtual_seconds);
}

void SimulatedCommunicator::do_all_reduce(Span values, Reduce) { do_all_reduce_async(values)->wait(); }

std::unique_ptr<Pending> SimulatedCommunicator::do_all_reduce_async(Span values) {
  return start("all_reduce", values, 2 * share_of_others() * static_cast<double>(values.bytes()));
}

void SimulatedCommunicator::do_all_gather(Span mine, Span all) { do_all_gather_async(mine, all)->wait(); }

std::unique_ptr<Pending> SimulatedCommunicator::do_all_gather_async(Span, Span all) {
  return start("all_gather", all, share_of_others() * static_cast<double>(all.bytes()));
}

std::unique_ptr<Pending> SimulatedCommunicator::do_reduce_scatter_async(Span all, Span) {
  return start("reduce_scatter", all, share_of_others() * static_cast<double>(all.bytes()));
}

void SimulatedCommunicator::do_broadcast(Span values, int) {
  start("broadcast", values, static_cast<double>(values.bytes()))->wait();
}

std::unique_ptr<Pending> SimulatedCommunicator::do_exchange_async(const std::vector<Message>& messages) {
  double sent = 0, received = 0;
  Span all = messages.front().values;
  all.count = 0;
  all.dtype = DType::u8;
  for (const Message& m : messages) {
    all.count += m.values.bytes();
    if (m.peer != rank_)
      (m.way == Message::Way::send ? sent : received) += static_cast<double>(m.values.bytes());
  }
  return start("exchange", all, std::max(sent, received));
}

std::unique_ptr<SimulatedCommunicator> simulated_communicator(const SimulatedNetwork& network, int size,
                                                              int rank) {
  return std::make_unique<SimulatedCommunicator>(network, size, rank);
}

}  // namespace ridge::parallel
