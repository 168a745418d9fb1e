// `ridge profile` and `ridge bench`: the numbers are there and hang together; the trace opens.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/io/perfetto.pb.h"
#include "tests/launch/run_program.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::json;

Json json_of(const Arguments& words, const RunOptions& options) {
  const Outcome outcome = must_run(words, options);
  EXPECT_EQ(lines_of(outcome.out).size(), 1u);
  return Json::parse(outcome.out, nullptr, false);
}

struct Slices {
  std::map<std::string, int> calls;
  std::uint64_t first = ~std::uint64_t{0}, last = 0;  // ns
};

// Every slice of a trace, as a reader finds them: begin and end in pairs, names by number.
Slices read_slices(const std::string& path) {
  perfetto::Trace trace;
  EXPECT_TRUE(trace.ParseFromString(read_text(path))) << path;
  Slices slices;
  std::map<std::uint64_t, std::string> names;
  int open = 0;
  for (const perfetto::TracePacket& packet : trace.packet()) {
    for (const auto& name : packet.interned_data().event_names()) names[name.iid()] = name.name();
    if (!packet.has_track_event()) continue;
    slices.first = std::min(slices.first, packet.timestamp());
    slices.last = std::max(slices.last, packet.timestamp());
    if (packet.track_event().type() == perfetto::TrackEvent::SLICE_BEGIN) {
      ++slices.calls[names.at(packet.track_event().name_iid())];
      ++open;
    } else {
      --open;
    }
    EXPECT_TRUE(open == 0 || open == 1) << "launches of one stream follow each other";
  }
  EXPECT_EQ(open, 0);
  return slices;
}

class Profile : public testing::TestWithParam<const char*> {
 protected:
  Arguments command(const Arguments& more) const {
    Arguments words{"profile", "--model", data_file("models/llama3"), GetParam(), "--steps", "3",
                    "--trace", trace_};
    words.insert(words.end(), more.begin(), more.end());
    if (std::string(GetParam()) == "--train")
      words.insert(words.end(), {"--batch", "2", "--sequence-length", "32"});
    return words;
  }
  TemporaryFolder folder_;
  const std::string trace_ = folder_ / "run.pftrace";
};

TEST_P(Profile, AccountsForEveryOp) {
  const Json json = json_of(command({"--json"}), {.threads = 2});
  for (const char* key : {"wall_seconds", "flops_per_s", "read_bytes_per_s", "copy_bytes_per_s"})
    EXPECT_GT(json.at(key), 0) << key;
  EXPECT_EQ(json.at("trace"), trace_);
  const Slices slices = read_slices(trace_);
  double seconds = 0, flops = 0;
  std::map<std::string, int> calls;
  for (const Json& op : json.at("ops")) {
    EXPECT_GT(op.at("calls"), 0) << op;
    EXPECT_EQ(op.at("calls").get<int>() % 3, 0) << "three equal steps: " << op;
    EXPECT_GT(op.at("seconds"), 0) << op;
    EXPECT_GT(op.at("bytes"), 0) << op;
    EXPECT_GE(op.at("flops"), 0) << op;
    EXPECT_GT(op.at("attainable_seconds"), 0) << op;
    const double share = op.at("attainable_seconds").get<double>() / op.at("seconds").get<double>();
    EXPECT_NEAR(op.at("limit_share"), share, 1e-9 * share) << op;
    calls[op.at("op")] = op.at("calls");
    seconds += op.at("seconds").get<double>();
    flops += op.at("flops").get<double>();
  }
  EXPECT_GE(calls.size(), 5u);
  EXPECT_EQ(calls, slices.calls);
  EXPECT_LE(seconds, json.at("wall_seconds"));
  EXPECT_GT(flops, 0);
  const double span = static_cast<double>(slices.last - slices.first) * 1e-9;
  EXPECT_LE(span, json.at("wall_seconds"));
  EXPECT_GE(span, seconds * 0.999);
}

TEST_P(Profile, PrintsATable) {
  const Outcome outcome = must_run(command({"--dtype", "bf16"}), {.threads = 1});
  for (const char* word : {"matmul", "GFLOP/s", "GB/s", "limits", "ui.perfetto.dev"})
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word << " is not in\n" << outcome.out;
  EXPECT_TRUE(std::filesystem::exists(trace_));
}

