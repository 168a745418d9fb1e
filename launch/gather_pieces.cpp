#include "launch/gather_pieces.h"

#include "core/base/error.h"

namespace ridge {
namespace {

Tensor box_of(Tensor whole, const parallel::Box& box) {
  for (std::size_t d = 0; d < box.extent.size(); ++d)
    whole = whole.sliced(static_cast<int>(d), box.offset[d], box.offset[d] + box.extent[d]);
  return whole;
}

}  // namespace

Tensor gather_whole(const Piece& piece, parallel::Communicator& ranks) {
  const Shape shape{std::span<const std::int64_t>(piece.dims)};
  constexpr std::int64_t kWord = sizeof(std::int64_t);
  const std::int64_t bytes = numel(shape) * static_cast<std::int64_t>(size_of(piece.dtype));
  // Whole words, so that the bits of any dtype may be summed: the other ranks' are zeros.
  const Tensor words = Tensor::zeros({(bytes + kWord - 1) / kWord}, DType::i64);
  const Tensor whole = Tensor::borrow(words.data(), shape, piece.dtype, words.storage());
  if (piece.writes && !piece.boxes.empty()) {
    const Tensor mine = piece.value.detached().as_contiguous().reshaped({-1}).on(Device::cpu);
    std::int64_t at = 0;
    for (const parallel::Box& box : piece.boxes) {
      const Tensor to = box_of(whole, box);
      to.copy_from(mine.sliced(0, at, at + box.numel()).reshaped(to.shape()));
      at += box.numel();
    }
  }
  if (ranks.size() > 1) ranks.all_reduce(words.span<std::int64_t>());
  return whole;
}

}  // namespace ridge
