#include "parallel/sharded_unit.h"

#include <algorithm>
#include <cstring>

#include "core/base/launch.h"
#include "kernels/elementwise.h"
#include "parallel/tensor_span.h"

namespace ridge::parallel {
namespace {

constexpr std::int64_t kAlignment = 16;  // bytes: the widest load of a GPU's thread

DType grad_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

std::int64_t rounded_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

void zero(const Tensor& t) {
  if (t.numel() == 0) return;
  Stream& stream = current_stream(t.device());
  launch(
      stream, "zero_gradient", Work{0, static_cast<double>(t.bytes())},
      [&] { std::memset(t.data(), 0, static_cast<std::size_t>(t.bytes())); },
      [&] { cuda::fill_bytes(t.data(), 0, t.bytes(), stream); });
}

void add_to(const Tensor& from, const Tensor& sum) {
  Stream& stream = current_stream(sum.device());
  if (from.dtype() == DType::bf16 && sum.dtype() == DType::f32)
    return kernels::accumulate<bf16, float>(stream, from.view<bf16>(), sum.view<float>());
  visit_compute(sum.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::add<T>(stream, sum.view<T>(), from.view<T>(), sum.view<T>());
  });
}

// f(span type) for the dtypes that parameters and gradients have; codes are bytes.
template <class F>
auto with_type(const Tensor& t, F&& f) {
  if (t.dtype() == DType::u8) return f(std::type_identity<std::uint8_t>{});
  return visit_compute(t.dtype(), std::forward<F>(f));
}

std::unique_ptr<Pending> all_gather(Communicator& ranks, const Tensor& mine, const Tensor& all) {
  return with_type(all, [&]<class T>(std::type_identity<T>) {
    const DeviceSpan<T> from = span_of<T>(mine);
    return ranks.all_gather_async(DeviceSpan<const T>{from.data, from.count, from.device}, span_of<T>(all));
  });
}

std::unique_ptr<Pending> reduce_scatter(Communicator& ranks, const Tensor& all, const Tensor& mine) {
  return with_type(all, [&]<class T>(std::type_identity<T>) {
    const DeviceSpan<T> from = span_of<T>(all);
    return ranks.reduce_scatter_async(DeviceSpan<const T>{from.data, from.count, from.device},
                                      span_of<T>(mine));
  });
}

std::unique_ptr<Pending> all_reduce(Communicator& ranks, const Tensor& t) {
  return with_type(t, [&]<class T>(std::type_identity<T>) { return ranks.all_reduce_async(span_of<T>(t)); });
}

void wait(std::unique_ptr<Pending>& pending) {
  if (pending) pending->wait();
  pending.reset();
}

}  // namespace

FlatGroup::FlatGroup(std::vector<HeldParameter*> parameters, Communicator& shard, const FsdpOptions& options,
                     Device device, PeerSharing* sharing)
    : shard_(shard),
      options_(options),
      sharing_(shard.size() > 1 ? sharing : nullptr),
      trains_(parameters.front()->trains) {
  const std::int64_t elements = lay_out(std::move(parameters));
  flat_ = trains_ || shard.size() > 1 || planned_device(device) == Device::cuda;
  if (flat_) allocate(elements, device);
}

// Matrices stand before vectors: neighbours of one product are side by side, whatever biases they have. What
// other ranks of tp hold too stands last: what counts on the first of them alone. Those ranks lay out alike.
std::int64_t FlatGroup::lay_out(std::vector<HeldParameter*> parameters) {
  std::stable_sort(parameters.begin(), parameters.end(), [](const auto* a, const auto* b) {
    return std::pair(a->placement.copies > 1, a->logical.ndim() < 2) <
           std::pair(b->placement.copies > 1, b->logical.ndim() < 2);
  });
  const std::int64_t step =
      kAlignment / static_cast<std::int64_t>(size_of(parameters.front()->value->dtype()));
  std::int64_t end = 0;
  for (HeldParameter* p : parameters) {
    const std::int64_t begin = rounded_up(end, step);
    end = begin + numel(p->placement.local_shape(p->logical));
    slots_.push_back({p, begin, end});
  }
  shard_elements_ = rounded_up((end + shard_.size() - 1) / shard_.size(), kAlignment);
  return shard_elements_ * shard_.size();
}

