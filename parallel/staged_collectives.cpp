#include "parallel/staged_collectives.h"

#include <algorithm>

#include "parallel/tensor_span.h"

namespace ridge::parallel {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Part p of `parts` near equal ones.
RowRange part_of(std::int64_t extent, std::int64_t parts, std::int64_t p) {
  return {extent * p / parts, extent * (p + 1) / parts};
}

// [T, C] of one sample, whose rows may be cut further.
Tensor rows_of(const Tensor& x_BTC, std::int64_t sample, std::int64_t begin, std::int64_t end) {
  return x_BTC.sliced(0, sample, sample + 1).reshaped({x_BTC.dim(1), x_BTC.dim(2)}).sliced(0, begin, end);
}

}  // namespace

StagedGather::StagedGather(Communicator& tp, const Tensor& piece_BtC, const Tensor& whole_BTC, int chunks)
    : tp_(tp), piece_(piece_BtC), whole_(whole_BTC) {
  const std::int64_t samples = piece_.dim(0), others = tp.size() - 1;
  if (chunks <= 1 || chunks <= samples) {
    const std::int64_t stages = std::clamp<std::int64_t>(chunks, 1, std::max<std::int64_t>(samples, 1));
    for (std::int64_t s = 0; s < stages; ++s) {
      const RowRange part = part_of(samples, stages, s);
      gather_samples(part.begin, part.end);
    }
    return;
  }
  const std::int64_t splits =
      std::clamp<std::int64_t>(ceil_div(chunks, samples), 1, std::max<std::int64_t>(others, 1));
  for (std::int64_t b = 0; b < samples; ++b) {
    rows_of(whole_, b, tp.rank() * piece_.dim(1), (tp.rank() + 1) * piece_.dim(1))
        .copy_from(rows_of(piece_, b, 0, piece_.dim(1)));
    Stage own{{}, flight_.count()};
    add_rank(own, b, tp.rank());
    stages_.push_back(own);
    for (std::int64_t s = 0; s < splits; ++s) {
      const RowRange part = part_of(others, splits, s);
      gather_ranks(b, static_cast<int>(part.begin) + 1, static_cast<int>(part.end) + 1);
    }
  }
}

void StagedGather::gather_samples(std::int64_t begin, std::int64_t end) {
  for (std::int64_t b = begin; b < end; ++b)
    start_all_gather(tp_, rows_of(piece_, b, 0, piece_.dim(1)), rows_of(whole_, b, 0, whole_.dim(1)),
                     flight_);
  const std::int64_t tokens = whole_.dim(1);
  stages_.push_back({{{begin * tokens, end * tokens}}, flight_.count()});
}

// Of the ranks that are `first` .. end - 1 places on; as many get this rank's.
void StagedGather::gather_ranks(std::int64_t sample, int first, int end) {
  const int ranks = tp_.size();
  Stage stage;
  std::vector<Message> messages;
  visit_compute(piece_.dtype(), [&]<class T>(std::type_identity<T>) {
    const Tensor mine = rows_of(piece_, sample, 0, piece_.dim(1));
    for (int d = first; d < end; ++d) {
      const int from = (tp_.rank() + d) % ranks, to = (tp_.rank() + ranks - d) % ranks;
      const Tensor theirs = rows_of(whole_, sample, from * piece_.dim(1), (from + 1) * piece_.dim(1));
      messages.push_back(Communicator::send_to(to, span_of<T>(mine)));
      messages.push_back(Communicator::receive_from(from, span_of<T>(theirs)));
      add_rank(stage, sample, from);
    }
  });
  flight_.add(tp_.exchange_async(messages), {piece_, whole_});
  stage.waits_for = flight_.count();
  stages_.push_back(stage);
}

