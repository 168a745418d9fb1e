#include "parallel/peer_pieces.h"

#include <algorithm>

#include "core/base/stream.h"
#include "kernels/sum_parts.h"

namespace ridge::parallel {

bool PeerRing::next(std::int64_t elements, DType dtype, Device device) {
  check(elements > 0, "a use of some elements");
  if (elements > capacity_ && !grow(elements, dtype, device)) return false;
  ++use_;
  return true;
}

// Who was told of memory may have it mapped: it stays until the group has ended.
bool PeerRing::grow(std::int64_t elements, DType dtype, Device device) {
  if (refused_ > 0 && elements >= refused_) return false;
  const PurposeScope purpose(Purpose::workspace);
  std::array<Slot, 2> grown;
  for (Slot& slot : grown) {
    slot.memory = Tensor::empty({elements}, dtype, device);
    told_.push_back(slot.memory);
    auto buffer = peers_.share(slot.memory.data(), slot.memory.bytes());
    if (!buffer) {
      refused_ = elements;
      return false;
    }
    slot.buffer = std::move(*buffer);
  }
  slots_ = std::move(grown);
  capacity_ = elements;
  return true;
}

Tensor PeerRing::memory(std::int64_t first, const Shape& shape) const {
  return now().memory.sliced(0, first, first + numel(shape)).reshaped(shape);
}

PeerPieces::PeerPieces(std::shared_ptr<PeerGroup> peers)
    : peers_(std::move(peers)), pulls_(peers_->make_queue()), sums_(peers_->make_queue()) {}

PeerRing& PeerPieces::ring(Rings& rings, DType dtype) const {
  std::unique_ptr<PeerRing>& ring = rings[dtype];
  if (ring == nullptr) ring = std::make_unique<PeerRing>(*peers_);
  return *ring;
}

PeerPull::PeerPull(PeerPieces& pieces, const Tensor& piece, const Tensor& whole)
    : pieces_(pieces), piece_(piece), whole_(whole) {
  pieces_.pulling_ = true;
}

std::unique_ptr<PeerPull> PeerPull::start(PeerPieces& pieces, const Tensor& piece, const Tensor& whole,
                                          int stages, bool own) {
  check(!pieces.pulling_, "one gather after another");
  check(piece.contiguous() && whole.contiguous() && piece.numel() * pieces.size() == whole.numel(),
        "a piece of the sequence for every rank");
  PeerRing& ring = pieces.ring(pieces.pulled_, piece.dtype());
  if (!ring.next(piece.numel(), piece.dtype(), piece.device())) return nullptr;
  std::unique_ptr<PeerPull> pull(new PeerPull(pieces, piece, whole));
  pull->queue(ring, stages, own);
  return pull;
}

void PeerPull::queue(PeerRing& ring, int stages, bool own) {
  PeerQueue& queue = *pieces_.pulls_;
  const int ranks = pieces_.size(), rank = pieces_.rank();
  queue.follow_compute();
  queue.copy(ring.memory(0, piece_.shape()).data(), piece_.data(), piece_.bytes());
  for (int step = 1; step < ranks; ++step) ring.announce(queue, (rank + step) % ranks);
  stages_.push_back({{tokens_of(rank)}, nullptr});
  const int pulled = std::clamp(stages - 1, 1, ranks - 1);
  for (int s = 0; s < pulled; ++s) {
    Stage stage;
    for (int step = (ranks - 1) * s / pulled; step < (ranks - 1) * (s + 1) / pulled; ++step) {
      const int from = (rank + 1 + step) % ranks;
      ring.await(queue, from);
      copy(from, ring.buffer().of[static_cast<std::size_t>(from)]);
      const RowRange tokens = tokens_of(from);
      if (!stage.tokens.empty() && stage.tokens.back().end == tokens.begin) {
        stage.tokens.back().end = tokens.end;
      } else {
        stage.tokens.push_back(tokens);
      }
    }
    stage.there = queue.mark("peer_pull_wait");
    stages_.push_back(std::move(stage));
  }
  if (!own) return;
  copy(rank, piece_.data());
  own_ = queue.mark("peer_pull_own");
}

void PeerPull::copy(int rank, const void* from) {
  const std::int64_t samples = piece_.dim(0), bytes = piece_.bytes() / std::max<std::int64_t>(samples, 1);
  auto* to = static_cast<std::byte*>(whole_.data());
  for (std::int64_t b = 0; b < samples; ++b)
    pieces_.pulls_->copy(to + (b * pieces_.size() + rank) * bytes,
                         static_cast<const std::byte*>(from) + b * bytes, bytes);
}

void PeerPull::wait(int stage, const UseRows& use) {
  const Stage& s = stages_.at(static_cast<std::size_t>(stage));
  if (s.there != nullptr) s.there->wait();
  for (const RowRange& tokens : s.tokens) {
    const RowSelection where = RowSelection::of_tokens(tokens);
    use(s.there == nullptr ? piece_ : where.of(whole_), where);
  }
}

// One queue: the last mark is after all others.
void PeerPull::wait() { (own_ != nullptr ? own_ : stages_.back().there)->wait(); }

PeerSum::PeerSum(PeerPieces& pieces, const Tensor& piece) : pieces_(pieces), piece_(piece) {
  pieces_.summing_ = true;
}

std::unique_ptr<PeerSum> PeerSum::start(PeerPieces& pieces, const Tensor& piece, const MakeRows& make) {
  check(!pieces.summing_, "one sum after another");
  check(piece.contiguous(), "a sum into a contiguous piece");
  PeerRing& ring = pieces.ring(pieces.summed_, piece.dtype());
  if (!ring.next(piece.numel() * pieces.size(), piece.dtype(), piece.device())) return nullptr;
  std::unique_ptr<PeerSum> sum(new PeerSum(pieces, piece));
  sum->queue(ring, make);
  return sum;
}

// All is announced before anything is waited for: see peer_memory.h.
void PeerSum::queue(PeerRing& ring, const MakeRows& make) {
  PeerQueue& queue = *pieces_.sums_;
  const int ranks = pieces_.size(), rank = pieces_.rank();
  const std::int64_t tokens = piece_.dim(1), bytes = piece_.bytes();
  landing_ = Tensor::empty({ranks - 1, piece_.numel()}, piece_.dtype(), piece_.device());
  own_ = ring.memory(rank * piece_.numel(), piece_.shape());
  queue.follow_compute();
  for (int step = 1; step <= ranks; ++step) {
    const int to = (rank + step) % ranks;
    make(RowSelection::of_tokens({to * tokens, (to + 1) * tokens}),
         ring.memory(to * piece_.numel(), piece_.shape()));
    if (to != rank) ring.announce(pieces_.peers_->compute(), to);
  }
  for (int step = 1; step < ranks; ++step) {  // in the order in which they are made
    const int from = (rank + ranks - step) % ranks;
    ring.await(queue, from);
    queue.copy(part_of(from).data(), ring.buffer().of[static_cast<std::size_t>(from)] + rank * bytes, bytes);
  }
  pulled_ = queue.mark("peer_sum_wait");
}

Tensor PeerSum::part_of(int rank) const {
  if (rank == pieces_.rank()) return own_.reshaped({-1});
  const int place = rank < pieces_.rank() ? rank : rank - 1;
  return landing_.sliced(0, place, place + 1).reshaped({-1});
}

void PeerSum::wait_for_parts() { pulled_->wait(); }

std::vector<Tensor> PeerSum::parts() const {
  std::vector<Tensor> all;
  for (int r = 0; r < pieces_.size(); ++r) all.push_back(part_of(r));
  return all;
}

void PeerSum::wait() {
  wait_for_parts();
  const Tensor sum = piece_.reshaped({-1});
  visit_compute(sum.dtype(), [&]<class T>(std::type_identity<T>) {
    std::vector<View<const T>> views;
    for (const Tensor& part : parts()) views.emplace_back(part.view<T>());
    kernels::sum_parts<T, T>(current_stream(sum.device()), views, sum.view<T>(), false);
  });
}

}  // namespace ridge::parallel
