#include "core/io/weight_folder.h"

#include <gtest/gtest.h>

#include "core/io/weight_index.h"
#include "tests/core/io/io_test_util.h"

namespace ridge {
namespace {

using test::expect_contains;
using test::message_of;
using test::TemporaryFolder;

// Five u8 tensors "t0".."t4" of 40, 70, 30, 200 and 1 bytes.
struct Sample {
  Sample() {
    std::mt19937 rng(3);
    const std::int64_t sizes[] = {40, 70, 30, 200, 1};
    for (int i = 0; i < 5; ++i) data[i] = test::random_bytes(static_cast<std::size_t>(sizes[i]), rng);
    for (int i = 0; i < 5; ++i) {
      entries.push_back(make_tensor_entry(fmt::format("t{}", i), DType::u8, {sizes[i]}, data[i]));
    }
  }
  std::vector<std::byte> data[5];
  std::vector<TensorEntry> entries;
};

void expect_sample(const WeightFolder& weights, const Sample& sample) {
  EXPECT_EQ(weights.names(), (std::vector<std::string>{"t0", "t1", "t2", "t3", "t4"}));
  EXPECT_EQ(weights.total_bytes(), 341u);
  for (const TensorEntry& entry : sample.entries) {
    EXPECT_TRUE(std::ranges::equal(weights.at(entry.name).data, entry.data)) << entry.name;
  }
  weights.prefetch();
}

TEST(WeightFolder, OneFileHasNoIndex) {
  TemporaryFolder folder;
  const Sample sample;
  write_weight_folder(folder.path(), sample.entries, 341);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"model.safetensors"});
  expect_sample(WeightFolder::open(folder.path()), sample);
}

TEST(WeightFolder, ShardsFillGreedilyInTheOrderGiven) {
  TemporaryFolder folder;
  const Sample sample;
  write_weight_folder(folder.path(), sample.entries, 110);
  const auto map = parse_weight_index(test::read_text(folder / "model.safetensors.index.json"), "index");
  const std::map<std::string, std::string> wanted = {{"t0", "model-00001-of-00004.safetensors"},
                                                     {"t1", "model-00001-of-00004.safetensors"},
                                                     {"t2", "model-00002-of-00004.safetensors"},
                                                     {"t3", "model-00003-of-00004.safetensors"},
                                                     {"t4", "model-00004-of-00004.safetensors"}};
  EXPECT_EQ(map, wanted);
  expect_contains(test::read_text(folder / "model.safetensors.index.json"), "\"total_size\": 341");
  expect_sample(WeightFolder::open(folder.path()), sample);
}

TEST(WeightFolder, ASecondWriteLeavesNoContradiction) {
  TemporaryFolder folder;
  const Sample sample;
  write_weight_folder(folder.path(), sample.entries, 110);
  write_weight_folder(folder.path(), sample.entries, 1000);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"model.safetensors"});
  test::write_text(folder / "config.json", "{}");
  write_weight_folder(folder.path(), sample.entries, 150);
  EXPECT_EQ(folder.names().size(), 5u);  // config, index, 3 shards; model.safetensors is gone
  expect_sample(WeightFolder::open(folder.path()), sample);
}

TEST(WeightFolder, PrefersTheSingleFile) {
  TemporaryFolder folder;
  const Sample sample;
  write_weight_folder(folder.path(), sample.entries);
  test::write_text(folder / "model.safetensors.index.json", "nonsense");
  expect_sample(WeightFolder::open(folder.path()), sample);
}

TEST(WeightFolder, NamesWhatIsMissing) {
  TemporaryFolder folder;
  expect_contains(message_of([&] { WeightFolder::open(folder / "none"); }), "is not a folder");
  expect_contains(message_of([&] { WeightFolder::open(folder.path()); }),
                  "has neither model.safetensors nor");
  const Sample sample;
  write_weight_folder(folder.path(), sample.entries, 110);
  const WeightFolder weights = WeightFolder::open(folder.path());
  EXPECT_EQ(weights.find("t9"), nullptr);
  expect_contains(message_of([&] { weights.at("t9"); }), "have no tensor 't9' (they have 5 tensors)");
  std::filesystem::remove(folder / "model-00002-of-00004.safetensors");
  const std::string message = message_of([&] { WeightFolder::open(folder.path()); });
  expect_contains(message, "shard '" + (folder / "model-00002-of-00004.safetensors") + "' is missing");
  expect_contains(message, "index.json");
}