void StagedGather::add_rank(Stage& stage, std::int64_t sample, int rank) const {
  const std::int64_t begin = sample * whole_.dim(1) + rank * piece_.dim(1), end = begin + piece_.dim(1);
  if (!stage.rows.empty() && stage.rows.back().end == begin) {
    stage.rows.back().end = end;
  } else {
    stage.rows.push_back({begin, end});
  }
}

const std::vector<RowRange>& StagedGather::wait(std::size_t stage) {
  flight_.wait(stages_.at(stage).waits_for);
  return stages_[stage].rows;
}

Tensor RowSelection::of(const Tensor& x) const {
  if (ranks_ == 0) return x.reshaped({-1, x.dim(-1)}).sliced(0, rows_.begin, rows_.end);
  if (ranks_ == kEverySample) return x.sliced(1, rows_.begin, rows_.end);
  return x.sliced(0, sample_, sample_ + 1)
      .reshaped({ranks_, x.dim(1) / ranks_, x.dim(2)})
      .sliced(1, rows_.begin, rows_.end);
}

namespace {

void scatter_samples(Communicator& tp, RowRange samples, const Tensor& piece, const MakeRows& make,
                     InFlight& flight) {
  const std::int64_t tokens = piece.dim(1) * tp.size(), count = samples.end - samples.begin;
  const Tensor sums = Tensor::empty({count, tokens, piece.dim(2)}, piece.dtype(), piece.device());
  make(RowSelection(RowRange{samples.begin * tokens, samples.end * tokens}),
       sums.reshaped({-1, piece.dim(2)}));
  for (std::int64_t b = 0; b < count; ++b) {
    const Tensor mine = rows_of(piece, samples.begin + b, 0, piece.dim(1));
    start_reduce_scatter(tp, rows_of(sums, b, 0, tokens), mine, flight);
  }
}

// Tokens `part` of every rank's piece.
void scatter_part(Communicator& tp, std::int64_t sample, RowRange part, const Tensor& piece,
                  const MakeRows& make, InFlight& flight) {
  const Tensor sums =
      Tensor::empty({tp.size(), part.end - part.begin, piece.dim(2)}, piece.dtype(), piece.device());
  make(RowSelection(sample, tp.size(), part), sums);
  start_reduce_scatter(tp, sums, rows_of(piece, sample, part.begin, part.end), flight);
}

}  // namespace

void start_staged_scatter(Communicator& tp, int chunks, const Tensor& piece_BtC, const MakeRows& make,
                          InFlight& flight) {
  const std::int64_t samples = piece_BtC.dim(0), tokens = piece_BtC.dim(1);
  if (chunks <= 1 || chunks <= samples) {
    const std::int64_t stages = std::clamp<std::int64_t>(chunks, 1, std::max<std::int64_t>(samples, 1));
    for (std::int64_t s = 0; s < stages; ++s)
      scatter_samples(tp, part_of(samples, stages, s), piece_BtC, make, flight);
    return;
  }
  const std::int64_t splits =
      std::clamp<std::int64_t>(ceil_div(chunks, samples), 1, std::max<std::int64_t>(tokens, 1));
  for (std::int64_t b = 0; b < samples; ++b) {
    for (std::int64_t s = 0; s < splits; ++s)
      scatter_part(tp, b, part_of(tokens, splits, s), piece_BtC, make, flight);
  }
}

void start_staged_reduce(Communicator& tp, int chunks, const Tensor& sum_MC, const MakeRows& make,
                         InFlight& flight) {
  const std::int64_t rows = sum_MC.dim(0);
  const std::int64_t stages = std::clamp<std::int64_t>(chunks, 1, std::max<std::int64_t>(rows, 1));
  for (std::int64_t s = 0; s < stages; ++s) {
    const RowRange part = part_of(rows, stages, s);
    const Tensor sums = sum_MC.sliced(0, part.begin, part.end);
    make(RowSelection(part), sums);
    if (tp.size() > 1) start_all_reduce(tp, sums, flight);
  }
}

}  // namespace ridge::parallel
