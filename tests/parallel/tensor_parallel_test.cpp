#include "parallel/tensor_parallel.h"

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
      make_case("one sample", [](TpCase& c) { c.batch = 1; }),
      make_case("three samples", [](TpCase& c) { c.batch = 3; }),
  };
}

void expect_one_rank(const TpCase& c, const TpLayout& layout, const TpResult& want, const Tensors& weights,
                     double bound) {
  std::string where;
  const double error = worst_of(run_parallel(c, weights, layout), want, where);
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

}  // namespace
}  // namespace ridge::test
