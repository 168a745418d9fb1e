#include "launch/quantized_layers.h"

#include "core/base/error.h"
#include "core/nn/quantized_linear.h"
#include "kernels/quantize.h"

namespace ridge {
namespace {

using parallel::Placement;

// Below wrappers that adapters go inside of.
std::unique_ptr<nn::Linear>& innermost(std::unique_ptr<nn::Linear>& slot) {
  std::unique_ptr<nn::Linear>* at = &slot;
  while (std::unique_ptr<nn::Linear>* inner = (*at)->inner()) at = inner;
  return *at;
}

// Where a part of a weight lies that itself lies so: as many of its rows or columns.
Placement place_of(const Placement& weight, const QuantizedWeight& all_of_it,
                   const QuantizedWeight::Part& whole, const QuantizedWeight::Part& piece,
                   const parallel::Communicator& tp) {
  if (all_of_it.shares(whole, weight.dim)) return Placement::whole(tp.size(), tp.rank());
  Placement place = weight;
  const std::int64_t per = whole.value->dim(weight.dim), all = all_of_it.shape[weight.dim];
  place.begin = (weight.begin * per + all - 1) / all;
  place.end = place.begin + piece.value->dim(weight.dim);
  return place;
}

QuantizedWeight piece_of(const QuantizedWeight& whole, const Placement& place, const std::string& path,
                         int ranks) {
  if (place.dim < 0) return whole;
  try {
    return whole.piece(place.dim, place.begin, place.end);
  } catch (const UserError& error) {
    fail_user("{} over tp {}: {}: choose another tp, or a format by channel such as int8", path, ranks,
              error.what());
  }
}

}  // namespace

std::optional<kernels::WeightFormat> QuantizedLayers::format_of(const std::string& path) const {
  const auto stored =
      weights_ != nullptr ? weights_->format_of(path) : std::optional<kernels::WeightFormat>{};
  if (!format_) return stored;
  if (stored) models::require_stored_as(*format_, *stored, path);
  return stored || path != "lm_head" ? format_ : stored;
}

void QuantizedLayers::replace(const std::vector<nn::LinearSlot>& linears) {
  for (const nn::LinearSlot& linear : linears) {
    const auto format = format_of(linear.path);
    if (!format) continue;
    auto* dense = dynamic_cast<nn::DenseLinear*>(linear.slot->get());
    check(dense != nullptr, "dense layers are quantized; what is added to them is added later");
    const Tensor& weight = dense->weight();
    kernels::check_divides(*format, weight.dim(0), weight.dim(1), linear.path);
    const bool stored = weights_ != nullptr && weights_->format_of(linear.path);
    // Values are quantized as they are stored, whose dtype scales may have.
    const DType dtype = weights_ == nullptr || stored
                            ? weight.dtype()
                            : weights_->read(linear.path + ".weight", weight.shape()).dtype();
    QuantizedWeight coded =
        stored ? weights_->quantized_on_meta(linear.path)
               : QuantizedWeight::empty(*format, weight.dim(0), weight.dim(1), dtype, Device::meta);
    for (const QuantizedWeight::Part& part : coded.parts())
      parts_[linear.path + ".weight" + part.suffix] = {linear.path, part.suffix};
    whole_[linear.path] = coded;
    *linear.slot = std::make_unique<nn::QuantizedLinear>(std::move(coded), dense->bias());
  }
}

void QuantizedLayers::replace_pieces(const std::vector<nn::LinearSlot>& linears,
                                     const parallel::Communicator& tp,
                                     std::map<std::string, Placement>& placements) const {
  for (const nn::LinearSlot& linear : linears) {
    const auto found = whole_.find(linear.path);
    if (found == whole_.end()) continue;
    std::unique_ptr<nn::Linear>& slot = innermost(*linear.slot);
    auto* dense = dynamic_cast<nn::DenseLinear*>(slot.get());
    check(dense != nullptr, "a piece of a dense layer");
    QuantizedWeight whole = found->second;
    const Placement place = placements.at(linear.path + ".weight");
    QuantizedWeight piece = piece_of(whole, place, linear.path, tp.size());
    auto pieces = piece.parts();
    auto wholes = whole.parts();
    placements.erase(linear.path + ".weight");
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      placements[linear.path + ".weight" + pieces[i].suffix] =
          place.dim < 0 ? place : place_of(place, whole, wholes[i], pieces[i], tp);
    }
    slot = std::make_unique<nn::QuantizedLinear>(std::move(piece), dense->bias());
  }
}

Tensor QuantizedLayers::value(const std::string& parameter,
                              const std::function<Tensor(const std::string&, const Shape&)>& dense) {
  const PartOf& wanted = parts_.at(parameter);
  if (held_ != wanted.path) {
    values_ = {};  // first, so that there is room
    const Shape& shape = whole_.at(wanted.path).shape;
    values_ = weights_ != nullptr && weights_->format_of(wanted.path)
                  ? weights_->read_quantized(wanted.path, shape[0], shape[1])
                  : quantize(dense(wanted.path + ".weight", shape), *format_of(wanted.path));
    require(values_.codes.device() != Device::cpu || kernels::first_bad_scale(values_.view()) < 0,
            "{}: its weights are not all finite, and cannot be quantized", wanted.path);
    held_ = wanted.path;
  }
  for (const QuantizedWeight::Part& part : values_.parts()) {
    if (part.suffix == wanted.suffix) return *part.value;
  }
  fail("{} has no part '{}'", wanted.path, wanted.suffix);
}

}  // namespace ridge
