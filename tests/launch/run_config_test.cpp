// The run config: reading, overrides, defaults, resolving, and the message of every mistake.
#include "launch/run_config.h"

#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "launch/run_config.pb.h"
#include "launch/yaml_to_proto.h"

namespace ridge {
namespace {

using config::RunConfig;
using google::protobuf::util::MessageDifferencer;

constexpr const char* kExample = R"(model:    {path: base}
lora:     {rank: 4, alpha: 12.5, targets: [q_proj, v_proj], rank_pattern: {"layers.0.*q_proj": 2}}
data:     {train: [a.txt, "b c.txt"], valid: [v.txt], sequence_length: 64, order: sequential, seed: 7}
optim:    {name: adamw, lr: 1.0e-3, betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.01, decay: matrices,
           clip_norm: 1, schedule: {name: cosine, warmup_steps: 2}}
train:    {steps: 20, global_batch: 4, precision: bf16}
parallel: {replicate: 1, shard: -1}
output:   out/run
)";

RunConfig parse(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  return parse_run_config(yaml, "run.yaml", overrides);
}

// The message of the UserError that `f` throws.
template <class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const UserError& e) {
    return e.what();
  }
  return "no UserError";
}

std::string parse_error(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  return message_of([&] { parse(yaml, overrides); });
}

std::string resolve_error(const std::vector<std::string>& overrides, int ranks = 1) {
  RunConfig c = parse(kExample, overrides);
  return message_of([&] { resolve(c, ranks); });
}

TEST(RunConfig, ReadsEveryKindOfField) {
  const RunConfig c = parse(kExample);
  EXPECT_EQ(c.model().path(), "base");
  EXPECT_EQ(c.lora().rank(), 4);
  EXPECT_EQ(c.lora().alpha(), 12.5);
  EXPECT_EQ(c.lora().rank_pattern().at("layers.0.*q_proj"), 2);
  ASSERT_EQ(c.data().train_size(), 2);
  EXPECT_EQ(c.data().train(1), "b c.txt");
  EXPECT_EQ(c.data().order(), "sequential");
  EXPECT_EQ(c.optim().lr(), 1e-3);
  EXPECT_EQ(c.optim().clip_norm(), 1.0);
  EXPECT_EQ(c.optim().schedule().name(), "cosine");
  EXPECT_EQ(c.parallel().shard(), -1);
  EXPECT_EQ(c.output(), "out/run");
  EXPECT_FALSE(c.has_adapter());
  EXPECT_FALSE(c.model().has_arch());
}

TEST(RunConfig, DefaultsFillOnlyWhatIsAbsent) {
  const RunConfig c = parse("lora: {rank: 3}\noptim: {lr: 5}\n");
  EXPECT_EQ(c.lora().rank(), 3);
  EXPECT_EQ(c.lora().alpha(), 16);
  EXPECT_EQ(c.optim().lr(), 5);
  EXPECT_EQ(c.optim().betas(1), 0.95);
  EXPECT_EQ(c.train().precision(), "f32");
  EXPECT_FALSE(c.train().has_micro_batch());
  const RunConfig d = default_run_config();
  EXPECT_FALSE(d.has_lora());
  EXPECT_TRUE(d.optim().has_schedule());
  EXPECT_EQ(d.device(), "auto");
  EXPECT_TRUE(MessageDifferencer::Equals(d, parse("")));
}

TEST(RunConfig, ReadsNumbersAsYamlWritesThem) {
  for (const char* text : {"1.0e-3", "1e-3", "0.001", ".001", "1E-03", "+1.0e-3"}) {
    EXPECT_EQ(parse(std::string("optim: {lr: ") + text + "}").optim().lr(), 1e-3) << text;
  }
  EXPECT_EQ(parse("optim: {lr: 3}").optim().lr(), 3.0);
  EXPECT_EQ(parse("train: {seed: 9223372036854775807}").train().seed(), INT64_MAX);
}