void FlatGroup::allocate(std::int64_t elements, Device device) {
  const DType dtype = slots_.front().parameter->value->dtype(), grad = grad_dtype(dtype);
  const PurposeScope purpose(Purpose::weights);
  whole_ = Tensor::empty({elements}, dtype, device);
  owned_ = shards_parameters() ? Tensor::empty({shard_elements_}, dtype, device) : shard_of(whole_);
  if (trains_) {
    const PurposeScope gradients(Purpose::gradients);
    grad_whole_ = Tensor::empty({elements}, grad, device);
    grad_owned_ = shards_gradients() ? Tensor::empty({shard_elements_}, grad, device) : shard_of(grad_whole_);
  }
  zero(owned_);
  if (sharing_ != nullptr && (trains_ || shards_parameters())) source_ = sharing_->share(owned_);
  const std::int64_t shard_begin = shard_.rank() * shard_elements_, shard_end = shard_begin + shard_elements_;
  for (const Slot& slot : slots_) {
    Tensor& value = *slot.parameter->value;
    const Shape local = slot.parameter->placement.local_shape(slot.parameter->logical);
    value = whole_.sliced(0, slot.begin, slot.end).reshaped(local);
    if (trains_) {
      autograd::set_requires_grad(value, true);
      leaves_.push_back(&autograd::leaf_of(value));
      leaves_.back()->buffer = grad_whole_.sliced(0, slot.begin, slot.end).reshaped(local);
    }
    const std::int64_t begin = std::max(slot.begin, shard_begin), end = std::min(slot.end, shard_end);
    if (begin >= end) continue;
    OwnedPiece piece{slot.parameter, begin - slot.begin, end - slot.begin,
                     owned_.sliced(0, begin - shard_begin, end - shard_begin)};
    if (trains_) autograd::set_requires_grad(piece.value, true);
    pieces_.push_back(std::move(piece));
  }
  drop_parameters();
  if (trains_ && shards_gradients()) grad_whole_.storage()->drop();
}

Tensor FlatGroup::shard_of(const Tensor& whole) const {
  return whole.sliced(0, shard_.rank() * shard_elements_, (shard_.rank() + 1) * shard_elements_);
}

bool FlatGroup::holds(const HeldParameter& parameter) const {
  return std::any_of(slots_.begin(), slots_.end(), [&](const Slot& s) { return s.parameter == &parameter; });
}

void FlatGroup::write(const HeldParameter& parameter, const Tensor& local) {
  const auto slot =
      std::find_if(slots_.begin(), slots_.end(), [&](const Slot& s) { return s.parameter == &parameter; });
  check(slot != slots_.end(), "a parameter of this group");
  if (!flat_) {  // frozen, and all of it here: it may stay in a mapped file
    check(local.shape() == slot->parameter->value->shape(), "values of a parameter's local shape");
    *slot->parameter->value = local.to(slot->parameter->value->dtype());
    return;
  }
  if (sharing_ != nullptr) sharing_->gather().before_change();
  const Tensor flat = local.as_contiguous().reshaped({-1});
  check(flat.numel() == slot->end - slot->begin, "values of a parameter's local shape");
  if (!shards_parameters()) return whole_.sliced(0, slot->begin, slot->end).copy_from(flat);
  for (const OwnedPiece& piece : pieces_) {
    if (piece.parameter == &parameter) piece.value.copy_from(flat.sliced(0, piece.begin, piece.end));
  }
}

void FlatGroup::start_gather() {
  if (!flat_ || !whole_.storage()->dropped()) return;
  whole_.storage()->take();
  gather_ = gathering();
}

std::unique_ptr<Pending> FlatGroup::gathering() {
  return source_ ? sharing_->gather().start(*source_, whole_.data()) : all_gather(shard_, owned_, whole_);
}

void FlatGroup::wait_gather() { wait(gather_); }

void FlatGroup::drop_parameters() {
  if (!flat_ || !shards_parameters()) return;
  wait_gather();
  whole_.storage()->drop();
}

void FlatGroup::start_publish() {
  if (shard_.size() > 1 && !shards_parameters() && trains_) gather_ = gathering();
}

// Stage 1's whole gradients stay, and are summed in place.
bool FlatGroup::pulls_gradients() const {
  return sharing_ != nullptr && grad_owned_.dtype() == DType::f32 && (shards_gradients() || rounds());
}

void FlatGroup::prepare_gradients() {
  if (!trains_ || !grad_whole_.storage()->dropped()) return;
  if (pulls_gradients() && !rounds()) {
    pulled_ = sharing_->take(grad_whole_.numel(), DType::f32, grad_whole_.device());
    if (pulled_ != nullptr) return grad_whole_.storage()->exchange_block(*pulled_->memory.storage());
  }
  grad_whole_.storage()->take();
}

