#include "parallel/tensor_parallel.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

#include "parallel/collective_ops.h"
#include "parallel/parallel_linear.h"
#include "parallel/peer_pieces.h"

namespace ridge::parallel {
namespace {

using kernels::VocabPiece;
using models::ModelConfig;

enum class Style { column, kv_column, row, vocabulary };

// The plan: how the layer whose path ends so is cut.
struct Rule {
  std::string_view suffix;
  Style style;
};
constexpr std::array<Rule, 8> kPlan{{{".q_proj", Style::column},
                                     {".k_proj", Style::kv_column},
                                     {".v_proj", Style::kv_column},
                                     {".o_proj", Style::row},
                                     {".gate_proj", Style::column},
                                     {".up_proj", Style::column},
                                     {".down_proj", Style::row},
                                     {"lm_head", Style::vocabulary}}};

Style style_of(std::string_view path) {
  const auto rule =
      std::find_if(kPlan.begin(), kPlan.end(), [&](const Rule& r) { return path.ends_with(r.suffix); });
  if (rule == kPlan.end()) fail("tensor parallelism: no rule for {}", path);
  return rule->style;
}

// As evenly as can be; `copies` ranks share each part.
Placement part(int dim, std::int64_t rows, const Communicator& tp, int copies = 1) {
  const std::int64_t parts = tp.size() / copies, part = tp.rank() / copies;
  return {dim, rows * part / parts, rows * (part + 1) / parts, copies, tp.rank() % copies, copies > 1};
}

VocabPiece vocab_of(std::int64_t vocabulary, const Communicator& tp) {
  const std::int64_t each = (vocabulary + tp.size() - 1) / tp.size();
  return {std::min(vocabulary, each * tp.rank()), vocabulary};
}

Placement vocab_placement(std::int64_t vocabulary, const Communicator& tp) {
  const std::int64_t each = (vocabulary + tp.size() - 1) / tp.size();
  const std::int64_t first = vocab_of(vocabulary, tp).first;
  return {0, first, std::min(vocabulary, first + each), 1, 0, false};
}

// Replaces the layers of one model, and notes where their parameters lie.
class Cutter {
 public:
  Cutter(models::Llama& model, Communicator& tp, TensorParallelOptions options)
      : model_(model),
        tp_(tp),
        how_(std::make_shared<TensorParallelism>(
            TensorParallelism{&tp, options.sequence_parallel, std::max(options.chunks, 1)})) {
    how_->one_shot = std::move(options.one_shot);
    if (options.peers != nullptr && how_->chunks > 1)
      how_->peers = std::make_shared<PeerPieces>(std::move(options.peers));
  }

  std::map<std::string, Placement> run() {
    check(model_.device() == Device::meta, "a model is cut on meta");
    const nn::Embedding* table = model_.embedding_slot().get();
    if (table != nullptr) cut_embedding();
    for (const nn::LinearSlot& slot : model_.linears()) cut(slot.path, *slot.slot);
    if (model_.config().tied && model_.head_slot() != nullptr) tie_head();
    for (const nn::Parameter& p : model_.parameters())
      placements_.try_emplace(p.name, Placement::whole(tp_.size(), tp_.rank(), how_->sequence_parallel));
    set_sequence_parallel(model_, how_->sequence_parallel);
    return std::move(placements_);
  }

 private:
  Tensor piece_of(const Tensor& whole, const Placement& p) const {
    return Tensor::empty(p.local_shape(whole.shape()), whole.dtype(), whole.device());
  }

  void cut_embedding() {
    const Tensor& whole = model_.embedding_slot()->table();
    const Placement place = vocab_placement(whole.dim(0), tp_);
    placements_["model.embed_tokens.weight"] = place;
    const VocabPiece ids = vocab_of(whole.dim(0), tp_);
    model_.embedding_slot() = std::make_unique<VocabParallelEmbedding>(how_, piece_of(whole, place), ids);
  }

  void tie_head() {
    const VocabPiece ids = vocab_of(model_.config().vocab_size, tp_);
    model_.head_slot() = std::make_unique<VocabParallelHead>(how_, model_.embedding_slot()->table(), ids);
  }