TEST(RunConfig, UnknownFieldsAreNamedWithTheirNeighbours) {
  EXPECT_EQ(parse_error("model: {path: x}\noptim:\n  lr: 1\n  bets: [0.9, 0.9]\n"),
            "run.yaml:4: unknown field 'optim.bets'; did you mean 'optim.betas'?");
  EXPECT_EQ(parse_error("steps: 3\n"), "run.yaml:1: unknown field 'steps'; did you mean 'train.steps'?");
  EXPECT_EQ(parse_error("train: {micro_bach: 1}"),
            "run.yaml:1: unknown field 'train.micro_bach'; did you mean 'train.micro_batch'?");
  EXPECT_EQ(parse_error("adapter: {zzzzz: 1}"),
            "run.yaml:1: unknown field 'adapter.zzzzz'; known here: path");
  EXPECT_EQ(parse_error(kExample, {"optim.scheduel.name=cosine"}),
            "override \"optim.scheduel.name=cosine\": unknown field 'optim.scheduel'; did you mean "
            "'optim.schedule'?");
}

TEST(RunConfig, IllTypedFieldsShowTypeAndValue) {
  EXPECT_EQ(parse_error("optim:\n  lr: fast"), "run.yaml:2: optim.lr must be a finite number, got \"fast\"");
  EXPECT_EQ(parse_error("optim: {lr: \"1e-3\"}"),
            "run.yaml:1: optim.lr must be a finite number, got the text \"1e-3\"");
  EXPECT_EQ(parse_error("train: {steps: 4.0}"),
            "run.yaml:1: train.steps must be a whole number, got \"4.0\"");
  EXPECT_EQ(parse_error("train: {steps: 99999999999999999999}"),
            "run.yaml:1: train.steps must be a whole number, got \"99999999999999999999\"");
  for (const char* text : {".inf", "nan", "inf", "1e999", "1e", "0x10", "1 2", "1,5"}) {
    const std::string error = parse_error(std::string("optim: {lr: '") + text + "'}");
    EXPECT_NE(error.find("optim.lr must be a finite number"), std::string::npos) << error;
    EXPECT_NE(parse_error(std::string("optim:\n  lr: ") + text).find("optim.lr must be"), std::string::npos)
        << text;
  }
  EXPECT_EQ(parse_error("lora: {use_rslora: yes}"),
            "run.yaml:1: lora.use_rslora must be true or false, got \"yes\"");
  EXPECT_EQ(parse_error("train: 3"), "run.yaml:1: train must be a group of fields, got \"3\"");
  EXPECT_EQ(parse_error("train: [1]"), "run.yaml:1: train must be a group of fields, got a list");
  EXPECT_EQ(parse_error("output: [a]"), "run.yaml:1: output must be a text, got a list");
  EXPECT_EQ(parse_error("optim: {betas: {a: 1}}"),
            "run.yaml:1: optim.betas must be a list of numbers, got a map");
  EXPECT_EQ(parse_error("optim: {betas: [0.9, x]}"),
            "run.yaml:1: optim.betas[1] must be a finite number, got \"x\"");
  EXPECT_EQ(parse_error("lora: {rank_pattern: {a: b}}"),
            "run.yaml:1: lora.rank_pattern.a must be a whole number, got \"b\"");
  EXPECT_EQ(parse_error("lora: {rank_pattern: [b]}"),
            "run.yaml:1: lora.rank_pattern must be a map from names to whole numbers, got a list");
}

