// The engine over ranks that share a model: the ids of one rank.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>

#include "core/base/profiler.h"
#include "inference/engine.h"
#include "lora/adapter.h"
#include "parallel/nccl_communicator.h"
#include "parallel/tensor_parallel.h"
#include "tests/inference/decode_helpers.h"
#include "tests/parallel/mpirun.h"
#include "tests/parallel/thread_peers.h"

namespace ridge::inference {
namespace {

using namespace test;

struct Cut {
  models::ModelConfig config = tiny_decoder();
  std::string format = {};  // of the linear layers; empty: dense
  bool adapters = false;
  DType dtype = DType::f32;
};

void add_adapters(models::Llama& model) {
  lora::LoraConfig config;
  config.rank = 3;
  config.alpha = 6;
  config.targets = {"q_proj", "o_proj", "down_proj"};
  lora::add_adapters(model.linears(), config, 5, model.device());
}

std::unique_ptr<models::Llama> whole_model(const Cut& cut) {
  auto whole = std::make_unique<models::Llama>(cut.config, cut.dtype, test_device());
  if (cut.adapters) add_adapters(*whole);
  randomize(*whole, "");
  if (!cut.format.empty()) quantize_linears(*whole, kernels::parse_weight_format(cut.format));
  return whole;
}

using Places = std::map<std::string, parallel::Placement>;

parallel::Placement place_of(const std::string& name, const Places& places,
                             const parallel::Communicator& ranks) {
  if (!lora::is_adapter_parameter(name)) return places.at(name);
  const std::string path = name.substr(0, name.find(".lora_"));
  return parallel::adapter_placement(places.at(path + ".weight"), name.find(".lora_A.") != std::string::npos,
                                     ranks.size(), ranks.rank());
}

// Pieces of the whole model's codes in place of the dense ones.
void quantize_pieces(models::Llama& piece, models::Llama& whole, const Places& places) {
  std::map<std::string, const nn::QuantizedLinear*> coded;
  for (const nn::LinearSlot& slot : whole.linears()) coded[slot.path] = (*slot.slot)->quantized();
  for (const nn::LinearSlot& slot : piece.linears()) {
    std::unique_ptr<nn::Linear>& inner = *(*slot.slot)->inner();
    const parallel::Placement& place = places.at(slot.path + ".weight");
    inner = std::make_unique<nn::QuantizedLinear>(
        coded.at(slot.path)->weight().piece(place.dim, place.begin, place.end), inner->dense()->bias());
  }
}

std::unique_ptr<models::Llama> piece_model(const Cut& cut, models::Llama& whole,
                                           parallel::Communicator& ranks,
                                           const parallel::TensorParallelOptions& how) {
  std::map<std::string, Tensor> values;
  for (const nn::Parameter& p : whole.parameters()) values[p.name] = *p.value;
  auto piece = std::make_unique<models::Llama>(cut.config, cut.dtype, Device::meta);
  const Places places = parallel::apply_tensor_parallel(*piece, ranks, how);
  if (cut.adapters) add_adapters(*piece);
  if (!cut.format.empty()) quantize_pieces(*piece, whole, places);
  for (const nn::Parameter& p : piece->parameters()) {
    if (p.value->device() != Device::meta) continue;  // codes
    const parallel::Placement place = place_of(p.name, places, ranks);
    const Tensor& all = values.at(p.name);
    *p.value = (place.dim < 0 ? all : all.sliced(place.dim, place.begin, place.end)).contiguous_copy();
  }
  piece->adopt(whole.device());
  return piece;
}

parallel::TensorParallelOptions summed_by_kernel(parallel::Communicator& ranks) {
  parallel::TensorParallelOptions how;
  how.one_shot = parallel::OneShotReduce::make(std::make_unique<HerePeers>(ranks), Device::cpu,
                                               {1 << 20, std::chrono::seconds(60)});
  return how;
}

// Greedy, but for the shortest where `sampled`.
std::vector<Request> requests_for(const models::Llama& model, bool sampled = true) {
  std::vector<Request> requests;
  for (const std::int64_t length : {5, 17, 2}) {
    Request r{prompt_of(model, length, length), 20};
    if (length == 2 && sampled) r.sampling = {.temperature = 1, .seed = 3};
    requests.push_back(r);
  }
  return requests;
}

// Widths of which four ranks have whole groups of 64.
models::ModelConfig wide_decoder() {
  models::ModelConfig c = tiny_decoder();
  c.hidden_size = 128;
  c.intermediate_size = 256;
  c.head_dim = c.rope.head_dim = 32;
  return c;
}

void expect_ids_of_one(const Cut& cut, int size, bool one_shot) {
  const auto whole = whole_model(cut);
  const auto wanted = Engine(*whole, {.slots = 2}).generate(requests_for(*whole));
  std::mutex mutex;
  parallel::run_ranks(size, [&](parallel::Communicator& ranks) {
    const auto how = one_shot ? summed_by_kernel(ranks) : parallel::TensorParallelOptions{};
    const auto piece = [&] {
      const std::lock_guard lock(mutex);  // the whole model's parameters are read
      return piece_model(cut, *whole, ranks, how);
    }();
    EXPECT_EQ(DecodeModel(*piece, 8, 2).plain(), one_shot && !cut.adapters);
    const auto got = Engine(*piece, {.slots = 2, .prefill_chunk = 8}).generate(requests_for(*piece));
    const std::lock_guard lock(mutex);
    for (std::size_t i = 0; i < wanted.size(); ++i)
      EXPECT_EQ(got[i].ids, wanted[i].ids)
          << "rank " << ranks.rank() << ", request " << i << ", " << cut.format << ", kernel " << one_shot;
  });
}

class EngineOverRanks : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (on_gpu()) GTEST_SKIP() << "ranks that are threads share memory of the CPU";
  }
};