  void cut(const std::string& path, std::unique_ptr<nn::Linear>& slot) {
    auto* dense = dynamic_cast<nn::DenseLinear*>(slot.get());
    check(dense != nullptr, "dense layers are cut; what is added to them is added later");
    const Style style = style_of(path);
    const Placement place = place_of(style, dense->weight());
    placements_[path + ".weight"] = place;
    const Tensor weight = piece_of(dense->weight(), place), whole_bias = dense->bias();
    if (style == Style::row) {
      if (whole_bias.defined())
        placements_[path + ".bias"] = Placement::whole(tp_.size(), tp_.rank(), how_->sequence_parallel);
      slot = std::make_unique<RowParallelLinear>(how_, std::make_unique<nn::DenseLinear>(weight, Tensor()),
                                                 whole_bias, place.begin, dense->weight().dim(1));
      return;
    }
    Tensor bias;
    if (whole_bias.defined()) {
      bias = piece_of(whole_bias, place);
      placements_[path + ".bias"] = place;
    }
    auto piece = std::make_unique<nn::DenseLinear>(weight, bias);
    if (style == Style::vocabulary) {
      slot =
          std::make_unique<VocabParallelHead>(how_, std::move(piece), vocab_of(dense->weight().dim(0), tp_));
    } else {
      slot = std::make_unique<ColumnParallelLinear>(how_, std::move(piece));
    }
  }

  Placement place_of(Style style, const Tensor& weight) const {
    switch (style) {
      case Style::column:
        return part(0, weight.dim(0), tp_);
      case Style::kv_column:
        return part(0, weight.dim(0), tp_,
                    static_cast<int>(std::max<std::int64_t>(1, tp_.size() / model_.config().kv_heads)));
      case Style::row:
        return part(1, weight.dim(1), tp_);
      default:
        return vocab_placement(weight.dim(0), tp_);
    }
  }

  models::Llama& model_;
  Communicator& tp_;
  SharedParallelism how_;
  std::map<std::string, Placement> placements_;
};

bool fits(const ModelConfig& c, std::int64_t tp, bool sequence_parallel, std::int64_t tokens) {
  const bool kv = c.kv_heads % tp == 0 || tp % c.kv_heads == 0;
  return c.heads % tp == 0 && c.intermediate_size >= tp && kv && (!sequence_parallel || tokens % tp == 0);
}

std::int64_t nearest(const ModelConfig& c, std::int64_t tp, bool sequence_parallel, std::int64_t tokens) {
  for (std::int64_t step = 1;; ++step) {
    if (tp - step >= 1 && fits(c, tp - step, sequence_parallel, tokens)) return tp - step;
    if (fits(c, tp + step, sequence_parallel, tokens)) return tp + step;
  }
}

}  // namespace

void check_tensor_parallel(const ModelConfig& config, int tp, bool sequence_parallel,
                           std::int64_t sequence_length) {
  require(tp >= 1, "tensor parallelism over {} ranks: it takes at least 1", tp);
  if (fits(config, tp, sequence_parallel, sequence_length)) return;
  const std::int64_t near = nearest(config, tp, sequence_parallel, sequence_length);
  const std::string try_near = fmt::format("try tp {}", near);
  require(config.heads % tp == 0, "tp {} does not divide the model's {} attention heads: {}", tp,
          config.heads, try_near);
  require(config.kv_heads % tp == 0 || tp % config.kv_heads == 0,
          "tp {} neither divides the model's {} key-value heads nor is a multiple of them: {}", tp,
          config.kv_heads, try_near);
  require(config.intermediate_size >= tp, "tp {} is more than the MLP's width {}: {}", tp,
          config.intermediate_size, try_near);
  fail_user(
      "tp {} does not divide a sequence of {} tokens, which sequence parallelism cuts: {}, another "
      "length, or turn it off",
      tp, sequence_length, try_near);
}

std::map<std::string, Placement> apply_tensor_parallel(models::Llama& model, Communicator& tp,
                                                       TensorParallelOptions options) {
  check_tensor_parallel(model.config(), tp.size(), false, 0);
  return Cutter(model, tp, options).run();
}

void set_sequence_parallel(models::Llama& model, bool on) {
  TensorParallelism* how = nullptr;
  for (const nn::LinearSlot& slot : model.linears()) {
    if (auto* column = dynamic_cast<ColumnParallelLinear*>(slot.slot->get())) how = &column->how();
  }
  check(how != nullptr, "a model that is cut over tp");
  how->sequence_parallel = on;
  model.set_sequence_pieces(on ? how->tp->size() : 1);
}

Placement adapter_placement(const Placement& linear_weight, bool is_a, int tp, int tp_rank) {
  if (linear_weight.dim < 0) return Placement::whole(tp, tp_rank);
  const bool cut = linear_weight.dim == (is_a ? 1 : 0);
  return cut ? linear_weight : Placement::whole(tp, tp_rank, true);
}

}  // namespace ridge::parallel
