// Checkpoints on their own: what is written is read, whatever is damaged is refused.
#include "launch/checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/io/checksum.h"
#include "tests/launch/run_program.h"

namespace ridge {
namespace {

using namespace test;
namespace fs = std::filesystem;

constexpr std::int64_t kStep = 12;

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const UserError& error) {
    return error.what();
  }
  return "no UserError";
}

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

Tensor numbered(const Shape& shape, DType dtype, float first) {
  const Tensor t = Tensor::empty(shape, DType::f32);
  float next = first;
  for (float& x : t.span<float>()) x = std::sin(next += 1);
  return dtype == DType::f32 ? t : t.to(dtype);
}

std::vector<NamedTensor> tensors_from(float first) {
  return {{"model/layers.0.weight", numbered({7, 5}, DType::f32, first)},
          {"model/norm.weight", numbered({5}, DType::bf16, first + 100)},
          {"optimizer/layers.0.weight.exp_avg", numbered({7, 5}, DType::f32, first + 200)}};
}

std::vector<std::string> bytes_of(const std::vector<NamedTensor>& tensors) {
  std::vector<std::string> all;
  for (const NamedTensor& t : tensors)
    all.emplace_back(static_cast<const char*>(t.value.data()), static_cast<std::size_t>(t.value.bytes()));
  return all;
}

void put_byte(const std::string& path, std::size_t at, char value) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(at)).put(value);
}

class CheckpointTest : public testing::Test {
 protected:
  void save(std::int64_t step, std::int64_t keep = 2) const {
    save_checkpoint(folder_.path(), {step, step * 10, step * 4, 99, "output: x\n"}, tensors_, keep);
  }
  std::vector<std::string> kept() const { return names_in(folder_ / "checkpoints"); }
  std::string file(const std::string& name) const {
    return folder_ / fmt::format("checkpoints/step-{:08}/{}", kStep, name);
  }

  // Lines of the manifest put right again, for one that a test has changed.
  void write_manifest(const std::string& body) const {
    const std::uint64_t checksum = xxh3_64(std::as_bytes(std::span(body)));
    write_text(file("manifest.txt"), body + "end " + checksum_text(checksum) + "\n");
  }
  std::string manifest_body() const {
    const std::string text = read_text(file("manifest.txt"));
    return text.substr(0, text.rfind("end "));
  }

  TemporaryFolder folder_;
  const std::vector<NamedTensor> tensors_ = tensors_from(0);
};

TEST_F(CheckpointTest, GivesBackEveryByte) {
  EXPECT_EQ(latest_checkpoint(folder_.path()), std::nullopt);
  save(kStep);
  const auto latest = latest_checkpoint(folder_.path());
  ASSERT_TRUE(latest);
  const TrainingState state = read_checkpoint_state(*latest);
  EXPECT_EQ(state.step, kStep);
  EXPECT_EQ(state.tokens, 120);
  EXPECT_EQ(state.next_sample, 48);
  EXPECT_EQ(state.seed, 99);
  EXPECT_EQ(state.config, "output: x\n");
  const auto read = tensors_from(5000);
  read_checkpoint_tensors(*latest, read);
  EXPECT_EQ(bytes_of(read), bytes_of(tensors_));
}

TEST_F(CheckpointTest, KeepsTheNewest) {
  for (std::int64_t step = 1; step <= 5; ++step) save(step, 3);
  EXPECT_EQ(kept(), (std::vector<std::string>{"step-00000003", "step-00000004", "step-00000005"}));
  save(6, 1);
  EXPECT_EQ(kept(), (std::vector<std::string>{"step-00000006"}));
}

TEST_F(CheckpointTest, AStepWrittenTwiceIsReplaced) {
  save(kStep);
  save_checkpoint(folder_.path(), {kStep, 1, 2, 3, "c"}, tensors_from(70), 2);
  const auto read = tensors_from(5000);
  read_checkpoint_tensors(*latest_checkpoint(folder_.path()), read);
  EXPECT_EQ(bytes_of(read), bytes_of(tensors_from(70)));
  EXPECT_EQ(kept().size(), 1u);
}