// Puts t0 into a.safetensors, t1 into b.safetensors, and `index` beside them.
void write_two_shards(const TemporaryFolder& folder, const Sample& sample, const std::string& index) {
  write_safetensors(folder / "a.safetensors", std::span(sample.entries).subspan(0, 1));
  write_safetensors(folder / "b.safetensors", std::span(sample.entries).subspan(0, 2));
  test::write_text(folder / "model.safetensors.index.json", index);
}

TEST(WeightFolder, HoldsShardsToTheIndex) {
  TemporaryFolder folder;
  const Sample sample;
  write_two_shards(folder, sample, R"({"weight_map":{"t0":"a.safetensors","t1":"a.safetensors"}})");
  const std::string message = message_of([&] { WeightFolder::open(folder.path()); });
  expect_contains(message, "tensor 't1' is not in shard '" + (folder / "a.safetensors"));
  // t0 lies in both: the index decides.
  write_two_shards(folder, sample, R"({"weight_map":{"t0":"a.safetensors","t1":"b.safetensors"}})");
  EXPECT_EQ(WeightFolder::open(folder.path()).size(), 2u);
  write_safetensors(folder / "a.safetensors", std::span(sample.entries).subspan(0, 3));
  write_safetensors(folder / "b.safetensors", std::span(sample.entries).subspan(1, 2));
  expect_contains(message_of([&] { WeightFolder::open(folder.path()); }), "tensor 't2' is in two shards");
}

TEST(WeightIndex, RejectsNamesThatLeaveTheFolder) {
  for (const char* name : {"../x", "/etc/x", "sub/x", "", ".", "..", "a..b", "a\\\\b", "a\\u0000b"}) {
    const std::string json = fmt::format(R"({{"weight_map":{{"w":"{}"}}}})", name);
    const std::string message = message_of([&] { parse_weight_index(json, "i.json"); });
    expect_contains(message, "weight index 'i.json' puts 'w' into");
    expect_contains(message, "which is not a plain file name");
  }
}

TEST(WeightIndex, IsStrictAboutTheMapAndTolerantBesideIt) {
  const auto map = parse_weight_index(
      R"({"x":[1,{"y":null}],"weight_map":{"w":"f"},"metadata":{"weight_map":3,"total_size":1.5}})", "i");
  EXPECT_EQ(map, (std::map<std::string, std::string>{{"w", "f"}}));
  const auto says = [](const std::string& json, std::string_view part) {
    SCOPED_TRACE(json);
    expect_contains(message_of([&] { parse_weight_index(json, "i"); }), part);
  };
  says("{", "not valid JSON at byte");
  says("{}", "has no weight_map");
  says(std::string("{\"weight_map\":{}}\0x", 18), "not valid JSON at byte 18");
  says(R"([{"weight_map":{}}])", "has no weight_map");
  says("3", "has no weight_map");
  says("{\"\xFF\":1}", "not valid UTF-8");
  says(R"({"weight_map":[]})", "not an object");
  says(R"({"weight_map":"x"})", "not an object");
  says(R"({"weight_map":{"w":1}})", "gives 'w' something else than a file name");
  says(R"({"weight_map":{"w":{}}})", "gives 'w' something else than a file name");
  says(R"({"weight_map":{"w":["x"]}})", "gives 'w' something else than a file name");
  says(R"({"weight_map":{"w":"a","w":"a"}})", "lists 'w' twice");
  says(R"({"weight_map":{},"weight_map":{}})", "has weight_map twice");
  says("{\"x\":" + std::string(1000, '['), "nests deeper than 32");
}

}  // namespace
}  // namespace ridge
