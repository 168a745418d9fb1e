// A model cut over ranks as a layout says, and trained there: all five axes, in any product.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/models/llama.h"
#include "core/models/weights.h"
#include "launch/batch_source.h"
#include "launch/checkpoint.h"
#include "launch/quantized_layers.h"
#include "lora/lora_config.h"
#include "optim/optimizer.h"
#include "parallel/context_parallel.h"
#include "parallel/fsdp.h"
#include "parallel/groups.h"
#include "parallel/peer_memory.h"
#include "parallel/pipeline.h"

namespace ridge {

/// What copy engines move where GPUs of one host see each other's memory; NCCL moves the rest. By themselves:
/// FSDP's parameters and gradients in stage 3, where they were measured to be ahead, and pieces of sequences
/// where products of tp overlap. Always: stages 1 and 2 too.
enum class PeerCopies { automatic, always, never };
/// "auto", "always" or "never".
PeerCopies parse_peer_copies(std::string_view name);

struct ParallelOptions {
  DType dtype = DType::f32;
  std::uint64_t seed = 0;                // of random weights and adapters
  std::optional<lora::LoraConfig> lora;  // new adapters; absent with `adapter`: all weights are trained
  std::string adapter;                   // PEFT folder to start from
  std::optional<double> dropout = std::nullopt;  // in place of that adapter's
  std::optional<kernels::WeightFormat> quantize =
      std::nullopt;        // of the linear layers that adapters train on
  bool decay_all = false;  // weight decay of vectors too
  models::Recompute recompute = models::Recompute::none;
  bool deterministic = true;
  parallel::FsdpOptions fsdp;
  PeerCopies peer_copies = PeerCopies::automatic;
  bool sequence_parallel = false;  // norms and residuals cut over tp
  int tp_chunks = 1;               // above 1: products and collectives of tp overlap in so many pieces
  parallel::ContextKind context = parallel::ContextKind::ring;
  parallel::Schedule schedule = parallel::Schedule::one_f_one_b;
  int stages_per_rank = 0;           // 0: the schedule's own
  std::vector<std::int64_t> layers;  // blocks of each pipeline stage; empty: evenly
};

/// "none", "selective" or "blocks".
models::Recompute parse_recompute(std::string_view name);

/// Blocks of each of `stages` stages: as asked, or evenly with the remainder in the first ones. A UserError
/// where they do not add up to `layers`.
std::vector<models::LayerRange> split_layers(std::int64_t layers, int stages,
                                             const std::vector<std::int64_t>& asked);

class ParallelModel {
 public:
  /// `weights`: where values come from; null: random ones. `groups` must outlive this. All ranks together.
  ParallelModel(const models::ModelConfig& config, const models::ModelWeights* weights,
                ParallelOptions options, parallel::Groups& groups, Device device);
  ~ParallelModel();

  models::Llama& model() { return *model_; }
  parallel::Groups& groups() { return groups_; }
  /// What this rank's optimizer moves.
  const std::vector<optim::TrainedParameter>& trained() const { return trained_; }
  /// Set where adapters are trained.
  const std::optional<lora::LoraConfig>& adapter() const { return options_.lora; }
  const std::vector<std::string>& notes() const { return notes_; }

  /// This rank's part of the positions of sequences of `tokens`.
  std::vector<std::pair<std::int64_t, std::int64_t>> token_ranges(std::int64_t tokens) const;
  /// Gradients of scale * the sum of all target tokens' losses, over all ranks. `batches`: this rank's parts
  /// of the micro-batches of its data rank; `before(m)` is called before each forward. Returns this rank's
  /// share of the loss, f64 [1] on the device; the sum over all ranks is the whole.
  Tensor forward_backward(const std::vector<Batch>& batches, double scale,
                          const std::function<void(std::size_t)>& before);
  /// The 2-norm of the whole model's gradients, f64 [1] on the device.
  Tensor gradient_norm();
  /// After the optimizer has moved what this rank owns.
  void updated() { fsdp_->publish(); }
  /// The sum of the batches' losses, without gradients; as forward_backward.
  double evaluate(const std::vector<Batch>& batches);
  /// Whether the loss of this rank's tokens is on this rank, once among its tensor-parallel ranks.
  bool reports_loss() const;

  /// A whole trained parameter on the CPU, the same on every rank: all of them ask for it together.
  Tensor gather(const std::string& name) const;
  /// Shapes of the trained parameters of the whole model, in its order.
  std::vector<std::pair<std::string, Shape>> trained_shapes() const;

  /// What a checkpoint holds of this rank: parameters, and the optimizer's state.
  std::vector<Piece> pieces(const optim::Optimizer* optimizer) const;
  /// What is not finite here: "weight NAME", "gradient of NAME", or nothing.
  std::string not_finite() const;
  /// Null without pipeline stages.
  parallel::Pipeline* pipeline() { return pipeline_.get(); }

 private:
  struct Logical {
    Shape shape;
    std::uint64_t index;  // among the parameters of the whole model
  };

  void describe_whole(const models::ModelConfig& config);
  void cut(const models::ModelConfig& config);
  std::map<std::string, parallel::Placement> place();
  void shard();
  std::unique_ptr<parallel::PeerGroup> peers(parallel::Communicator& ranks);
  void fill(const models::ModelWeights* weights);
  Tensor dense_value(const models::ModelWeights* weights, const std::string& name, const Shape& shape) const;
  parallel::PipelineWork work(const std::vector<Batch>& batches, double scale,
                              const std::function<void(std::size_t)>& before);

  ParallelOptions options_;
  parallel::Groups& groups_;
  Device device_;
  std::vector<std::string> notes_;
  std::map<std::string, Logical> logical_;
  std::map<std::string, std::uint64_t> base_index_;  // among parameters without adapters, all dense
  QuantizedLayers quantized_;
  std::unique_ptr<models::Llama> whole_;  // on meta, its adapters alive: until values are filled in
  std::unique_ptr<models::Llama> model_;
  std::vector<models::LayerRange> stages_;
  std::unique_ptr<parallel::Pipeline> pipeline_;
  std::unique_ptr<parallel::Communicator> tied_;  // the ranks that hold the table of a tied model
  std::unique_ptr<parallel::Fsdp> fsdp_;
  std::vector<optim::TrainedParameter> trained_;
};

}  // namespace ridge