TEST(RunConfig, LimitsStandInTheSchema) {
  EXPECT_EQ(parse_error("optim: {lr: -1}"), "run.yaml:1: optim.lr must be above 0, got -1");
  EXPECT_EQ(parse_error("optim: {lr: 0}"), "run.yaml:1: optim.lr must be above 0, got 0");
  EXPECT_EQ(parse_error("optim: {betas: [0.9, 1]}"), "run.yaml:1: optim.betas[1] must be below 1, got 1");
  EXPECT_EQ(parse_error("data: {sequence_length: 0}"),
            "run.yaml:1: data.sequence_length must be at least 1, got 0");
  EXPECT_EQ(parse_error("lora: {rank_pattern: {q: 0}}"),
            "run.yaml:1: lora.rank_pattern.q must be at least 1, got 0");
  EXPECT_EQ(parse_error("data:\n  order: random\n"),
            "run.yaml:2: data.order must be one of sequential, shuffled, got \"random\"");
  EXPECT_EQ(parse_error("", {"device=tpu"}),
            "override \"device=tpu\": device must be one of auto, cpu, cuda, got \"tpu\"");
}

TEST(RunConfig, LimitsHoldForConfigsMadeInCode) {
  RunConfig c = parse(kExample);
  c.mutable_optim()->mutable_schedule()->set_name("cosin");
  EXPECT_EQ(message_of([&] { resolve(c, 1); }),
            "optim.schedule.name must be one of constant, linear, cosine, wsd, got \"cosin\"");
  c = parse(kExample);
  c.mutable_optim()->set_betas(0, 1.5);
  EXPECT_EQ(message_of([&] { resolve(c, 1); }), "optim.betas[0] must be below 1, got 1.5");
  c = parse(kExample);
  (*c.mutable_lora()->mutable_alpha_pattern())["k"] = 0;
  EXPECT_EQ(message_of([&] { resolve(c, 1); }), "lora.alpha_pattern.k must be above 0, got 0");
}

TEST(RunConfig, DoubledAndEmptyFieldsAreErrors) {
  EXPECT_EQ(parse_error("train: {steps: 3, steps: 4}"), "run.yaml:1: train.steps is given twice");
  EXPECT_EQ(parse_error("output: a\ntrain: {}\noutput: b\n"), "run.yaml:3: output is given twice");
  EXPECT_EQ(parse_error("lora: {rank_pattern: {a: 1, a: 2}}"),
            "run.yaml:1: lora.rank_pattern.a is given twice");
  EXPECT_EQ(parse_error("optim:\n  lr:\n"),
            "run.yaml:2: optim.lr has no value: give a number, or null to leave it unset");
  EXPECT_EQ(parse_error("lora:\noutput: x\n"),
            "run.yaml:1: lora has no value: give a group of fields, or null to leave it unset");
  EXPECT_EQ(parse_error("optim: {betas: []}"),
            "run.yaml:1: optim.betas is an empty list: give it values or leave it out");
  EXPECT_EQ(parse_error("", {"output="}), "override \"output=\": no value after '='");
}

TEST(RunConfig, NullLeavesAFieldUnset) {
  EXPECT_FALSE(parse("# é\nlora: null\n").has_lora());
  EXPECT_EQ(parse("optim:\n  lr: ~\n").optim().lr(), 1e-3);
  EXPECT_FALSE(parse(kExample, {"lora=null"}).has_lora());
  EXPECT_FALSE(parse(kExample, {"train.micro_batch=~"}).train().has_micro_batch());
}

TEST(RunConfig, OverridesFollowTheSameRules) {
  const RunConfig c =
      parse(kExample,
            {"optim.lr=1e-4", "optim.betas=[0.8, 0.9]", "lora.rank_pattern.a.b=3", "output=runs/x: y # z",
             "data.train=[c.txt]", "optim.schedule={name: wsd}", "optim.lr=2e-4", "model.tokenizer='a b'"});
  EXPECT_EQ(c.optim().lr(), 2e-4);
  EXPECT_EQ(c.optim().betas(0), 0.8);
  EXPECT_EQ(c.optim().betas_size(), 2);
  EXPECT_EQ(c.lora().rank_pattern().at("a.b"), 3);
  EXPECT_EQ(c.lora().rank_pattern_size(), 2);
  EXPECT_EQ(c.output(), "runs/x: y # z");
  ASSERT_EQ(c.data().train_size(), 1);
  EXPECT_EQ(c.data().train(0), "c.txt");
  EXPECT_EQ(c.optim().schedule().name(), "wsd");
  EXPECT_EQ(c.optim().schedule().warmup_steps(), 2);
  EXPECT_EQ(c.model().tokenizer(), "a b");
  EXPECT_TRUE(parse("", {"lora.rank=2"}).has_lora());
}

