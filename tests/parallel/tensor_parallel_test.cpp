#include "parallel/tensor_parallel.h"

#include "core/ops/elementwise.h"
#include "parallel/parallel_linear.h"
#include "parallel/simulated_communicator.h"
#include "tests/parallel/tensor_parallel_run.h"

namespace ridge::test {
namespace {

TpCase make_case(const std::string& name, const std::function<void(TpCase&)>& change = {}) {
  TpCase c;
  c.name = name;
  if (change) change(c);
  return c;
}

std::vector<TpCase> cases() {
  return {
      make_case("llama"),
      make_case("tied", [](TpCase& c) { c.config.tied = true; }),
      make_case("qwen2 biases",
                [](TpCase& c) {
                  c.config.qkv_bias = true;
                  c.config.kv_heads = 4;
                  c.config.vocab_size = 41;
                }),
      make_case("biases everywhere",
                [](TpCase& c) { c.config.qkv_bias = c.config.output_bias = c.config.mlp_bias = true; }),
      make_case("gelu", [](TpCase& c) { c.config.activation = "gelu_tanh"; }),
      make_case("one kv head", [](TpCase& c) { c.config.kv_heads = 1; }),
      make_case("few ids", [](TpCase& c) { c.config.vocab_size = 9; }),  // ranks without any at tp 8
      make_case("recompute", [](TpCase& c) { c.recompute = models::Recompute::blocks; }),
      make_case("selective", [](TpCase& c) { c.recompute = models::Recompute::selective; }),
      make_case("adapters", [](TpCase& c) { c.lora = true; }),
      make_case("adapters of qwen2",
                [](TpCase& c) {
                  c.lora = true;
                  c.config.qkv_bias = c.config.output_bias = true;
                }),
      make_case("dropout before columns",
                [](TpCase& c) {
                  c.lora = true;
                  c.dropout = 0.3;
                  c.targets = {"q_proj", "v_proj", "up_proj"};
                }),
      make_case("weights later", [](TpCase& c) { c.defer = true; }),
      make_case("one sample", [](TpCase& c) { c.batch = 1; }),
      make_case("three samples", [](TpCase& c) { c.batch = 3; }),
  };
}

void expect_one_rank(const TpCase& c, const TpLayout& layout, const TpResult& want, const Tensors& weights,
                     double bound) {
  std::string where;
  double error = 0;
  parallel::run_ranks(layout.tp, [&](parallel::Communicator& tp) {
    const TpResult got = run_rank(c, weights, layout, tp, tp, Device::cpu);
    if (tp.rank() == 0) error = worst_of(got, want, where);
  });
  EXPECT_LT(error, bound) << c.name << ", tp " << layout.tp << ", sequence parallel "
                          << layout.sequence_parallel << ", chunks " << layout.chunks << ": " << where;
}

class TensorParallel : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, TensorParallel, ::testing::Values(2, 4, 8));

// Gradients of adapters are kept in f32.
TEST_P(TensorParallel, LossAndEveryGradientAreThoseOfOneRank) {
  for (const TpCase& c : cases()) {
    const Tensors weights = weights_of(c);
    const TpResult want = run_whole(c, weights);
    for (const bool sequence_parallel : {false, true}) {
      for (const int chunks : {1, 2, 3})
        expect_one_rank(c, {GetParam(), sequence_parallel, chunks}, want, weights, c.lora ? 1e-6 : 1e-10);
    }
  }
}

TEST_P(TensorParallel, InSinglePrecisionToo) {
  TpCase c;
  c.dtype = DType::f32;
  const Tensors weights = weights_of(c);
  const TpResult want = run_whole(c, weights);
  for (const bool sequence_parallel : {false, true})
    expect_one_rank(c, {GetParam(), sequence_parallel, 2}, want, weights, 1e-5);
}

// An adapted output layer takes its logits in f32, as one rank's does.
TEST_P(TensorParallel, AdaptedOutputLayer) {
  TpCase c;
  c.lora = true;
  c.targets = {"lm_head", "q_proj", "down_proj"};
  c.dtype = DType::f32;
  const Tensors weights = weights_of(c);
  const TpResult want = run_whole(c, weights);
  for (const bool sequence_parallel : {false, true})
    expect_one_rank(c, {GetParam(), sequence_parallel, 1}, want, weights, 1e-5);
}

// A sum of bf16 parts is rounded more often.
TEST_P(TensorParallel, InBf16) {
  TpCase c;
  const Tensors exact = weights_of(c);
  c.dtype = DType::bf16;
  Tensors weights;
  for (const auto& [name, value] : exact) weights[name] = value.to(DType::bf16);
  const TpResult want = run_whole(c, weights);
  for (const bool sequence_parallel : {false, true})
    expect_one_rank(c, {GetParam(), sequence_parallel, 2}, want, weights, 6e-2);
}

// Token by token, with a cache of this rank's heads, where a sequence cannot be cut.
TEST_P(TensorParallel, DecodesWithSequenceParallelismOff) {
  TpCase c;
  const Tensors weights = weights_of(c);
  const Tensor want = run_whole(c, weights).logits;
  parallel::run_ranks(GetParam(), [&](parallel::Communicator& tp) {
    const TpModel mine(c, weights, {tp.size(), true, 1}, tp);
    parallel::set_sequence_parallel(*mine.model, false);
    const autograd::NoGradScope no_grad;
    nn::KvCache cache = mine.model->make_cache(c.batch, c.tokens);
    const Tensor ids = batch_of(c).first;
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      const Tensor logits = mine.model->last_logits(ids.sliced(1, t, t + 1).contiguous_copy(), &cache);
      const Tensor row = want.sliced(1, t, t + 1).contiguous_copy().reshaped(logits.shape());
      EXPECT_LT(normalized_error(logits, row), 1e-10) << "token " << t;
    }
    parallel::set_sequence_parallel(*mine.model, true);
    EXPECT_LT(normalized_error(mine.model->logits(ids), want), 1e-10);
  });
}

