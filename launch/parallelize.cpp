#include "launch/parallelize.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/elementwise.h"
#include "kernels/reduce.h"
#include "launch/gather_pieces.h"
#include "launch/rank_adapters.h"
#include "lora/adapter.h"
#include "parallel/tensor_parallel.h"
#include "parallel/tensor_span.h"

namespace ridge {
namespace {

using parallel::Axis;
using parallel::Placement;

// What a checkpoint says of a tensor with this piece's elements, or with two bytes for each.
Piece stored(const std::string& name, const parallel::OwnedPiece& piece, const Tensor& value) {
  const parallel::HeldParameter& p = *piece.parameter;
  Piece out{name, {p.logical.begin(), p.logical.end()}, value.dtype(), {}, value.detached(), p.counts};
  out.boxes = parallel::boxes(p.placement, p.logical, piece.begin, piece.end);
  if (value.numel() == 2 * (piece.end - piece.begin)) {
    out.dims.back() *= 2;
    for (parallel::Box& box : out.boxes) {
      box.offset.back() *= 2;
      box.extent.back() *= 2;
    }
  }
  return out;
}

Tensor piece_of(const Tensor& whole, const Placement& p) {
  return p.dim < 0 ? whole : whole.sliced(p.dim, p.begin, p.end);
}

void add_loss(const Tensor& loss, const Tensor& sum) {
  Stream& stream = current_stream(sum.device());
  if (loss.dtype() == DType::f64)
    return kernels::accumulate<double, double>(stream, loss.reshaped({1}).view<double>(), sum.view<double>());
  kernels::accumulate<float, double>(stream, loss.reshaped({1}).view<float>(), sum.view<double>());
}

Tensor sum_of(const Tensor& losses_R) {
  const Tensor sum = Tensor::empty({1}, losses_R.dtype(), losses_R.device());
  visit_compute(sum.dtype(), [&]<class T>(std::type_identity<T>) {
    kernels::sum_to<T>(current_stream(sum.device()), losses_R.view<T>(), sum.view<T>());
  });
  return sum;
}

std::int64_t first_bad(const Tensor& t) {
  if (!t.defined() || !is_floating(t.dtype())) return -1;
  return visit_compute(t.dtype(), [&]<class T>(std::type_identity<T>) {
    return kernels::first_non_finite<T>(current_stream(t.device()), t.view<T>());
  });
}

}  // namespace

PeerCopies parse_peer_copies(std::string_view name) {
  if (name == "auto") return PeerCopies::automatic;
  if (name == "always") return PeerCopies::always;
  if (name == "never") return PeerCopies::never;
  fail_user("parallel.peer_copies '{}' is unknown: use auto, always or never", name);
}

models::Recompute parse_recompute(std::string_view name) {
  if (name == "none") return models::Recompute::none;
  if (name == "selective") return models::Recompute::selective;
  if (name == "blocks") return models::Recompute::blocks;
  fail_user("recompute '{}' is unknown: use none, selective or blocks", name);
}

std::vector<models::LayerRange> split_layers(std::int64_t layers, int stages,
                                             const std::vector<std::int64_t>& asked) {
  std::vector<std::int64_t> counts = asked;
  if (counts.empty()) {
    for (int s = 0; s < stages; ++s) counts.push_back(layers / stages + (s < layers % stages ? 1 : 0));
  }
  require(static_cast<int>(counts.size()) == stages,
          "parallel.layers lists {} stages, but the pipeline has {}: give {} numbers", counts.size(), stages,
          stages);
  const bool each_fits =
      std::all_of(counts.begin(), counts.end(), [&](std::int64_t n) { return n >= 1 && n <= layers; });
  require(each_fits && std::accumulate(counts.begin(), counts.end(), std::int64_t{0}) == layers,
          "parallel.layers: {} stages of a model of {} blocks need at least one block each, {} in all; these "
          "are {}",
          stages, layers, layers, fmt::join(counts, ", "));
  std::vector<models::LayerRange> ranges;
  for (const std::int64_t count : counts) {
    const std::int64_t first = ranges.empty() ? 0 : ranges.back().end;
    ranges.push_back({first, first + count});
  }
  return ranges;
}

ParallelModel::ParallelModel(const models::ModelConfig& config, const models::ModelWeights* weights,
                             ParallelOptions options, parallel::Groups& groups, Device device)
    : options_(std::move(options)), groups_(groups), device_(device), quantized_(weights, options_.quantize) {
  if (weights != nullptr) notes_ = weights->notes();
  describe_whole(config);
  cut(config);
  shard();
  fill(weights);
  whole_.reset();
  quantized_.let_go();
}

ParallelModel::~ParallelModel() = default;

// The model of one rank on meta, with adapters whose values are there.
void ParallelModel::describe_whole(const models::ModelConfig& config) {
  whole_ = std::make_unique<models::Llama>(config, options_.dtype, Device::meta);
  for (const nn::Parameter& p : whole_->parameters()) base_index_[p.name] = base_index_.size();
  quantized_.replace(whole_->linears());
  require(!quantized_.any() || options_.lora || !options_.adapter.empty(),
          "the model's weights are quantized, and those are not trained: add adapters with a lora section");
  const Device adapters = device_ == Device::meta ? Device::meta : Device::cpu;
  if (!options_.adapter.empty() && adapters == Device::meta) {
    options_.lora = lora::read_adapter_config(options_.adapter, notes_);
    lora::add_adapters(whole_->linears(), *options_.lora, options_.seed, adapters);
  } else if (!options_.adapter.empty()) {
    options_.lora = lora::load_adapter(whole_->linears(), options_.adapter, notes_, adapters);
  } else if (options_.lora) {
    lora::add_adapters(whole_->linears(), *options_.lora, options_.seed, adapters);
  }
  if (options_.lora && options_.dropout) options_.lora->dropout = *options_.dropout;
  std::uint64_t index = 0;
  for (const nn::Parameter& p : whole_->parameters()) logical_[p.name] = {p.value->shape(), index++};
}

// Order: keep the pipeline's stages, apply the tensor parallel plan, quantize, add adapters, context,
// recompute.
void ParallelModel::cut(const models::ModelConfig& config) {
  model_ = std::make_unique<models::Llama>(config, options_.dtype, Device::meta);
  if (groups_.mesh().size(Axis::pp) > 1) {
    pipeline_ = std::make_unique<parallel::Pipeline>(
        groups_.along(Axis::pp),
        parallel::Pipeline::Options{options_.schedule, options_.stages_per_rank, options_.dtype, device_});
    stages_ = split_layers(config.layers, pipeline_->stages(), options_.layers);
    std::vector<models::LayerRange> mine;
    for (const int stage : pipeline_->local_stages())
      mine.push_back(stages_[static_cast<std::size_t>(stage)]);
    model_->keep(mine);
    options_.fsdp.reduce_at_end = options_.fsdp.keep_gathered = true;
  }
  model_->set_recompute(options_.recompute);
  model_->set_deterministic(options_.deterministic);
  if (groups_.mesh().size(Axis::cp) > 1)
    model_->set_attention(parallel::context_attention(options_.context, groups_.along(Axis::cp)));
}

// Where this rank's piece of every parameter lies. Adapters go inside of what is cut.
std::map<std::string, Placement> ParallelModel::place() {
  parallel::Communicator& tp = groups_.along(Axis::tp);
  std::map<std::string, Placement> placements;
  if (tp.size() > 1) {
    parallel::TensorParallelOptions how{options_.sequence_parallel, options_.tp_chunks};
    if (how.sequence_parallel && how.chunks > 1) how.peers = peers(tp);
    placements = parallel::apply_tensor_parallel(*model_, tp, std::move(how));
  } else {
    for (const nn::Parameter& p : model_->parameters()) placements[p.name] = {};
  }
  const std::map<std::string, Placement> weights = weight_placements(*model_, placements);
  quantized_.replace_pieces(model_->linears(), tp, placements);
  if (options_.lora) add_rank_adapters(*model_, *options_.lora, options_.seed, weights, tp, placements);
  return placements;
}

void ParallelModel::shard() {
  const std::map<std::string, Placement> placements = place();
  const bool first_replica = groups_.coordinate(Axis::replicate) == 0;
  bool second_table = false;
  if (pipeline_ && model_->config().tied) {
    const bool first = pipeline_->rank_of(0) == groups_.coordinate(Axis::pp);
    const bool last = pipeline_->loss_rank() == groups_.coordinate(Axis::pp);
    const int ends[] = {pipeline_->rank_of(0), pipeline_->loss_rank()};
    tied_ = groups_.along(Axis::pp).split_by([&](int r) { return r == ends[0] || r == ends[1] ? 0 : -1; });
    second_table = last && !first;
  }
  std::vector<std::vector<parallel::HeldParameter>> units;
  for (const nn::Unit& unit : model_->units()) {
    units.emplace_back();
    for (const nn::Parameter& p : unit.parameters) {
      parallel::HeldParameter held{p.name, p.value, true, placements.at(p.name), logical_.at(p.name).shape};
      held.trains = !options_.lora || lora::is_adapter_parameter(p.name);
      const bool table = p.name == "model.embed_tokens.weight";
      if (table && tied_) held.parts = tied_.get();
      if (held.placement.partial && held.placement.copies > 1)
        held.parts = held.placement.copies == groups_.along(Axis::tp).size()
                         ? &groups_.along(Axis::tp)
                         : &groups_.kv_copies(held.placement.copies);
      held.counts = first_replica && held.placement.copy == 0 && !(table && second_table);
      units.back().push_back(std::move(held));
    }
  }
  const bool by_engines = options_.fsdp.stage == 3 || options_.peer_copies == PeerCopies::always;
  fsdp_ = std::make_unique<parallel::Fsdp>(std::move(units), groups_.sharding(),
                                           groups_.along(Axis::replicate), options_.fsdp, device_,
                                           by_engines ? peers(groups_.sharding()) : nullptr);
  model_->set_observer(fsdp_.get());
  for (const parallel::OwnedPiece* piece : fsdp_->pieces()) {
    if (!piece->parameter->trains) continue;
    const Logical& logical = logical_.at(piece->parameter->name);
    trained_.push_back({piece->parameter->name, piece->value, options_.decay_all || logical.shape.ndim() >= 2,
                        logical.index, piece->begin});
  }
}

// Copy engines move what FSDP and cut layers share where GPUs of one host see each other's memory; else NCCL
// does.
std::unique_ptr<parallel::PeerGroup> ParallelModel::peers(parallel::Communicator& ranks) {
  if (options_.peer_copies == PeerCopies::never || device_ != Device::cuda || ranks.size() == 1)
    return nullptr;
  std::string why;
  auto group = parallel::peer_group(ranks, &why);
  if (group == nullptr) notes_.push_back(fmt::format("parallel.peer_copies: NCCL is used: {}", why));
  return group;
}

// One whole parameter at a time comes to life, and this rank keeps its piece.
void ParallelModel::fill(const models::ModelWeights* weights) {
  std::map<std::string, Tensor> adapters;
  for (const nn::Parameter& p : whole_->parameters()) {
    if (lora::is_adapter_parameter(p.name)) adapters[p.name] = *p.value;
  }
  if (weights != nullptr) weights->prefetch();
  const std::map<std::string, Placement> placements = fsdp_->placements();
  if (device_ != Device::meta) {
    for (const nn::Parameter& p : model_->parameters()) {
      const Shape& shape = logical_.at(p.name).shape;
      const auto dense = [&](const std::string& name, const Shape& of) {
        return dense_value(weights, name, of).on(device_);
      };
      Tensor whole;
      if (const auto adapter = adapters.find(p.name); adapter != adapters.end()) {
        whole = adapter->second;
      } else if (quantized_.holds(p.name)) {
        whole = quantized_.value(p.name, dense);
      } else {
        whole = dense_value(weights, p.name, shape);
      }
      // Codes are read without strides.
      const Tensor piece = piece_of(whole, placements.at(p.name));
      fsdp_->write(p.name, quantized_.holds(p.name) ? piece.as_contiguous() : piece);
    }
  }
  model_->adopt(device_);
}

// As it is stored, or with random values on the device.
Tensor ParallelModel::dense_value(const models::ModelWeights* weights, const std::string& name,
                                  const Shape& shape) const {
  if (weights != nullptr) return weights->read(name, shape);
  Tensor whole = Tensor::empty(shape, options_.dtype, device_);
  models::initialize_parameter(model_->config(), {name, &whole}, base_index_.at(name), options_.seed);
  return whole;
}

std::vector<std::pair<std::int64_t, std::int64_t>> ParallelModel::token_ranges(std::int64_t tokens) const {
  const int cp = groups_.mesh().size(Axis::cp);
  if (cp == 1) return {{0, tokens}};
  return parallel::zigzag_ranges(tokens, cp, groups_.coordinate(Axis::cp));
}

bool ParallelModel::reports_loss() const {
  const bool last = !pipeline_ || pipeline_->loss_rank() == groups_.coordinate(Axis::pp);
  return last && groups_.coordinate(Axis::tp) == 0;
}

parallel::PipelineWork ParallelModel::work(const std::vector<Batch>& batches, double scale,
                                           const std::function<void(std::size_t)>& before) {
  parallel::PipelineWork work;
  work.forward = [this, &batches, scale, before](int stage, int micro, const Tensor& input) {
    const auto m = static_cast<std::size_t>(micro);
    const models::LayerRange range = stages_[static_cast<std::size_t>(stage)];
    if (before) before(m);
    const Tensor x = model_->run_blocks(range, stage == 0 ? model_->embed(batches[m].ids) : input);
    if (range.end < model_->config().layers) return x;
    if (autograd::grad_enabled()) return model_->finish_loss(x, batches[m].targets, scale);
    return sum_of(model_->finish_token_losses(x, batches[m].targets));
  };
  const std::int64_t cut = options_.sequence_parallel ? groups_.mesh().size(Axis::tp) : 1;
  work.shape = [this, &batches, cut](int micro) {
    const Shape& ids = batches[static_cast<std::size_t>(micro)].ids.shape();
    return Shape{ids[0], ids[1] / cut, model_->config().hidden_size};
  };
  return work;
}

Tensor ParallelModel::forward_backward(const std::vector<Batch>& batches, double scale,
                                       const std::function<void(std::size_t)>& before) {
  const Tensor sum = Tensor::zeros({1}, DType::f64, device_);
  const autograd::EarlyGradientsScope early;
  if (pipeline_) {
    fsdp_->begin(true);
    const auto losses = pipeline_->run(static_cast<int>(batches.size()), work(batches, scale, before));
    for (const Tensor& loss : losses) add_loss(loss.detached(), sum);
    fsdp_->finish();
  } else {
    for (std::size_t m = 0; m < batches.size(); ++m) {
      fsdp_->begin(m + 1 == batches.size());
      if (before) before(m);
      const Tensor loss = model_->loss(batches[m].ids, batches[m].targets, scale);
      add_loss(loss.detached(), sum);
      autograd::backward(loss);
      fsdp_->finish();
    }
  }
  return sum;
}

double ParallelModel::evaluate(const std::vector<Batch>& batches) {
  const autograd::NoGradScope no_grad;
  std::vector<Tensor> losses;
  if (pipeline_) {
    losses = pipeline_->evaluate(static_cast<int>(batches.size()), work(batches, 1, {}));
  } else {
    for (const Batch& batch : batches)
      losses.push_back(sum_of(model_->token_losses(batch.ids, batch.targets)));
  }
  double sum = 0;
  for (const Tensor& loss : losses) {
    const Tensor wide = loss.on(Device::cpu).to(DType::f64);
    for (const double x : wide.span<double>()) sum += x;
  }
  return reports_loss() ? sum : 0;
}

Tensor ParallelModel::gradient_norm() {
  const std::vector<Tensor> grads = fsdp_->counted_gradients();
  const Tensor sum = Tensor::zeros({1}, DType::f64, device_);
  Stream& stream = current_stream(device_);
  for (const Tensor& t : grads) {
    visit_compute(t.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::add_sum_of_squares<T>(stream, t.view<T>(), sum.view<double>());
    });
  }
  if (groups_.world().size() > 1) groups_.world().all_reduce(parallel::span_of<double>(sum));
  kernels::sqrt<double>(stream, sum.view<double>(), sum.view<double>());
  return sum;
}