TEST(RunConfig, BadOverridesAreNamed) {
  EXPECT_EQ(parse_error("", {"lr"}), "override \"lr\": write it as a.b=value");
  EXPECT_NE(parse_error("", {"lora.rank_pattern.\xff=3"}).find("byte 18 is not UTF-8"), std::string::npos);
  EXPECT_EQ(parse_error("", {"=3"}), "override \"=3\": write it as a.b=value");
  EXPECT_EQ(parse_error("", {"optim.lr.x=3"}),
            "override \"optim.lr.x=3\": optim.lr is a number and has no field 'x'");
  EXPECT_EQ(parse_error("", {"optim.lr=[1"}).substr(0, 46),
            "override \"optim.lr=[1\": not valid YAML: end of");
  EXPECT_EQ(parse_error("", {"train.steps=4.0"}),
            "override \"train.steps=4.0\": train.steps must be a whole number, got \"4.0\"");
  EXPECT_EQ(parse_error("", {"optim=3"}), "override \"optim=3\": optim must be a group of fields, got \"3\"");
}

TEST(RunConfig, HostileYamlIsAUserError) {
  EXPECT_NE(parse_error("a: [").find("run.yaml:1: not valid YAML"), std::string::npos);
  EXPECT_NE(parse_error("- a\n").find("must hold fields"), std::string::npos);
  EXPECT_NE(parse_error("train: {}\n---\ntrain: {}\n").find("more than one YAML document"),
            std::string::npos);
  EXPECT_NE(parse_error("output: a\n, b: c ]").find("run.yaml:"), std::string::npos);
  EXPECT_NE(parse_error(",mode: ~").find("run.yaml: more than one YAML document"), std::string::npos);
  EXPECT_NE(parse_error("? [a, b]\n: c\n").find("for the name of a field"), std::string::npos);
  EXPECT_NE(parse_error("output: !!python/object x").find("has the tag"), std::string::npos);
  EXPECT_NE(parse_error(std::string("output: a\0b", 11)).find("byte 9 is zero"), std::string::npos);
  EXPECT_NE(parse_error("output: \"a\\0b\"").find("output holds a zero byte or"), std::string::npos);
  EXPECT_NE(parse_error("output: \"\\N\"").find("output holds a zero byte or one that is not"),
            std::string::npos);
  EXPECT_NE(parse_error("output: \xff\xfe").find("byte 8 is not UTF-8"), std::string::npos);
  EXPECT_NE(parse_error("lora: &a {rank_pattern: *a}"), "no UserError");
  EXPECT_NE(parse_error("data: {train: " + std::string(100000, '[')), "no UserError");
  EXPECT_NE(parse_error("output: " + std::string(300000, 'a')).find("300008 bytes of YAML"),
            std::string::npos);
  std::string bomb = "data:\n  train: &a0 [x, x, x, x]\n";
  for (int i = 1; i < 40; ++i) bomb += fmt::format("  k{0}: &a{0} [*a{1}, *a{1}, *a{1}, *a{1}]\n", i, i - 1);
  EXPECT_NE(parse_error(bomb).find("unknown field 'data.k1'"), std::string::npos);
}

TEST(RunConfig, MessagesStayOnOneLine) {
  const std::string error = parse_error("optim: {lr: \"a\\nb\"}\n");
  EXPECT_EQ(error, "run.yaml:1: optim.lr must be a finite number, got the text \"a\\x0ab\"");
  EXPECT_EQ(parse_error("\"a\\nb\": 1\n").find('\n'), std::string::npos);
  EXPECT_LT(parse_error(std::string(5000, 'a') + ": 1\n").size(), 300u);
}