// What the stages of a pipeline hold is cut alike.
TEST_P(TensorParallel, StagesOfAModel) {
  for (const bool tied : {false, true}) {
    TpCase c;
    c.config.tied = tied;
    const Tensors weights = weights_of(c);
    const TpResult want = run_whole(c, weights);
    parallel::run_ranks(GetParam(), [&](parallel::Communicator& tp) {
      const TpLayout layout{tp.size(), true, 1};
      const TpModel first(c, weights, layout, tp, Device::cpu, {{0, 1}});
      const TpModel second(c, weights, layout, tp, Device::cpu, {{1, 2}});
      const auto [ids, targets] = batch_of(c);
      const autograd::NoGradScope no_grad;
      const Tensor x = first.model->run_blocks({0, 1}, first.model->embed(ids));
      EXPECT_EQ(x.shape(), (Shape{c.batch, c.tokens / tp.size(), c.config.hidden_size}));
      const double scale = 1.0 / static_cast<double>(ids.numel());
      const Tensor loss = second.model->finish_loss(second.model->run_blocks({1, 2}, x), targets, scale);
      EXPECT_NEAR(loss.item(), want.loss, 1e-10);
    });
  }
}

// A step on meta sends what the plan says: sums of [B, T, C] after the embedding and the rows of each block,
// those of gradients before the columns and the output layer, and three statistics a token.
TEST_P(TensorParallel, StepsOnMetaCountWhatIsSent) {
  const TpCase c;
  const int P = GetParam();
  for (const bool sequence_parallel : {false, true}) {
    parallel::SimulatedCommunicator tp({1e9, 1e-6}, P, P - 1);
    models::Llama model(c.config, c.dtype, Device::meta);
    parallel::apply_tensor_parallel(model, tp, {sequence_parallel, 2});
    for (const nn::Parameter& p : model.parameters()) autograd::set_requires_grad(*p.value, true);
    const Tensor ids = Tensor::empty({c.batch, c.tokens}, DType::i32, Device::meta);
    autograd::backward(model.loss(ids, ids, 1));
    const double rows = static_cast<double>(c.batch * c.tokens), others = (P - 1.0) / P;
    const double activations = others * 8 * rows * static_cast<double>(c.config.hidden_size);
    const double statistics = others * 8 * 3 * P * rows, L = static_cast<double>(c.config.layers);
    // All-reduces move each byte twice. Cut sequences are gathered and scattered in their place, the output
    // layer's input too, the inputs of columns once more for their weights.
    const double moves = sequence_parallel ? 10 * L + 4 : 2 * (4 * L + 2);
    EXPECT_NEAR(tp.time().bytes, moves * activations + statistics, 1e-6);
    EXPECT_GT(tp.time().busy_seconds, 0);
  }
  current_stream(Device::meta).virtual_seconds = 0;
}