std::vector<Piece> ParallelModel::pieces(const optim::Optimizer* optimizer) const {
  std::vector<Piece> all;
  std::map<std::string, const parallel::OwnedPiece*> owned;
  for (const parallel::OwnedPiece* piece : fsdp_->pieces()) {
    if (!piece->parameter->trains) continue;
    owned[piece->parameter->name] = piece;
    all.push_back(stored("model/" + piece->parameter->name, *piece, piece->value));
  }
  if (optimizer == nullptr) return all;
  for (const optim::StateTensor& s : optimizer->state())
    all.push_back(stored("optimizer/" + s.name, *owned.at(s.name.substr(0, s.name.rfind('.'))), s.value));
  return all;
}

std::vector<std::pair<std::string, Shape>> ParallelModel::trained_shapes() const {
  std::vector<std::pair<std::string, Shape>> all(logical_.size());
  for (const auto& [name, logical] : logical_) all[logical.index] = {name, logical.shape};
  std::erase_if(all, [this](const auto& p) { return options_.lora && !lora::is_adapter_parameter(p.first); });
  return all;
}

Tensor ParallelModel::gather(const std::string& name) const {
  const Shape& shape = logical_.at(name).shape;
  const DType dtype = lora::is_adapter_parameter(name) ? DType::f32 : options_.dtype;
  Piece mine{name, {shape.begin(), shape.end()}, dtype, {}, {}, false};
  for (const parallel::OwnedPiece* piece : fsdp_->pieces()) {
    if (piece->parameter->name == name) mine = stored(name, *piece, piece->value);
  }
  return gather_whole(mine, groups_.world());
}

std::string ParallelModel::not_finite() const {
  for (const optim::TrainedParameter& p : trained_) {
    if (const std::int64_t at = first_bad(p.value); at >= 0)
      return fmt::format("weight {} (element {})", p.name, p.first + at);
  }
  for (const optim::TrainedParameter& p : trained_) {
    if (const std::int64_t at = first_bad(autograd::grad_of(p.value)); at >= 0)
      return fmt::format("gradient of {} (element {})", p.name, p.first + at);
  }
  return {};
}

}  // namespace ridge