INSTANTIATE_TEST_SUITE_P(Workloads, Profile, testing::Values("--train", "--generate"),
                         [](const auto& info) { return std::string(info.param + 2); });

TEST(ProfileOps, TrainingHasWhatGenerationLacks) {
  const TemporaryFolder folder;
  const auto ops = [&](const char* what) {
    std::set<std::string> names;
    const Json profile = json_of({"profile", "--model", data_file("models/llama3"), what, "--steps", "1",
                                  "--trace", folder / "t.pftrace", "--json"},
                                 {});
    for (const Json& op : profile.at("ops")) names.insert(op.at("op").get<std::string>());
    return names;
  };
  const auto train = ops("--train"), generate = ops("--generate");
  const auto has = [](const std::set<std::string>& names, const std::string& part) {
    return std::any_of(names.begin(), names.end(),
                       [&](const std::string& name) { return name.find(part) != std::string::npos; });
  };
  EXPECT_TRUE(has(train, "adamw"));
  EXPECT_FALSE(has(generate, "adamw"));
  EXPECT_TRUE(has(train, "attention") && has(generate, "attention"));
}

// What is profiled is the engine, with its weights and its cache.
TEST(ProfileOps, DecodingIsTheEngines) {
  const TemporaryFolder folder;
  const auto calls = [&](const Arguments& more) {
    Arguments words{"profile", "--model", data_file("models/llama3"), "--generate", "--steps",
                    "2",       "--trace", folder / "t.pftrace",       "--json"};
    words.insert(words.end(), more.begin(), more.end());
    std::map<std::string, int> calls;
    const Json profile = json_of(words, {});
    for (const Json& op : profile.at("ops")) calls[op.at("op")] = op.at("calls");
    return calls;
  };
  const auto plain = calls({}), coded = calls({"--quantize", "int8", "--kv-cache", "fp8"});
  EXPECT_EQ(plain.count("quant_matmul"), 0u);
  EXPECT_EQ(coded.at("quant_matmul") % 2, 0);
  EXPECT_GE(coded.at("quant_matmul"), 8) << "two layers' or more, two steps";
  EXPECT_GT(plain.at("matmul"), coded.at("matmul"));
  const auto one = calls({"--batch", "1"}), three = calls({"--batch", "3"});
  EXPECT_EQ(one, three) << "sequences share a step";
}

TEST(ProfileOps, ATraceThatCannotBeWrittenIsSaid) {
  expect_user_error(run_ridge({"profile", "--model", data_file("models/llama3"), "--steps", "1", "--trace",
                               "/nonexistent/x.pftrace"}),
                    {"/nonexistent/x.pftrace"});
}

TEST(Bench, ReportsSharesOfTheLimits) {
  const std::string model = data_file("models/llama3");
  const Json train = json_of({"bench", "train", "--model", model, "--batch", "2", "--sequence-length", "64",
                              "--steps", "3", "--json"},
                             {});
  for (const char* key : {"step_seconds", "tokens_per_s", "flops_per_s", "limit_share", "matmul_flops_per_s",
                          "peak_bytes", "predicted_bytes"})
    EXPECT_GT(train.at(key), 0) << key;
  EXPECT_NEAR(train.at("tokens_per_s").get<double>() * train.at("step_seconds").get<double>(), 128, 1e-6);
  const double peak = train.at("peak_bytes"), predicted = train.at("predicted_bytes");
  EXPECT_NEAR(peak, predicted, 0.1 * predicted);
  const Json decode =
      json_of({"bench", "decode", "--model", model, "--steps", "5", "--prompt", "4", "--json"}, {});
  for (const char* key : {"token_seconds", "tokens_per_s", "bytes_per_token", "bytes_per_s", "limit_share"})
    EXPECT_GT(decode.at(key), 0) << key;
  const Json roof = json_of({"bench", "ceilings", "--json"}, {});
  for (const char* key : {"flops_per_s", "read_bytes_per_s", "copy_bytes_per_s", "threads"})
    EXPECT_GT(roof.at(key), 0) << key;
}

}  // namespace
}  // namespace ridge