// Remembers the mask that dropout gives it.
class MaskProbe final : public nn::Linear {
 public:
  explicit MaskProbe(std::vector<double>& mask) : mask_(mask) {}
  Tensor forward(const Tensor& x) const override {
    const Tensor y = ops::dropout(x, 0.5);
    mask_ = values_of(y);
    return y;
  }
  std::int64_t in_features() const override { return 64; }
  std::int64_t out_features() const override { return 64; }
  void collect(const std::string&, nn::Parameters&) override {}

 private:
  std::vector<double>& mask_;
};

TEST(TensorParallelDropout, MasksAreOneRanksBeforeColumnsAndItsColumnsBeforeRows) {
  std::vector<std::vector<double>> before_columns(2), before_rows(2);
  parallel::run_ranks(2, [&](parallel::Communicator& tp) {
    const auto how = std::make_shared<parallel::TensorParallelism>(parallel::TensorParallelism{&tp});
    const auto rank = static_cast<std::size_t>(tp.rank());
    random_state() = {3, 0, 0, 0};
    const Tensor x = Tensor::full({1, 4, 64}, 1, DType::f64);
    parallel::ColumnParallelLinear(how, std::make_unique<MaskProbe>(before_columns[rank])).forward(x);
    parallel::RowParallelLinear(how, std::make_unique<MaskProbe>(before_rows[rank]), {}, 64 * tp.rank(), 128)
        .forward(x);
    EXPECT_EQ(random_state().seed, 3u);
    EXPECT_EQ(random_state().next_call, 2u);
  });
  EXPECT_EQ(before_columns[0], before_columns[1]);
  std::vector<double> whole;
  random_state() = {3, 0, 0, 1};
  MaskProbe(whole).forward(Tensor::full({1, 4, 128}, 1, DType::f64));
  for (std::size_t i = 0; i < whole.size(); ++i)
    EXPECT_EQ(before_rows[i % 128 / 64][i / 128 * 64 + i % 64], whole[i]) << i;
}