TEST_F(CheckpointTest, LeftoversAreNeitherReadNorKept) {
  save(kStep);
  const std::vector<std::string> stale{"checkpoints/step-00000013.tmp-77", "checkpoints/step-00000014",
                                       "checkpoints/step-00000015.tmp-9.old", "model.tmp-77",
                                       "adapter.tmp-1-2"};
  for (const std::string& name : stale) fs::create_directories(folder_ / (name + "/below"));
  write_text(folder_ / "config.yaml.tmp-5", "x");
  const std::vector<std::string> mine{"model.tmpl", "notes.tmp-1", "checkpoints/step-final", "model"};
  for (const std::string& name : mine) fs::create_directories(folder_ / name);
  EXPECT_TRUE(latest_checkpoint(folder_.path())->ends_with("step-00000012"));
  remove_leftovers(folder_.path());
  EXPECT_EQ(names_in(folder_.path()),
            (std::vector<std::string>{"checkpoints", "model", "model.tmpl", "notes.tmp-1"}));
  EXPECT_EQ(kept(), (std::vector<std::string>{"step-00000012", "step-final"}));
  remove_leftovers(folder_ / "absent");
}

TEST_F(CheckpointTest, AnotherModelIsRefused) {
  save(kStep);
  const std::string folder = *latest_checkpoint(folder_.path());
  const auto refusal = [&](std::vector<NamedTensor> tensors) {
    return message_of([&] { read_checkpoint_tensors(folder, tensors); });
  };
  auto fewer = tensors_from(0), renamed = tensors_from(0), reshaped = tensors_from(0),
       retyped = tensors_from(0);
  fewer.pop_back();
  renamed[1].name = "model/other";
  reshaped[0].value = numbered({7, 6}, DType::f32, 0);
  retyped[1].value = numbered({5}, DType::f32, 0);
  expect_parts(refusal(fewer), {"manifest.txt", "1 of its 3 tensors", "optimizer/layers.0.weight.exp_avg"});
  expect_parts(refusal(renamed), {"manifest.txt", "model/other"});
  expect_parts(refusal(reshaped), {"manifest.txt", "model/layers.0.weight", "[7, 5]", "[7, 6]"});
  expect_parts(refusal(retyped), {"manifest.txt", "model/norm.weight", "bf16", "f32"});
}

TEST_F(CheckpointTest, AnotherFormatIsRefused) {
  save(kStep);
  const auto refusal = [&] {
    return message_of([&] { read_checkpoint_state(*latest_checkpoint(folder_.path())); });
  };
  const std::string body = manifest_body();
  const std::string rest = body.substr(body.find('\n'));
  write_text(file("manifest.txt"), "ridge-checkpoint 3 9.8.7" + rest);  // whatever its checksum
  expect_parts(refusal(), {"manifest.txt", "format 3", "9.8.7", " 2", "newer ridge"});
  write_text(file("manifest.txt"), "0123456789abcdef 2048 rank-00000.h5\n0123456789abcdef 10 index.h5\n");
  expect_parts(refusal(), {"manifest.txt", "format 1", " 2"});
  write_text(file("manifest.txt"), "something else\n");
  expect_parts(refusal(), {"manifest.txt", "damaged"});
}