TEST(RunConfig, DumpReadsBackEqual) {
  std::vector<std::string> overrides{"output=weird: \"name\" #\t{[\xC3\xA9",
                                     "data.valid=['null', '~', '1', 'a,b']",
                                     "model.tokenizer=\"\\u0001\\\\ x\"",
                                     "lora.alpha=0.30000000000000004",
                                     "lora.rank_pattern.~=3",
                                     "lora.rank_pattern.'a: b'=4"};
  RunConfig c = parse(kExample, overrides);
  EXPECT_TRUE(MessageDifferencer::Equals(c, parse(dump_yaml(c)))) << dump_yaml(c);
  resolve(c, 2);
  RunConfig again = parse(dump_yaml(c));
  EXPECT_TRUE(MessageDifferencer::Equals(c, again)) << dump_yaml(c);
  resolve(again, 2);
  EXPECT_TRUE(MessageDifferencer::Equals(c, again));
  c = parse(kExample, {"lora.targets=null", "lora.target_pattern=.*q_proj", "lora.exclude=[]"});
  resolve(c, 1);
  EXPECT_TRUE(MessageDifferencer::Equals(c, parse(dump_yaml(c)))) << dump_yaml(c);
}

TEST(RunConfig, DumpIsReadable) {
  RunConfig c = parse("model: {path: a}\nadapter: {}\noptim: {lr: 1e-3}");
  c.clear_train();
  const std::string yaml = dump_yaml(c);
  EXPECT_EQ(yaml.substr(0, 29), "model:\n  path: a\nadapter: {}\n");
  EXPECT_NE(yaml.find("optim:\n  name: adamw\n  lr: 0.001\n  betas: [0.9, 0.95]\n"), std::string::npos)
      << yaml;
  EXPECT_NE(yaml.find("\n  schedule:\n    name: constant\n"), std::string::npos) << yaml;
}

TEST(RunConfig, LoadNamesTheFile) {
  EXPECT_EQ(message_of([] { load_run_config("/nonexistent/run.yaml"); }),
            "/nonexistent/run.yaml: cannot read the run config: give the path of a YAML file");
  EXPECT_NE(message_of([] { load_run_config("/"); }).find("/: cannot read the run config"),
            std::string::npos);
  const std::string path = testing::TempDir() + "ridge_run_config_test.yaml";
  std::ofstream(path) << kExample;
  EXPECT_TRUE(MessageDifferencer::Equals(load_run_config(path), parse(kExample)));
  std::ofstream(path, std::ios::app) << "bogus: 1\n";
  EXPECT_EQ(message_of([&] { load_run_config(path); }).find(path + ":9: unknown field 'bogus'"), 0u);
}

TEST(RunConfig, ResolveSharesOutTheRanks) {
  RunConfig c = parse(kExample);
  EXPECT_TRUE(resolve(c, 4).empty());
  EXPECT_EQ(c.parallel().shard(), 4);
  EXPECT_EQ(data_parallel_degree(c), 4);
  EXPECT_EQ(c.train().micro_batch(), 1);
  c = parse(kExample, {"parallel.replicate=-1", "parallel.shard=2"});
  resolve(c, 4);
  EXPECT_EQ(c.parallel().replicate(), 2);
  c = parse(kExample, {"parallel.replicate=2", "parallel.shard=1"});
  EXPECT_TRUE(resolve(c, 2).empty());
  c = parse(kExample, {"parallel.cp=2", "parallel.tp=3", "parallel.pp=2"});
  resolve(c, 48);
  EXPECT_EQ(c.parallel().shard(), 4);
  EXPECT_EQ(data_parallel_degree(c), 4);  // ranks of cp, tp and pp have the same samples
}

