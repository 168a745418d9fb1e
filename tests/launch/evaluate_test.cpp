// Protocols of perplexity: which tokens are seen, which are scored, and what ranks make of it.
#include "launch/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "core/base/error.h"
#include "parallel/communicator.h"
#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

std::vector<std::int32_t> numbers(int count) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), 1);
  return ids;
}

// "1 2>-2 3": inputs, and the targets that are scored.
std::string shown(const std::vector<Window>& windows) {
  std::string text;
  for (const Window& w : windows) {
    EXPECT_EQ(w.ids.size(), w.targets.size());
    for (const std::int32_t id : w.ids) text += std::to_string(id) + " ";
    text += ">";
    for (const std::int32_t target : w.targets) text += target == -100 ? " _" : " " + std::to_string(target);
    text += "; ";
  }
  return text;
}

std::string cut(int tokens, Protocol protocol, std::int64_t window, std::int64_t stride = 1,
                std::int32_t bos = -1) {
  return shown(cut_windows(numbers(tokens), protocol, window, stride, bos));
}

TEST(Windows, AreConsecutiveAndTheTailCounts) {
  EXPECT_EQ(cut(8, Protocol::windows, 4), "1 2 3 > 2 3 4; 5 6 7 > 6 7 8; ");
  EXPECT_EQ(cut(10, Protocol::windows, 4), "1 2 3 > 2 3 4; 5 6 7 > 6 7 8; 9 > 10; ");
  EXPECT_EQ(cut(9, Protocol::windows, 4), "1 2 3 > 2 3 4; 5 6 7 > 6 7 8; ");
  EXPECT_EQ(cut(3, Protocol::windows, 100), "1 2 > 2 3; ");
  EXPECT_EQ(cut(5, Protocol::windows, 2), "1 > 2; 3 > 4; ");
}

TEST(Windows, GptqDropsTheTail) { EXPECT_EQ(cut(10, Protocol::gptq, 4), "1 2 3 > 2 3 4; 5 6 7 > 6 7 8; "); }

TEST(Windows, StridedScoresEveryTokenOnce) {
  EXPECT_EQ(cut(8, Protocol::strided, 4, 2), "1 2 3 > 2 3 4; 3 4 5 > _ 5 6; 5 6 7 > _ 7 8; ");
  EXPECT_EQ(cut(7, Protocol::strided, 4, 2), "1 2 3 > 2 3 4; 3 4 5 > _ 5 6; 5 6 > _ 7; ");
  EXPECT_EQ(cut(6, Protocol::strided, 4, 4), "1 2 3 > 2 3 4; 5 > 6; ");
  for (const std::int64_t stride : {1, 2, 3, 5, 7}) {
    std::vector<int> scored(41);
    for (const Window& w : cut_windows(numbers(40), Protocol::strided, 7, stride, -1)) {
      for (const std::int32_t target : w.targets) {
        if (target != -100) ++scored[static_cast<std::size_t>(target)];
      }
    }
    for (std::size_t id = 2; id <= 40; ++id) {
      const bool begins =
          stride == 7 && id % 7 == 1;  // windows that do not overlap cannot score their first token
      EXPECT_EQ(scored[id], begins ? 0 : 1) << "stride " << stride << " id " << id;
    }
  }
}

TEST(Windows, LlamaCppScoresTheSecondHalf) {
  EXPECT_EQ(cut(9, Protocol::llama_cpp, 4, 1, 0), "0 2 3 > _ _ 4; 0 6 7 > _ _ 8; ");
  EXPECT_EQ(cut(8, Protocol::llama_cpp, 8, 1, -1), "1 2 3 4 5 6 7 > _ _ _ _ 6 7 8; ");
}