// Whatever the checksum says, nothing in a manifest is believed unchecked.
TEST_F(CheckpointTest, AManifestThatContradictsItselfIsRefused) {
  save(kStep);
  const std::string body = manifest_body();
  const std::vector<std::array<std::string, 3>> changes{
      {"tensor model/norm.weight bf16 5", "tensor model/norm.weight bf16 6000000000000000000000",
       "no number"},
      {"tensor model/norm.weight bf16 5", "tensor model/norm.weight bf16 4", "box"},
      {"tensor model/norm.weight bf16 5", "tensor model/norm.weight bf17 5", "bf17"},
      {"tensor model/norm.weight bf16 5", "tensor model/norm.weight bf16 5 9000000000000000000", "overflow"},
      {"tensor model/norm.weight", "tensor model/layers.0.weight", "twice"},
      {"file rank-00000.h5", "file ../rank-00000.h5", "plain file name"},
      {"file rank-00000.h5 ", "file rank-00000.h5 1", "bytes"},
      {"\nbox 0 ", "\nbox 7 ", "not listed"},
      {"\nbox 0 ", "\nbox 0 9", "end of its file"},
      {"\nbox 0 ", "\nbox 0  ", "empty word"},
      {"\nbox 0 ", "\nbax 0 ", "bax"},
      {"\"step\":12", "\"step\":-12", "below zero"},
      {"\"step\":12", "\"step\":12.5", "no whole number"},
      {"\"weights_only\":false", "\"weights_only\":7", "state"}};
  for (const auto& [from, to, part] : changes) {
    std::string changed = body;
    const std::size_t at = changed.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_manifest(changed.replace(at, from.size(), to));
    const auto read = tensors_from(5000);
    expect_parts(message_of([&] { read_checkpoint_tensors(*latest_checkpoint(folder_.path()), read); }),
                 {part});
  }
}

TEST_F(CheckpointTest, AFileThatIsMissingOrCutIsNamed) {
  const auto refusal = [&] {
    return message_of(
        [&] { read_checkpoint_tensors(folder_ / "checkpoints/step-00000012", tensors_from(0)); });
  };
  save(kStep);
  const std::string name = "rank-00000.h5", whole = read_text(file(name));
  write_text(file(name), whole.substr(0, whole.size() / 2));
  expect_parts(refusal(), {name, "damaged", std::to_string(whole.size() / 2), "remove that folder"});
  write_text(file(name), "");
  expect_parts(refusal(), {name, "damaged"});
  fs::remove(file(name));
  expect_parts(refusal(), {name, "missing"});
  save(kStep);
  fs::remove(file("manifest.txt"));
  expect_parts(refusal(), {"manifest.txt"});
  EXPECT_EQ(latest_checkpoint(folder_.path()), std::nullopt);
}

// For tools: reading does without.
TEST_F(CheckpointTest, TheIndexIsVerifiedToo) {
  save(kStep);
  const std::string folder = *latest_checkpoint(folder_.path());
  CheckpointReader(folder).verify();
  for (const char* name : {"index.h5", "rank-00000.h5"}) {
    const std::string whole = read_text(file(name));
    for (std::size_t at = 0; at < whole.size(); at += 97) {
      put_byte(file(name), at, static_cast<char>(whole[at] ^ 1));
      expect_parts(message_of([&] { CheckpointReader(folder).verify(); }), {name, "damaged"});
      put_byte(file(name), at, whole[at]);
    }
  }
}

// A changed byte either meets a check or changes nothing: no position gives other weights.
TEST_F(CheckpointTest, NoChangedByteGoesUnseen) {
  save(kStep);
  const std::string folder = *latest_checkpoint(folder_.path());
  const auto wanted = bytes_of(tensors_);
  for (const char* name : {"index.h5", "manifest.txt", "rank-00000.h5"}) {
    const std::string whole = read_text(file(name));
    // About 100 places of each file where every access is checked, else every third byte.
    const std::size_t stride = kSanitized ? std::max<std::size_t>(3, whole.size() / 100) : 3;
    int refused = 0;
    for (std::size_t at = 0; at < whole.size(); at += stride) {
      put_byte(file(name), at, static_cast<char>(whole[at] ^ (1 << (at % 8))));
      try {
        const TrainingState state = read_checkpoint_state(folder);
        const auto read = tensors_from(5000);
        read_checkpoint_tensors(folder, read);
        EXPECT_TRUE(state.step == kStep && state.tokens == 120 && state.next_sample == 48 &&
                    state.seed == 99 && state.config == "output: x\n")
            << name << " byte " << at;
        EXPECT_TRUE(bytes_of(read) == wanted) << name << " byte " << at;
      } catch (const UserError& error) {
        ++refused;
        EXPECT_NE(std::string(error.what()).find("/step-00000012/"), std::string::npos) << error.what();
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      }
      put_byte(file(name), at, whole[at]);
    }
    EXPECT_GT(refused, std::string(name) == "index.h5" ? -1 : 10) << name;
  }
}

}  // namespace
}  // namespace ridge
