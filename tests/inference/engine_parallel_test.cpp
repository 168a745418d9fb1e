// The engine over ranks that share a model: the ids of one rank.
#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "inference/engine.h"
#include "lora/adapter.h"
#include "parallel/tensor_parallel.h"
#include "tests/inference/decode_helpers.h"

namespace ridge::inference {
namespace {

using namespace test;

void add_adapters(models::Llama& model) {
  lora::LoraConfig config;
  config.rank = 3;
  config.alpha = 6;
  config.targets = {"q_proj", "o_proj", "down_proj"};
  lora::add_adapters(model.linears(), config, 5, model.device());
}

std::vector<Request> requests_for(const models::Llama& model) {
  std::vector<Request> requests;
  for (const std::int64_t length : {5, 17, 2}) {
    Request r{prompt_of(model, length, length), 20};
    if (length == 2) r.sampling = {.temperature = 1, .seed = 3};
    requests.push_back(r);
  }
  return requests;
}

class EngineOverRanks : public testing::TestWithParam<int> {};

TEST_P(EngineOverRanks, HasTheIdsOfOne) {
  for (const bool tied : {false, true}) {
    models::ModelConfig config = tiny_decoder();
    config.tied = tied;
    config.qkv_bias = config.output_bias = true;
    models::Llama whole(config, DType::f32, Device::cpu);
    if (!tied) add_adapters(whole);
    randomize(whole, "");
    std::map<std::string, Tensor> values;
    for (const nn::Parameter& p : whole.parameters()) values[p.name] = *p.value;
    const auto wanted = Engine(whole, {.slots = 2}).generate(requests_for(whole));
    std::mutex mutex;
    parallel::run_ranks(GetParam(), [&](parallel::Communicator& ranks) {
      models::Llama piece(config, DType::f32, Device::meta);
      auto places = parallel::apply_tensor_parallel(piece, ranks, {});
      if (!tied) add_adapters(piece);
      for (const nn::Parameter& p : piece.parameters()) {
        parallel::Placement place;
        if (lora::is_adapter_parameter(p.name)) {
          const std::string path = p.name.substr(0, p.name.find(".lora_"));
          place = parallel::adapter_placement(places.at(path + ".weight"),
                                              p.name.find(".lora_A.") != std::string::npos, ranks.size(),
                                              ranks.rank());
        } else {
          place = places.at(p.name);
        }
        const Tensor& all = values.at(p.name);
        *p.value = (place.dim < 0 ? all : all.sliced(place.dim, place.begin, place.end)).contiguous_copy();
      }
      piece.adopt(Device::cpu);
      const auto got = Engine(piece, {.slots = 2, .prefill_chunk = 8}).generate(requests_for(piece));
      const std::lock_guard lock(mutex);
      for (std::size_t i = 0; i < wanted.size(); ++i)
        EXPECT_EQ(got[i].ids, wanted[i].ids)
            << "rank " << ranks.rank() << ", request " << i << ", tied " << tied;
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, EngineOverRanks, testing::Values(2, 4),
                         [](const auto& info) { return "of" + std::to_string(info.param); });

}  // namespace
}  // namespace ridge::inference