// Gradients that did not come count zero; gaps between parameters are summed too, and must be numbers.
void FlatGroup::fill_missing() {
  prepare_gradients();
  std::int64_t end = 0;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    zero(grad_whole_.sliced(0, end, slots_[i].begin));
    end = slots_[i].end;
    if (!leaves_[i]->grad.defined()) zero(leaves_[i]->buffer);
  }
  zero(grad_whole_.sliced(0, end, grad_whole_.dim(0)));
}

void FlatGroup::sum_parts() {
  for (std::size_t i = 0; i < slots_.size();) {
    Communicator* parts = slots_[i].parameter->parts;
    const std::int64_t begin = slots_[i].begin;
    std::int64_t end = slots_[i].end;
    for (++i; i < slots_.size() && slots_[i].parameter->parts == parts && slots_[i].begin == end; ++i)
      end = slots_[i].end;
    if (parts == nullptr || parts->size() == 1) continue;
    auto sum = all_reduce(*parts, grad_whole_.sliced(0, begin, end));
    wait(sum);
  }
}

void FlatGroup::start_reduce() {
  if (!trains_) return;
  fill_missing();
  sum_parts();
  for (autograd::Leaf* leaf : leaves_) leaf->grad = {};
  if (shard_.size() == 1) return;
  if (pulls_gradients() && rounds())
    pulled_ = sharing_->take(grad_whole_.numel(), DType::bf16, grad_whole_.device());
  if (pulled_ != nullptr && rounds()) {
    sent_ = pulled_->memory;
    sent_.copy_from(grad_whole_);
  } else {
    sent_ = rounds() ? grad_whole_.to(DType::bf16) : grad_whole_;
  }
  if (rounds() && shards_gradients()) grad_whole_.storage()->drop();
  if (pulled_ != nullptr) {
    received_ = Tensor::empty({(shard_.size() - 1) * shard_elements_}, sent_.dtype(), sent_.device());
    reduce_ = sharing_->reduce().start(*pulled_->staging, received_.data());
    return;
  }
  const bool in_place = !rounds() && (!shards_gradients() || !owned_has_gradient_);
  received_ = in_place ? grad_owned_ : Tensor::empty({shard_elements_}, sent_.dtype(), sent_.device());
  reduce_ = reduce_scatter(shard_, sent_, received_);
}

// The parts' sum; the buffer goes back, whose peers may still read it.
void FlatGroup::add_pulled() {
  visit_compute(sent_.dtype(), [&]<class T>(std::type_identity<T>) {
    if constexpr (!std::is_same_v<T, double>) {
      sharing_->reduce().sum<T>(current_stream(sent_.device()), *pulled_->staging, received_.data(),
                                grad_owned_.view<float>(), owned_has_gradient_);
    }
  });
  if (!rounds()) grad_whole_.storage()->exchange_block(*pulled_->memory.storage());
  sharing_->give_back(std::exchange(pulled_, nullptr));
}

void FlatGroup::settle_reduce(bool last, Communicator& replicas) {
  if (!trains_) return;
  wait(reduce_);
  if (pulled_ != nullptr) {
    add_pulled();
  } else if (received_.defined() && received_.storage() != grad_owned_.storage()) {
    if (owned_has_gradient_) {
      add_to(received_, grad_owned_);
    } else {
      grad_owned_.copy_from(received_);
    }
  }
  sent_ = received_ = {};
  owned_has_gradient_ = true;
  if (shards_gradients()) grad_whole_.storage()->drop();
  if (last && replicas.size() > 1) replicate_ = all_reduce(replicas, grad_owned_);
}

void FlatGroup::hand_over() {
  wait(replicate_);
  owned_has_gradient_ = false;
  const std::int64_t shard_begin = shard_.rank() * shard_elements_;
  for (OwnedPiece& piece : pieces_) {
    if (!trains_) continue;
    const auto slot = std::find_if(slots_.begin(), slots_.end(),
                                   [&](const Slot& s) { return s.parameter == piece.parameter; });
    const std::int64_t at = slot->begin + piece.begin - shard_begin;
    autograd::leaf_of(piece.value).grad = grad_owned_.sliced(0, at, at + piece.end - piece.begin);
  }
}

}  // namespace ridge::parallel