TEST(RunConfig, LayoutsHaveTheirOptions) {
  const RunConfig d = default_run_config();
  EXPECT_EQ(d.parallel().stage(), 3);
  EXPECT_EQ(d.parallel().context(), "ring");
  EXPECT_EQ(d.parallel().schedule(), "1f1b");
  EXPECT_EQ(d.parallel().layers_size(), 0);
  const RunConfig c =
      parse(kExample, {"parallel.stage=2", "parallel.keep_gathered=true", "parallel.no_sync=true",
                       "parallel.reduce=bf16", "parallel.sequence_parallel=true", "parallel.tp_chunks=4",
                       "parallel.context=ulysses", "parallel.schedule=zb-h1", "parallel.stages_per_rank=2",
                       "parallel.layers=[2, 1]"});
  EXPECT_EQ(c.parallel().layers(0), 2);
  EXPECT_TRUE(MessageDifferencer::Equals(c, parse(dump_yaml(c))));
  EXPECT_EQ(parse_error(kExample, {"parallel.stage=4"}),
            "override \"parallel.stage=4\": parallel.stage must be at most 3, got 4");
  EXPECT_EQ(parse_error(kExample, {"parallel.tp_chunks=0"}),
            "override \"parallel.tp_chunks=0\": parallel.tp_chunks must be at least 1, got 0");
  EXPECT_EQ(parse_error(kExample, {"parallel.layers=[2, 0]"}),
            "override \"parallel.layers=[2, 0]\": parallel.layers[1] must be at least 1, got 0");
  EXPECT_NE(parse_error(kExample, {"parallel.schedule=dualpipe"})
                .find("one of gpipe, 1f1b, interleaved, zb-h1, zero-bubble"),
            std::string::npos);
  EXPECT_NE(parse_error(kExample, {"parallel.bucket_mb=25"}).find("unknown field 'parallel.bucket_mb'"),
            std::string::npos);
}

TEST(RunConfig, ResolveNamesImpossibleLayouts) {
  EXPECT_EQ(resolve_error({"parallel.replicate=2"}, 3),
            "parallel: replicate 2 x shard -1 x cp 1 x tp 1 x pp 1 does not divide the 3 ranks: start a "
            "multiple of 2 ranks, for example 2 or 4");
  EXPECT_EQ(resolve_error({"parallel.pp=3", "parallel.tp=2"}, 20),
            "parallel: replicate 1 x shard -1 x cp 1 x tp 2 x pp 3 does not divide the 20 ranks: start a "
            "multiple of 6 ranks, for example 18 or 24");
  EXPECT_EQ(resolve_error({"parallel.replicate=2", "parallel.shard=2"}, 2),
            "parallel: replicate 2 x shard 2 x cp 1 x tp 1 x pp 1 is more than the number of ranks, 2: start "
            "as many, or make a degree smaller");
  EXPECT_EQ(
      resolve_error({"parallel.cp=2", "parallel.tp=2"}, 2),
      "parallel: replicate 1 x shard -1 x cp 2 x tp 2 x pp 1 is more than the number of ranks, 2: start "
      "as many, or make a degree smaller");
  EXPECT_EQ(
      resolve_error({"parallel.shard=2", "parallel.pp=2"}, 8),
      "parallel: replicate 1 x shard 2 x cp 1 x tp 1 x pp 2 makes 4 ranks, but 8 were started: make the "
      "product 8 or leave shard at -1");
  EXPECT_NE(resolve_error({"parallel.replicate=-1"}, 2).find("both -1"), std::string::npos);
  EXPECT_NE(resolve_error({"parallel.shard=0"}, 2).find("got 0"), std::string::npos);
  const std::string big = "parallel.shard=4611686018427387904";
  EXPECT_NE(resolve_error({"parallel.replicate=4", big}, 1).find("is more than the number of ranks"),
            std::string::npos);
}

