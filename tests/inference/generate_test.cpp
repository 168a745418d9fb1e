// Decoding with a cache against the whole model at every step.
#include "inference/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "core/autograd.h"
#include "core/models/weights.h"
#include "tests/test_device.h"

namespace ridge::inference {
namespace {

std::unique_ptr<models::Llama> load(const std::string& name) {
  return models::load_model(std::string(RIDGE_SOURCE_DIR) + "/tests/data/models/" + name, DType::f32,
                            models::LoadMode::read, test::test_device())
      .model;
}

// Logits of the last of `ids`, computed without a cache.
std::vector<float> last_row(models::Llama& model, const std::vector<std::int32_t>& ids) {
  const autograd::NoGradScope no_grad;
  const Tensor logits =
      model.logits(Tensor::from(ids, {1, static_cast<std::int64_t>(ids.size())})).on(Device::cpu);
  const auto all = logits.span<float>();
  return {all.end() - model.config().vocab_size, all.end()};
}

class Generate : public testing::TestWithParam<const char*> {};

// Each id is the best of the whole model's logits for the text so far, within rounding.
TEST_P(Generate, GreedyIsTheWholeModelsChoice) {
  const auto model = load(GetParam());
  std::vector<std::int32_t> text{1, 5, 9, 2, 33};
  const Generation done = generate(*model, text, {.max_new_tokens = 30});
  ASSERT_EQ(done.ids.size(), 30u);
  EXPECT_EQ(done.decoded, 29);
  for (const std::int32_t id : done.ids) {
    const std::vector<float> row = last_row(*model, text);
    const auto [low, high] = std::minmax_element(row.begin(), row.end());
    ASSERT_GE(row[static_cast<std::size_t>(id)], *high - 1e-4f * (*high - *low)) << "token " << text.size();
    text.push_back(id);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Generate,
                         testing::Values("llama2", "llama3", "llama32", "llama_headdim", "llama_linear",
                                         "llama_yarn", "mqa", "mistral", "mistral_nemo", "qwen2",
                                         "qwen2_sliding", "sharded"),
                         [](const auto& info) { return std::string(info.param); });

class GenerateOptionsTest : public testing::Test {
 protected:
  std::vector<std::int32_t> ids(const GenerateOptions& options) {
    return generate(*model_, prompt_, options).ids;
  }
  const std::unique_ptr<models::Llama> model_ = load("llama3");
  const std::vector<std::int32_t> prompt_{1, 7, 20};
};

TEST_F(GenerateOptionsTest, StopsAfterAStopId) {
  const auto whole = ids({.max_new_tokens = 40});
  const auto at = std::find_if(whole.begin() + 5, whole.end(), [&](std::int32_t id) {
    return std::find(whole.begin(), whole.begin() + 5, id) == whole.begin() + 5;
  });
  ASSERT_NE(at, whole.end()) << "forty ids of which five differ";
  EXPECT_EQ(ids({.max_new_tokens = 40, .stop_ids = {99999, *at}}),
            std::vector<std::int32_t>(whole.begin(), at + 1));
  EXPECT_EQ(ids({.max_new_tokens = 40, .stop_ids = {whole[0]}}), std::vector<std::int32_t>{whole[0]});
}

TEST_F(GenerateOptionsTest, AShorterRunIsABeginning) {
  const auto whole = ids({.max_new_tokens = 12, .sampling = {.temperature = 1, .seed = 3}});
  for (const std::int64_t length : {1, 2, 7}) {
    EXPECT_EQ(ids({.max_new_tokens = length, .sampling = {.temperature = 1, .seed = 3}}),
              std::vector<std::int32_t>(whole.begin(), whole.begin() + length));
  }
  EXPECT_NE(ids({.max_new_tokens = 12, .sampling = {.temperature = 1, .seed = 4}}), whole);
}

TEST_F(GenerateOptionsTest, IdsWithoutATokenAreNeverChosen) {
  const auto all = ids({.max_new_tokens = 60, .sampling = {.temperature = 5, .seed = 1}});
  EXPECT_TRUE(std::any_of(all.begin(), all.end(), [](std::int32_t id) { return id >= 10; }));
  for (const std::int32_t id :
       ids({.max_new_tokens = 60, .sampling = {.temperature = 5, .seed = 1}, .vocabulary = 10}))
    EXPECT_LT(id, 10);
}

TEST_F(GenerateOptionsTest, TellsEveryIdAtOnce) {
  std::vector<std::int32_t> heard;
  const Generation done = generate(*model_, prompt_, {.max_new_tokens = 9}, [&](std::int32_t id) {
    heard.push_back(id);
    return true;
  });
  EXPECT_EQ(heard, done.ids);
  const Generation cut = generate(*model_, prompt_, {.max_new_tokens = 9},
                                  [&, left = 4](std::int32_t) mutable { return --left > 0; });
  EXPECT_EQ(cut.ids, std::vector<std::int32_t>(heard.begin(), heard.begin() + 4));
  EXPECT_GT(done.prefill_seconds, 0);
  EXPECT_GT(done.decode_seconds, 0);
}

TEST_F(GenerateOptionsTest, MistakesAreTheUsers) {
  EXPECT_THROW(generate(*model_, {}, {}), UserError);
  const std::vector<std::int32_t> one{1};
  for (const std::int64_t count : {std::int64_t{-1}, std::numeric_limits<std::int64_t>::max(), kMostTokens})
    EXPECT_THROW(generate(*model_, one, {.max_new_tokens = count}), UserError) << count;
  for (const std::int32_t bad : {67, -1}) {
    const std::vector<std::int32_t> prompt{1, bad};
    EXPECT_THROW(generate(*model_, prompt, {.max_new_tokens = 1}), UserError) << bad;
  }
}

// A window's cache that has wrapped around, and a prompt that is longer than the window.
TEST(GenerateWindow, LongTextsSlide) {
  const auto model = load("mistral");
  ASSERT_GT(model->config().sliding_window, 0);
  std::vector<std::int32_t> text;
  for (std::int32_t i = 0; i < 40; ++i) text.push_back((i * 7 + 3) % 67);
  ASSERT_LT(model->config().sliding_window, 40);
  for (const std::int32_t id : generate(*model, text, {.max_new_tokens = 20}).ids) {
    const std::vector<float> row = last_row(*model, text);
    const auto [low, high] = std::minmax_element(row.begin(), row.end());
    ASSERT_GE(row[static_cast<std::size_t>(id)], *high - 1e-4f * (*high - *low));
    text.push_back(id);
  }
}

}  // namespace
}  // namespace ridge::inference
