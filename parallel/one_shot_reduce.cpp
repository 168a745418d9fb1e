#include "parallel/one_shot_reduce.h"

#include <algorithm>

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/base/stream.h"

namespace ridge::parallel {

using kernels::SmallSumRanks;
using kernels::small_sum::kMostRanks;
using kernels::small_sum::Layout;

std::unique_ptr<OneShotReduce> OneShotReduce::make(std::unique_ptr<PeerGroup> peers, Device device,
                                                   OneShotOptions options, std::string* why) {
  check(options.largest > 0, "sums of some bytes");
  const auto none = [&](std::string reason) {
    if (why != nullptr) *why = std::move(reason);
    return nullptr;
  };
  if (peers->size() > kMostRanks)
    return none(fmt::format("one kernel sums over {} ranks at most, not {}", kMostRanks, peers->size()));
  const Layout layout = Layout::of(options.largest);
  const PurposeScope purpose(Purpose::workspace);
  Tensor memory = Tensor::zeros({layout.bytes() / 4}, DType::i32, device);
  // Nobody learns of a region, to write flags into it, before all are zeros.
  if (device == Device::cuda) cuda::synchronize(current_stream(device));
  const std::optional<PeerBuffer> regions = peers->share(memory.data(), layout.bytes());
  if (!regions) return none(peers->trouble());
  return std::unique_ptr<OneShotReduce>(
      new OneShotReduce(std::move(memory), std::move(peers), *regions, layout, options));
}

OneShotReduce::OneShotReduce(Tensor memory, std::unique_ptr<PeerGroup> peers, const PeerBuffer& regions,
                             Layout layout, OneShotOptions options)
    : memory_(std::move(memory)), peers_(std::move(peers)), options_(options) {
  ranks_.rank = peers_->rank();
  ranks_.size = peers_->size();
  ranks_.layout = layout;
  for (int r = 0; r < ranks_.size; ++r) {
    ranks_.region[r] = regions.of.at(static_cast<std::size_t>(r));
    check(reinterpret_cast<std::uintptr_t>(ranks_.region[r]) % kernels::small_sum::kPack == 0,
          "regions lie on multiples of 16 bytes");
  }
}

bool OneShotReduce::knows(const Tensor& x) const {
  return (x.dtype() == DType::f32 || x.dtype() == DType::bf16) && x.device() == memory_.device() &&
         x.numel() > 0;
}

bool OneShotReduce::takes(const Tensor& x) const { return knows(x) && x.bytes() <= options_.largest; }

void OneShotReduce::all_reduce(const Tensor& x) const { sum(x, x, kernels::SmallSumEnd::store); }

void OneShotReduce::add_all_reduced(const Tensor& x, const Tensor& y) const {
  check(y.shape() == x.shape() && y.dtype() == x.dtype() && y.device() == x.device() && y.contiguous(),
        "one-shot sum: added to dense values of the same shape and dtype");
  sum(x, y, kernels::SmallSumEnd::add);
}

void OneShotReduce::sum(const Tensor& x, const Tensor& y, kernels::SmallSumEnd end) const {
  check(takes(x) && x.contiguous(),
        "one-shot sum: dense values of f32 or bf16, no more than there is room for");
  const auto run = [&]<class T>(std::type_identity<T>) {
    kernels::all_reduce_small<T>(current_stream(x.device()), ranks_, View<T>(x.view<T>().data, {x.numel()}),
                                 View<T>(y.view<T>().data, {x.numel()}), end, options_.limit);
  };
  if (x.dtype() == DType::bf16) return run(std::type_identity<bf16>{});
  run(std::type_identity<float>{});
}

// Of one rank.
std::int64_t OneShotReduce::row_bytes(const Tensor& y_RV) const {
  const std::int64_t each = kernels::RankColumns::of(y_RV.dim(1), ranks_.size).each;
  return each * static_cast<std::int64_t>(size_of(y_RV.dtype()));
}

bool OneShotReduce::gathers(const Tensor& y_RV) const {
  return y_RV.ndim() == 2 && knows(y_RV) && row_bytes(y_RV) <= options_.largest;
}

void OneShotReduce::gather_columns(const Tensor& y_RV) const {
  check(gathers(y_RV) && y_RV.contiguous(),
        "one-shot gather: dense rows of f32 or bf16, each no more than there is room for");
  const std::int64_t rows = y_RV.dim(0), most = options_.largest / row_bytes(y_RV);
  const auto gather = [&]<class T>(std::type_identity<T>) {
    for (std::int64_t row = 0; row < rows; row += most) {
      const Tensor some = y_RV.sliced(0, row, std::min(rows, row + most));
      kernels::all_gather_small<T>(current_stream(y_RV.device()), ranks_, some.view<T>(), options_.limit);
    }
  };
  if (y_RV.dtype() == DType::bf16) return gather(std::type_identity<bf16>{});
  gather(std::type_identity<float>{});
}

std::unique_ptr<OneShotReduce> one_shot_reduce(Communicator& ranks, Device device, std::string* why,
                                               OneShotOptions options) {
  if (device != Device::cuda) {
    if (why != nullptr) *why = fmt::format("ranks of {} share no GPU memory", name_of(device));
    return nullptr;
  }
  std::unique_ptr<PeerGroup> peers = peer_group(ranks, why, options.limit);
  return peers == nullptr ? nullptr : OneShotReduce::make(std::move(peers), device, options, why);
}

}  // namespace ridge::parallel