TEST(RunConfig, ResolveNamesBatchesThatDoNotDivide) {
  EXPECT_EQ(resolve_error({"train.global_batch=5"}, 2),
            "train.global_batch 5 is not divisible by 2 data-parallel ranks; nearest that work: 4 or 6");
  EXPECT_NE(resolve_error({"train.global_batch=1"}, 2).find("nearest that work: 2"), std::string::npos);
  EXPECT_NE(resolve_error({"train.steps=9223372036854775807"}).find("more than can be counted"),
            std::string::npos);
}

TEST(RunConfig, MicroBatchesAreTheLargestThatDivideARanksShare) {
  const struct {
    std::int64_t batch, micro, ranks, taken;
  } cases[] = {{4, 4, 2, 2},  {12, 4, 4, 3}, {12, 2, 4, 1}, {30, 4, 2, 3},
               {14, 6, 2, 1}, {8, 4, 2, 4},  {8, 1, 1, 1}};
  for (const auto& want : cases) {
    RunConfig c = parse(kExample, {"train.global_batch=" + std::to_string(want.batch),
                                   "train.micro_batch=" + std::to_string(want.micro), "parallel.replicate=-1",
                                   "parallel.shard=1"});
    const auto notes = resolve(c, want.ranks);
    EXPECT_EQ(c.train().micro_batch(), want.taken) << want.batch;
    EXPECT_EQ(notes.size(), want.taken == want.micro ? 0u : 1u) << want.batch;
    EXPECT_TRUE(resolve(c, want.ranks).empty()) << want.batch;
  }
}

TEST(RunConfig, ResolveNamesWhatIsMissing) {
  EXPECT_NE(resolve_error({"model.path=null"}).find("give model.path"), std::string::npos);
  EXPECT_NE(resolve_error({"model.arch.hidden_size=8"}).find("both path (base) and arch"), std::string::npos);
  EXPECT_NE(resolve_error({"adapter={}"}).find("adapter.path"), std::string::npos);
  EXPECT_NE(resolve_error({"data.train=[]"}).find("data.train: give"), std::string::npos);
  EXPECT_NE(resolve_error({"output=null"}).find("output: give"), std::string::npos);
  EXPECT_NE(resolve_error({"data.valid=[]", "train.eval_every=5"}).find("eval_every is 5"),
            std::string::npos);
  EXPECT_NE(resolve_error({"optim.betas=0.5"}).find("two numbers, got 1"), std::string::npos);
  EXPECT_NE(resolve_error({"optim.schedule.warmup_steps=21"}).find("21 is more than train.steps 20"),
            std::string::npos);
  EXPECT_NE(resolve_error({"optim.schedule={name: wsd, decay_steps: 19}"}).find("2 and decay_steps 19"),
            std::string::npos);
  EXPECT_NE(resolve_error({"lora.target_pattern=a"}).find("both targets and target_pattern"),
            std::string::npos);
  EXPECT_EQ(resolve_error({"train.steps=0", "optim.schedule={name: wsd, warmup_steps: 0}"}), "no UserError");
}

TEST(RunConfig, ArchIsAConfigJson) {
  const RunConfig c = parse(
      "model: {arch: {model_type: llama, hidden_size: 64, rms_norm_eps: 1e-5, tie_word_embeddings: true, "
      "sliding_window: null, eos_token_id: 2, rope_scaling: {rope_type: llama3, factor: 8}}}");
  const auto json = nlohmann::json::parse(arch_json(c));
  EXPECT_EQ(json, nlohmann::json::parse(R"({"model_type": "llama", "hidden_size": 64, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": true, "eos_token_id": [2], "rope_scaling": {"rope_type": "llama3", "factor": 8.0}})"));
}

TEST(RunConfig, PresetsOfTheWholeSchemaKeepTheirOwnLimits) {
  RunConfig c = default_run_config();
  c.mutable_lora();
  c.mutable_adapter();
  c.mutable_model()->mutable_arch()->mutable_rope_scaling();
  fill_presets(c);
  EXPECT_NO_THROW(check_limits(c));
  EXPECT_EQ(c.lora().rank(), 8);
}

}  // namespace
}  // namespace ridge