std::string refusal(const models::ModelConfig& config, int tp, bool sequence_parallel = false,
                    std::int64_t tokens = 16) {
  try {
    parallel::check_tensor_parallel(config, tp, sequence_parallel, tokens);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

TEST(TensorParallelCheck, NamesNumbersAndWhatWouldFit) {
  models::ModelConfig c = tiny_config();
  for (const int tp : {1, 2, 4, 8}) EXPECT_EQ(refusal(c, tp, true), "") << tp;
  EXPECT_EQ(refusal(c, 3), "tp 3 does not divide the model's 8 attention heads: try tp 2");
  EXPECT_EQ(refusal(c, 16), "tp 16 does not divide the model's 8 attention heads: try tp 8");
  EXPECT_EQ(refusal(c, 7), "tp 7 does not divide the model's 8 attention heads: try tp 8");
  c.kv_heads = 3;
  c.heads = 12;
  EXPECT_EQ(refusal(c, 4),
            "tp 4 neither divides the model's 3 key-value heads nor is a multiple of them: try tp 3");
  c = tiny_config();
  c.intermediate_size = 44;
  EXPECT_EQ(refusal(c, 8), "");  // the MLP is cut unevenly
  EXPECT_EQ(refusal(tiny_config(), 8, false, 12), "");
  EXPECT_NE(refusal(tiny_config(), 8, true, 12).find("a sequence of 12 tokens"), std::string::npos);
  EXPECT_NE(refusal(tiny_config(), 8, true, 12).find("try tp 4"), std::string::npos);
  EXPECT_NE(refusal(c, 0), "");
}

TEST(TensorParallelCheck, ASequenceThatCannotBeCutIsAUserError) {
  TpCase c;
  c.tokens = 15;
  const Tensors weights = weights_of(c);
  EXPECT_THROW(parallel::run_ranks(2,
                                   [&](parallel::Communicator& tp) {
                                     const TpModel mine(c, weights, {2, true, 1}, tp);
                                     mine.model->logits(batch_of(c).first);
                                   }),
               UserError);
}

TEST(TensorParallelPlacement, SaysWhereEveryParameterLies) {
  models::ModelConfig config = tiny_config();  // 2 key-value heads of 4, 37 ids
  config.output_bias = config.qkv_bias = true;
  parallel::run_ranks(8, [&](parallel::Communicator& tp) {
    models::Llama model(config, DType::bf16, Device::meta);
    const auto places = parallel::apply_tensor_parallel(model, tp, {true, 1});
    EXPECT_EQ(places.size(), model.parameters().size());
    const int r = tp.rank();
    const auto expect = [&](const std::string& name, int dim, std::int64_t begin, std::int64_t end,
                            int copies, int copy, bool partial) {
      const parallel::Placement& p = places.at(name);
      EXPECT_EQ(p.dim, dim) << name;
      EXPECT_EQ(std::pair(p.begin, p.end), std::pair(begin, end)) << name;
      EXPECT_EQ(std::pair(p.copies, p.copy), std::pair(copies, copy)) << name;
      EXPECT_EQ(p.partial, partial) << name;
    };
    const std::string block = "model.layers.1.";
    expect("model.embed_tokens.weight", 0, std::min(5 * r, 37), std::min(5 * r + 5, 37), 1, 0, false);
    expect("lm_head.weight", 0, std::min(5 * r, 37), std::min(5 * r + 5, 37), 1, 0, false);
    expect(block + "self_attn.q_proj.weight", 0, 4 * r, 4 * r + 4, 1, 0, false);
    expect(block + "self_attn.q_proj.bias", 0, 4 * r, 4 * r + 4, 1, 0, false);
    expect(block + "self_attn.k_proj.weight", 0, r / 4 * 4, r / 4 * 4 + 4, 4, r % 4, true);
    expect(block + "self_attn.v_proj.bias", 0, r / 4 * 4, r / 4 * 4 + 4, 4, r % 4, true);
    expect(block + "self_attn.o_proj.weight", 1, 4 * r, 4 * r + 4, 1, 0, false);
    expect(block + "self_attn.o_proj.bias", -1, 0, 0, 8, r, true);
    expect(block + "mlp.down_proj.weight", 1, 6 * r, 6 * r + 6, 1, 0, false);
    expect(block + "input_layernorm.weight", -1, 0, 0, 8, r, true);
    expect("model.norm.weight", -1, 0, 0, 8, r, true);
    models::Llama plain(config, DType::bf16, Device::meta);
    const auto whole = parallel::apply_tensor_parallel(plain, tp, {false, 1});
    EXPECT_FALSE(whole.at("model.norm.weight").partial);
    EXPECT_FALSE(whole.at(block + "self_attn.o_proj.bias").partial);
  });
}

}  // namespace
}  // namespace ridge::test