TEST(Windows, MistakesAreNamed) {
  const auto message = [](int tokens, Protocol protocol, std::int64_t window,
                          std::int64_t stride) -> std::string {
    try {
      cut_windows(numbers(tokens), protocol, window, stride, -1);
    } catch (const UserError& error) {
      return error.what();
    }
    return "no UserError";
  };
  EXPECT_EQ(message(8, Protocol::windows, 1, 1), "--window 1 is too short: 2 tokens at least");
  EXPECT_EQ(message(8, Protocol::strided, 4, 5), "--stride 5 is outside [1, window 4]");
  EXPECT_EQ(message(8, Protocol::strided, 4, 0), "--stride 0 is outside [1, window 4]");
  EXPECT_EQ(message(3, Protocol::gptq, 4, 1), "the text has 3 tokens: too few for a window of 4");
  EXPECT_THROW(parse_protocol("mine"), UserError);
  EXPECT_EQ(parse_protocol("llama.cpp"), Protocol::llama_cpp);
}

std::unique_ptr<models::Llama> random_model() {
  auto model = std::make_unique<models::Llama>(models::ModelConfig::parse(test::kTinyArch, "tiny"),
                                               DType::f32, Device::cpu);
  model->initialize(3);
  return model;
}

// exp of the mean over all windows of -log softmax, from the logits.
double nll_by_hand(models::Llama& model, const std::vector<Window>& windows) {
  double sum = 0;
  std::int64_t count = 0;
  for (const Window& w : windows) {
    const auto length = static_cast<std::int64_t>(w.ids.size());
    const Tensor logits = model.logits(Tensor::from(w.ids, {1, length}));
    const auto V = static_cast<std::size_t>(model.config().vocab_size);
    const auto values = logits.span<float>();
    for (std::size_t t = 0; t < w.targets.size(); ++t) {
      if (w.targets[t] == -100) continue;
      double total = 0;
      for (std::size_t v = 0; v < V; ++v) total += std::exp(static_cast<double>(values[t * V + v]));
      sum += std::log(total) - static_cast<double>(values[t * V + static_cast<std::size_t>(w.targets[t])]);
      ++count;
    }
  }
  return sum / static_cast<double>(count);
}

TEST(Evaluate, IsTheMeanOfTheScoredTokensOnAnyRanks) {
  for (const Protocol protocol : {Protocol::windows, Protocol::strided, Protocol::llama_cpp}) {
    const auto windows = cut_windows(numbers(290), protocol, 16, 5, 0);
    Perplexity one;
    parallel::run_ranks(
        1, [&](parallel::Communicator& self) { one = evaluate(*random_model(), windows, self); });
    EXPECT_NEAR(one.nll, nll_by_hand(*random_model(), windows), 1e-5);
    EXPECT_NEAR(one.value, std::exp(one.nll), 1e-9 * one.value);
    parallel::run_ranks(3, [&](parallel::Communicator& ranks) {
      const Perplexity shared = evaluate(*random_model(), windows, ranks);
      EXPECT_NEAR(shared.nll, one.nll, 1e-9);
      EXPECT_EQ(shared.tokens, one.tokens);
    });
  }
}

// Weights that are not finite, and ones whose products are not.
TEST(Evaluate, SaysWhyThereIsNoPerplexity) {
  const auto windows = cut_windows(numbers(40), Protocol::windows, 16, 5, 0);
  for (const float bad : {std::nanf(""), HUGE_VALF, 3e38f}) {
    parallel::run_ranks(2, [&](parallel::Communicator& ranks) {
      auto model = random_model();
      for (const nn::Parameter& p : model->parameters()) {
        if (p.name != "model.layers.1.mlp.up_proj.weight") continue;
        if (bad == 3e38f) {
          for (float& x : p.value->span<float>()) x = bad;
        } else {
          p.value->span<float>()[7] = bad;
        }
      }
      try {
        (void)evaluate(*model, windows, ranks);
        ADD_FAILURE() << "a perplexity";
      } catch (const UserError& error) {
        const std::string message = error.what();
        const char* why =
            bad == 3e38f ? "all weights are finite" : "element 7 of model.layers.1.mlp.up_proj.weight";
        EXPECT_NE(message.find(why), std::string::npos) << message;
        EXPECT_NE(message.find("perplexity is "), std::string::npos) << message;
      }
    });
  }
}

}  // namespace
}  // namespace ridge