TEST_P(EngineOverRanks, HasTheIdsOfOne) {
  for (const bool tied : {false, true}) {
    for (const bool one_shot : {false, true}) {
      Cut cut;
      cut.config.tied = tied;
      cut.config.qkv_bias = cut.config.output_bias = true;
      cut.adapters = !tied;
      expect_ids_of_one(cut, GetParam(), one_shot);
      cut.adapters = false;
      expect_ids_of_one(cut, GetParam(), one_shot);
    }
  }
}

TEST_P(EngineOverRanks, HasTheIdsOfOneInWeightFormats) {
  for (const std::string format : {"int8", "nf4", "int4-g32", "fp8"}) {
    Cut cut{wide_decoder(), format};
    cut.config.output_bias = true;
    for (const bool one_shot : {false, true}) expect_ids_of_one(cut, GetParam(), one_shot);
  }
}

// Ranks without an id of their own.
TEST_P(EngineOverRanks, HasTheIdsOfAVerySmallVocabulary) {
  for (const bool tied : {false, true}) {
    Cut cut;
    cut.config.vocab_size = 5;
    cut.config.tied = tied;
    for (const bool one_shot : {false, true}) expect_ids_of_one(cut, GetParam(), one_shot);
  }
}

// A step is made of kernels, two sums a layer, one of the embedding and a gather.
TEST_P(EngineOverRanks, MeetByKernelsAlone) {
  const Cut cut;
  const auto whole = whole_model(cut);
  std::mutex mutex;
  parallel::run_ranks(GetParam(), [&](parallel::Communicator& ranks) {
    const auto how = summed_by_kernel(ranks);
    const auto piece = [&] {
      const std::lock_guard lock(mutex);
      return piece_model(cut, *whole, ranks, how);
    }();
    Engine engine(*piece, {.slots = 1});
    Profiler profiler;
    {
      const ProfilerScope scope(current_stream(Device::cpu), &profiler);
      engine.generate(std::vector<Request>{{prompt_of(*piece, 4, 1), 6}});
    }
    std::map<std::string, std::int64_t> calls;
    for (const OpSummary& op : profiler.summary()) calls[op.op] += op.calls;
    EXPECT_EQ(calls["all_reduce_small"], 6 * (2 * cut.config.layers + 1));
    EXPECT_EQ(calls["all_gather_small"], 6);
  });
}

