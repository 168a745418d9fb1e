#include "parallel/collective_ops.h"

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"
#include "kernels/fill.h"
#include "parallel/staged_collectives.h"
#include "tests/core/models/reference.h"

namespace ridge::test {
namespace {

using parallel::Communicator;
using parallel::run_ranks;

// What every rank can make of every other.
Tensor random_of(int rank, const Shape& shape, std::uint64_t what) {
  const Tensor t = Tensor::empty(shape, DType::f64);
  kernels::normal<double>(current_stream(Device::cpu), t.view<double>(), 0, 1,
                          {what, static_cast<std::uint64_t>(rank)});
  return t;
}

Tensor sum_of(const std::vector<Tensor>& parts) {
  const Tensor sum = Tensor::zeros(parts.front().shape(), DType::f64);
  for (const Tensor& part : parts) sum.copy_from(ops::add(sum, part));
  return sum;
}

std::vector<Tensor> of_all(int ranks, const Shape& shape, std::uint64_t what) {
  std::vector<Tensor> all;
  for (int r = 0; r < ranks; ++r) all.push_back(random_of(r, shape, what));
  return all;
}

// y = op(x) of a leaf x, and its gradient for dy.
template <class Op>
std::pair<Tensor, Tensor> both_ways(const Tensor& value, const Tensor& dy, const Op& op) {
  Tensor x = value.contiguous_copy();
  autograd::set_requires_grad(x, true);
  const Tensor y = op(ops::scale(x, 1));  // in-place ops may have their input
  autograd::backward(y, dy);
  return {y.detached(), autograd::grad_of(x)};
}

class CollectiveOps : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, CollectiveOps, ::testing::Values(1, 2, 3, 4));

TEST_P(CollectiveOps, CopyAndReduceAreEachOthersBackward) {
  const int P = GetParam();
  const Shape shape{2, 3, 5};
  run_ranks(P, [&](Communicator& tp) {
    const auto xs = of_all(P, shape, 1), dys = of_all(P, shape, 2);
    const auto rank = static_cast<std::size_t>(tp.rank());
    const auto [y, dx] =
        both_ways(xs[rank], dys[rank], [&](const Tensor& x) { return parallel::copy_to_tp(x, tp); });
    EXPECT_TRUE(same_bits(y, xs[rank]));
    EXPECT_LT(max_difference(dx, sum_of(dys)), 1e-14);
    const auto [sum, dpart] =
        both_ways(xs[rank], dys[rank], [&](const Tensor& x) { return parallel::reduce_from_tp(x, tp); });
    EXPECT_LT(max_difference(sum, sum_of(xs)), 1e-14);
    EXPECT_TRUE(same_bits(dpart, dys[rank]));
  });
}

TEST_P(CollectiveOps, GatherAndScatterAreEachOthersBackward) {
  const int P = GetParam();
  for (const std::int64_t B : {1, 3}) {
    const Shape whole{B, 2 * P, 5}, piece{B, 2, 5};
    run_ranks(P, [&](Communicator& tp) {
      const auto pieces = of_all(P, piece, 3), wholes = of_all(P, whole, 4);
      const std::int64_t r = tp.rank();
      const Tensor joined = Tensor::empty(whole, DType::f64);
      for (int p = 0; p < P; ++p)
        joined.sliced(1, 2 * p, 2 * p + 2).copy_from(pieces[static_cast<std::size_t>(p)]);
      const Tensor mine = sum_of(wholes).sliced(1, 2 * r, 2 * r + 2).contiguous_copy();
      const Tensor &my_piece = pieces[static_cast<std::size_t>(r)],
                   &my_whole = wholes[static_cast<std::size_t>(r)];
      const auto [y, dx] =
          both_ways(my_piece, my_whole, [&](const Tensor& x) { return parallel::gather_sequence(x, tp); });
      EXPECT_TRUE(same_bits(y, joined));
      EXPECT_LT(max_difference(dx, mine), 1e-14);
      const auto [z, dwhole] =
          both_ways(my_whole, my_piece, [&](const Tensor& x) { return parallel::scatter_sequence(x, tp); });
      EXPECT_LT(max_difference(z, mine), 1e-14);
      EXPECT_TRUE(same_bits(dwhole, joined));
    });
  }
}

// Rows of unequal pieces; at 4 ranks the last has one column, at 3 of 6 none are short.
TEST_P(CollectiveOps, ColumnsComeTogetherAndGoApart) {
  const int P = GetParam();
  for (const std::int64_t total : {6, 7, 3, 1}) {
    run_ranks(P, [&](Communicator& tp) {
      const Tensor all = random_of(0, {2, 3, total}, 5), dall = random_of(0, {2, 3, total}, 6);
      const std::int64_t each = (total + P - 1) / P;
      const std::int64_t begin = std::min(total, tp.rank() * each), end = std::min(total, begin + each);
      const auto [y, dx] = both_ways(all.sliced(2, begin, end), dall,
                                     [&](const Tensor& x) { return parallel::gather_columns(x, total, tp); });
      EXPECT_TRUE(same_bits(y, all));
      EXPECT_TRUE(same_bits(dx, dall.sliced(2, begin, end)));
    });
  }
}

TEST(CollectiveOpsMemory, OneRankCopiesNothing) {
  const auto self = parallel::self_communicator();
  const Tensor x = random_of(0, {1, 2, 3}, 1);
  for (const Tensor& y : {parallel::copy_to_tp(x, *self), parallel::reduce_from_tp(x, *self),
                          parallel::gather_sequence(x, *self), parallel::scatter_sequence(x, *self)})
    EXPECT_EQ(y.data(), x.data());
}

// Both inputs of a sum get one gradient tensor: reducing it for one must not change the other's.
TEST(CollectiveOpsMemory, AGradientThatOthersSeeIsLeftAlone) {
  run_ranks(2, [&](Communicator& tp) {
    Tensor a = random_of(tp.rank(), {1, 2, 3}, 1), b = random_of(tp.rank(), {1, 2, 3}, 2);
    autograd::set_requires_grad(a, true);
    autograd::set_requires_grad(b, true);
    const Tensor dy = random_of(tp.rank(), {1, 2, 3}, 3), before = dy.contiguous_copy();
    autograd::backward(ops::add(ops::scale(b, 1), parallel::copy_to_tp(a, tp)), dy);
    EXPECT_TRUE(same_bits(dy, before));
    EXPECT_TRUE(same_bits(autograd::grad_of(b), before));
    EXPECT_LT(max_difference(autograd::grad_of(a), sum_of(of_all(2, {1, 2, 3}, 3))), 1e-14);
  });
}

TEST(CollectiveOpsErrors, SequencesThatCannotBeCutNameTheNumbers) {
  run_ranks(2, [&](Communicator& tp) {
    try {
      parallel::scatter_sequence(Tensor::zeros({1, 5, 3}, DType::f32), tp);
      ADD_FAILURE() << "no exception";
    } catch (const UserError& error) {
      EXPECT_NE(std::string(error.what()).find("5 tokens cannot be cut for 2 ranks"), std::string::npos);
    }
    EXPECT_THROW(parallel::gather_sequence(Tensor::zeros({2, 3}, DType::f32), tp), Error);
  });
}

// Every row arrives once, in the stage that says so.
TEST_P(CollectiveOps, StagesOfAGatherAddUpToTheWhole) {
  const int P = GetParam();
  for (const std::int64_t B : {1, 2, 3}) {
    for (int chunks = 1; chunks <= 9; ++chunks) {
      run_ranks(P, [&](Communicator& tp) {
        const Shape piece{B, 2, 3}, whole{B, 2 * P, 3};
        const auto pieces = of_all(P, piece, 1);
        const Tensor joined = Tensor::empty(whole, DType::f64), got = Tensor::zeros(whole, DType::f64);
        for (int p = 0; p < P; ++p)
          joined.sliced(1, 2 * p, 2 * p + 2).copy_from(pieces[static_cast<std::size_t>(p)]);
        parallel::StagedGather gather(tp, pieces[static_cast<std::size_t>(tp.rank())], got, chunks);
        if (chunks > 1 && chunks <= B) {
          EXPECT_EQ(gather.stages(), static_cast<std::size_t>(chunks));
        } else if (chunks > B) {
          EXPECT_GT(gather.stages(), static_cast<std::size_t>(B));
        }
        std::vector<int> seen(static_cast<std::size_t>(B * 2 * P), 0);
        const Tensor rows = got.reshaped({-1, 3}), want = joined.reshaped({-1, 3});
        for (std::size_t stage = 0; stage < gather.stages(); ++stage) {
          for (const parallel::RowRange& r : gather.wait(stage)) {
            for (std::int64_t row = r.begin; row < r.end; ++row) ++seen[static_cast<std::size_t>(row)];
            EXPECT_TRUE(same_bits(rows.sliced(0, r.begin, r.end), want.sliced(0, r.begin, r.end)));
          }
        }
        EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
      });
    }
  }
}

TEST_P(CollectiveOps, StagesOfAScatterAddUpToTheWhole) {
  const int P = GetParam();
  for (const std::int64_t B : {1, 2, 3}) {
    for (int chunks = 1; chunks <= 9; ++chunks) {
      run_ranks(P, [&](Communicator& tp) {
        const Shape shape{B, 3 * P, 2};
        const auto wholes = of_all(P, shape, 1);
        const std::int64_t r = tp.rank();
        const Tensor& mine = wholes[static_cast<std::size_t>(r)];
        const Tensor got = Tensor::zeros({B, 3, 2}, DType::f64), sum = Tensor::zeros(shape, DType::f64);
        const auto make = [&](const parallel::RowSelection& rows, const Tensor& to) {
          to.copy_from(rows.of(mine));
        };
        parallel::InFlight flight;
        parallel::start_staged_scatter(tp, chunks, got, make, flight);
        parallel::start_staged_reduce(tp, chunks, sum.reshaped({-1, 2}), make, flight);
        flight.wait();
        const Tensor want = sum_of(wholes);
        EXPECT_LT(max_difference(got, want.sliced(1, 3 * r, 3 * r + 3).contiguous_copy()), 1e-14);
        EXPECT_LT(max_difference(sum, want), 1e-14);
      });
    }
  }
}

}  // namespace
}  // namespace ridge::test