TEST_P(EngineOverRanks, Bf16IsCloseToOne) {
  Cut cut{wide_decoder()};
  cut.dtype = DType::bf16;
  const auto whole = whole_model(cut);
  std::mutex mutex;
  const auto logits_of = [&](models::Llama& model) {
    DecodeModel decode(model, 12, 1);
    decode.reach(32);
    const Cache cache(decode.cache_shape(), 32, Device::cpu);
    std::vector<std::int32_t> positions(12);
    for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(i);
    return decode
        .run(Tensor::from(prompt_of(model, 12, 3), {12}), Tensor::from(positions, {1, 12}), cache, 0, true)
        .to(DType::f32);
  };
  const Tensor want = logits_of(*whole);
  parallel::run_ranks(GetParam(), [&](parallel::Communicator& ranks) {
    for (const bool one_shot : {false, true}) {
      const auto how = one_shot ? summed_by_kernel(ranks) : parallel::TensorParallelOptions{};
      const auto piece = [&] {
        const std::lock_guard lock(mutex);
        return piece_model(cut, *whole, ranks, how);
      }();
      const Tensor got = logits_of(*piece);
      double error = 0, size = 0;
      for (std::size_t i = 0; i < want.span<float>().size(); ++i) {
        const double w = want.span<float>()[i];
        error += std::pow(got.span<float>()[i] - w, 2);
        size += w * w;
      }
      EXPECT_LT(std::sqrt(error / size), 3e-2) << "kernel " << one_shot;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, EngineOverRanks, testing::Values(2, 4),
                         [](const auto& info) { return "of" + std::to_string(info.param); });

TEST(EngineOnGpus, HasTheIdsOfOne) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  if (!on_gpu()) GTEST_SKIP() << "RIDGE_TEST_DEVICE is not cuda";
  const auto gpus = static_cast<int>(cuda_devices().size());
  if (gpus < 2) GTEST_SKIP() << "needs 2 GPUs";
  expect_ranks_pass(gpus >= 4 ? 4 : 2, "EngineOfGpus.*");
}

class EngineOfGpus : public testing::Test {
 protected:
  void SetUp() override {
    if (!launched_by_mpi() || !on_gpu()) GTEST_SKIP() << "started by EngineOnGpus.HasTheIdsOfOne";
    static const bool kSelected = (cuda::select_device(mpi_process.session().local_rank()), true);
    static_cast<void>(kSelected);
    nccl_ = parallel::nccl_communicator(world());
  }
  static parallel::Communicator& world() { return mpi_process.session().world(); }
  parallel::TensorParallelOptions summed_by_kernel() const {
    std::string why;
    parallel::TensorParallelOptions how;
    how.one_shot =
        parallel::one_shot_reduce(world(), Device::cuda, &why, {1 << 20, std::chrono::seconds(20)});
    EXPECT_NE(how.one_shot, nullptr) << why;
    return how;
  }
  void expect_ids_of_one(const Cut& cut, bool one_shot, bool graph) {
    const auto whole = whole_model(cut);
    const auto wanted = Engine(*whole, {.slots = 2}).generate(requests_for(*whole, false));
    const auto how = one_shot ? summed_by_kernel() : parallel::TensorParallelOptions{};
    const auto piece = piece_model(cut, *whole, *nccl_, how);
    Engine engine(*piece, {.slots = 2, .prefill_chunk = 8, .graph = graph});
    EXPECT_EQ(engine.records(), one_shot && graph);
    for (int again = 0; again < 2; ++again) {
      const auto got = engine.generate(requests_for(*piece, false));
      for (std::size_t i = 0; i < wanted.size(); ++i)
        EXPECT_EQ(got[i].ids, wanted[i].ids)
            << "rank " << world().rank() << ", request " << i << ", " << cut.format;
    }
  }

  std::unique_ptr<parallel::Communicator> nccl_;
};

TEST_F(EngineOfGpus, RecordedSteps) {
  for (const bool tied : {false, true}) {
    Cut cut;
    cut.config.tied = tied;
    cut.config.qkv_bias = cut.config.output_bias = true;
    expect_ids_of_one(cut, true, true);
  }
}

TEST_F(EngineOfGpus, RecordedStepsInWeightFormats) {
  for (const std::string format : {"int8", "nf4", "int4-g32"})
    expect_ids_of_one({wide_decoder(), format}, true, true);
}

TEST_F(EngineOfGpus, QueuedSteps) {
  expect_ids_of_one({}, true, false);
  expect_ids_of_one({}, false, true);  // sums by NCCL
}

}  // namespace
}  // namespace ridge::inference
