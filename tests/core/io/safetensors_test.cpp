#include "core/io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/core/io/io_test_util.h"

namespace ridge {
namespace {

using test::expect_contains;
using test::message_of;
using test::TemporaryFolder;

// A file of any header, right or wrong, with `data_bytes` of data.
std::string raw_file(const std::string& json, std::size_t data_bytes) {
  const std::uint64_t length = json.size();
  std::string text(8, '\0');
  std::memcpy(text.data(), &length, 8);
  return text + json + std::string(data_bytes, 'd');
}

SafetensorsFile parse(const std::string& text) {
  return SafetensorsFile::parse(std::as_bytes(std::span(text)), "mem.safetensors");
}

// Parses, expects a UserError that names the file and says `part`.
void expect_invalid(const std::string& text, std::string_view part) {
  const std::string message = message_of([&] { parse(text); });
  expect_contains(message, "invalid safetensors file 'mem.safetensors'");
  expect_contains(message, part);
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

void expect_invalid_json(const std::string& json, std::string_view part, std::size_t data_bytes = 0) {
  SCOPED_TRACE(json);
  expect_invalid(raw_file(json, data_bytes), part);
}

std::int64_t count(const std::vector<std::int64_t>& shape) {
  std::int64_t n = 1;
  for (const std::int64_t dim : shape) n *= dim;
  return n;
}

TEST(Safetensors, RandomTensorsOfEveryDtypeComeBack) {
  TemporaryFolder folder;
  std::mt19937 rng(7);
  const DType kDtypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16,
                           DType::i32, DType::i64, DType::u8,   DType::i8};
  const std::vector<std::vector<std::int64_t>> kShapes = {{},        {1},           {7},      {3, 5},
                                                          {2, 0, 3}, {1, 13, 1, 3}, {257, 33}};
  for (int round = 0; round < 20; ++round) {
    std::vector<std::vector<std::byte>> data;
    std::vector<TensorEntry> entries;
    for (int i = 0; i < 12; ++i) {
      const DType dtype = kDtypes[rng() % 8];
      const auto& shape = kShapes[rng() % kShapes.size()];
      data.push_back(test::random_bytes(static_cast<std::size_t>(count(shape)) * size_of(dtype), rng));
      entries.push_back(
          make_tensor_entry(fmt::format("t\u00e9\"{}.{}", rng() % 1000, i), dtype, shape, data.back()));
    }
    write_safetensors(folder / "r.safetensors", entries, {{"format", "pt"}, {"k\n", "v\"\u20ac"}});
    const SafetensorsFile file = SafetensorsFile::open(folder / "r.safetensors");
    ASSERT_EQ(file.entries().size(), entries.size());
    EXPECT_EQ(file.metadata().at("k\n"), "v\"\u20ac");
    for (const TensorEntry& wanted : entries) {
      const TensorEntry& got = file.at(wanted.name);
      EXPECT_EQ(got.dtype, wanted.dtype);
      EXPECT_EQ(got.type(), wanted.type());
      EXPECT_EQ(got.shape, wanted.shape);
      EXPECT_TRUE(std::ranges::equal(got.data, wanted.data));
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(got.data.data()) % size_of(*got.type()), 0u);
    }
  }
  EXPECT_EQ(folder.names().size(), 1u);
}

// One tensor of each of four types, as the reference library writes them; see
// tests/data/safetensors/README.md.
TEST(Safetensors, ReadsAndWritesWhatTheReferenceLibraryWrites) {
  const std::string reference = RIDGE_SOURCE_DIR "/tests/data/safetensors/reference.safetensors";
  const SafetensorsFile file = SafetensorsFile::open(reference);
  EXPECT_EQ(file.entries().size(), 8u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  const TensorEntry& weight = file.at("b.weight");
  EXPECT_EQ(weight.type(), DType::f32);
  EXPECT_EQ(weight.shape, (std::vector<std::int64_t>{3, 5}));
  for (int i = 0; i < 15; ++i) {
    float value = 0;
    std::memcpy(&value, weight.data.data() + 4 * i, 4);
    EXPECT_EQ(value, 0.5f * static_cast<float>(i) - 3.0f);
  }
  EXPECT_EQ(file.at("fp8").dtype, "F8_E4M3");
  EXPECT_FALSE(file.at("fp8").type().has_value());
  EXPECT_EQ(file.at("scalar").shape.size(), 0u);
  EXPECT_EQ(file.at("empty").data.size(), 0u);

  TemporaryFolder folder;  // same order, padding and spelling: byte for byte
  write_safetensors(folder / "ours.safetensors", file.entries(), file.metadata());
  EXPECT_EQ(test::read_text(folder / "ours.safetensors"), test::read_text(reference));
}

TEST(Safetensors, ReadsTheModelOfTheTests) {
  const std::string path = RIDGE_SOURCE_DIR "/../shared/models/stories260k/model.safetensors";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is absent";
  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(file.at("model.embed_tokens.weight").shape, (std::vector<std::int64_t>{512, 64}));
  EXPECT_EQ(file.find("no.such.tensor"), nullptr);
}

TEST(Safetensors, AcceptsTheLegalExtremes) {
  EXPECT_TRUE(parse(raw_file("{}", 0)).entries().empty());
  EXPECT_TRUE(parse(raw_file("{}  \n ", 0)).entries().empty());
  EXPECT_EQ(parse(raw_file(R"({"a":{"shape":[],"data_offsets":[0,1],"dtype":"U8"}})", 1)).at("a").data.size(),
            1u);
  EXPECT_EQ(
      parse(raw_file(R"({"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}})", 2)).at("a").data.size(), 2u);
  // Unaligned: a name-ordered file of another writer.
  const auto odd = parse(raw_file(
      R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"F32","shape":[1],"data_offsets":[3,7]}})",
      7));
  EXPECT_EQ(odd.at("b").data.data() - odd.at("a").data.data(), 3);
}

TEST(Safetensors, MissingTensorIsNamed) {
  const auto file = parse(raw_file("{}", 0));
  const std::string message = message_of([&] { file.at("lm_head.weight"); });
  expect_contains(message, "'mem.safetensors' has no tensor 'lm_head.weight'");
}

TEST(Safetensors, RejectsBadLengths) {
  expect_invalid("", "it has 0 bytes");
  expect_invalid("1234567", "it has 7 bytes");
  expect_invalid(raw_file("{}", 0).substr(0, 9), "header length is 2, but only 1 bytes follow");
  expect_invalid(std::string(7, '\xFF') + "\x7F{}", "more than the 100000000 allowed");
  std::string over = raw_file("{}", 0);
  const std::uint64_t length = 100'000'001;
  std::memcpy(over.data(), &length, 8);
  expect_invalid(over, "header length is 100000001");
  expect_invalid(raw_file("", 0), "does not start with '{'");
}

TEST(Safetensors, RejectsHeadersThatAreNotJson) {
  expect_invalid_json(" {}", "does not start with '{'");
  expect_invalid_json("[]", "does not start with '{'");
  expect_invalid_json("{", "not valid JSON at byte");
  expect_invalid_json("{}}", "not valid JSON at byte");
  expect_invalid_json(std::string("{}\0", 3), "not valid JSON at byte");
  expect_invalid_json("{\"a\xFF\":1}", "not valid UTF-8");
  expect_invalid_json(R"({"\ud800":1})", "not valid JSON");
  expect_invalid_json(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},})", "not valid JSON");
  expect_invalid_json(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[00,0]}})", "not valid JSON");
}

TEST(Safetensors, RejectsWhatTheSchemaDoesNotKnow) {
  expect_invalid_json(R"({"a":1})", "tensor 'a' must be an object, found 1");
  expect_invalid_json(R"({"a":[]})", "tensor 'a' must be an object, found an array");
  expect_invalid_json(R"({"a":null})", "found null");
  expect_invalid_json(R"({"a":{"dtype":1}})", "tensor 'a': dtype must be a string, found 1");
  expect_invalid_json(R"({"a":{"shape":"x"}})",
                      "tensor 'a': shape must be an array of numbers, found the string 'x'");
  expect_invalid_json(R"({"a":{"data_offsets":{}}})",
                      "data_offsets must be an array of 2 numbers, found an object");
  expect_invalid_json(R"({"a":{"shape":[-1]}})", "shape must hold whole numbers from 0 up, found -1");
  expect_invalid_json(R"({"a":{"shape":[1.5]}})", "found 1.5");
  expect_invalid_json(R"({"a":{"shape":[1e3]}})", "found 1e3");
  expect_invalid_json(R"({"a":{"shape":[[1]]}})", "found an array");
  expect_invalid_json(R"({"a":{"shape":[true]}})", "found a boolean");
  expect_invalid_json(R"({"a":{"shape":[99999999999999999999]}})", "found 99999999999999999999");
  expect_invalid_json(R"({"a":{"shape":[9223372036854775808]}})",
                      "dim 0 of its shape is 9223372036854775808");
  expect_invalid_json(R"({"a":{"stride":[1]}})", "tensor 'a' has the unknown field 'stride'");
  expect_invalid_json(R"({"a":{"dtype":"U8","shape":[0]}})", "tensor 'a' has no data_offsets");
  expect_invalid_json(R"({"a":{"dtype":"U8","data_offsets":[0,0]}})", "tensor 'a' has no shape");
  expect_invalid_json(R"({"a":{"shape":[0],"data_offsets":[0,0]}})", "tensor 'a' has no dtype");
  expect_invalid_json(R"({"a":{"data_offsets":[0]}})", "data_offsets has 1 numbers instead of 2");
  expect_invalid_json(R"({"a":{"data_offsets":[0,1,2]}})", "data_offsets has more than 2 numbers");
  expect_invalid_json(R"({"__metadata__":"x"})", "__metadata__ must be an object, found the string 'x'");
  expect_invalid_json(R"({"__metadata__":{"k":1}})", "__metadata__ 'k' must be a string, found 1");
  expect_invalid_json(R"({"__metadata__":{"k":{}}})", "__metadata__ 'k' must be a string, found an object");
}

TEST(Safetensors, RejectsDeepAndWideShapes) {
  std::string deep = R"({"a":{"shape":)" + std::string(100'000, '[');
  expect_invalid_json(deep, "found an array");
  std::string wide = R"({"a":{"dtype":"U8","shape":[1)";
  for (int i = 0; i < 64; ++i) wide += ",1";
  expect_invalid_json(wide + R"(],"data_offsets":[0,1]}})", "tensor 'a' has more than 64 dims", 1);
}

TEST(Safetensors, RejectsDuplicateKeys) {
  const std::string tensor = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  expect_invalid_json(R"({"a":)" + tensor + R"(,"\u0061":)" + tensor + "}", "'a' is in the header twice");
  expect_invalid_json(R"({"a":{"dtype":"U8","dtype":"U8"}})", "'a' has the key 'dtype' twice");
  expect_invalid_json(R"({"__metadata__":{},"__metadata__":{}})", "'__metadata__' is in the header twice");
  expect_invalid_json(R"({"__metadata__":{"k":"1","k":"2"}})", "'__metadata__' has the key 'k' twice");
}

TEST(Safetensors, RejectsSizesThatDisagree) {
  expect_invalid_json(
      R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}})",
      "tensor 'w': data_offsets [0, 20] hold 20 bytes, but dtype F32 and shape [2, 3] need 24", 20);
  expect_invalid_json(R"({"w":{"dtype":"Q4","shape":[2],"data_offsets":[0,1]}})", "unknown dtype 'Q4'", 1);
  expect_invalid_json(R"({"w":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", "do not make a size", 2);
  expect_invalid_json(R"({"w":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})",
                      "do not make a size (overflow");
  expect_invalid_json(R"({"w":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})",
                      "overflow");
  // 2^61 f64 = 2^67 bits, 0 bytes when it wraps.
  expect_invalid_json(R"({"w":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})",
                      "overflow");
}

TEST(Safetensors, RejectsHolesOverlapsAndLooseEnds) {
  const auto two = [](int b0, int e0, int b1, int e1) {
    return fmt::format(R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},)"
                       R"("b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
                       e0 - b0, b0, e0, e1 - b1, b1, e1);
  };
  EXPECT_EQ(parse(raw_file(two(4, 6, 0, 4), 6)).at("a").data.size(), 2u);
  expect_invalid_json(two(1, 2, 2, 4), "tensor 'a' begins at byte 1 of the data instead of 0: a hole", 4);
  expect_invalid_json(two(0, 2, 3, 4), "tensor 'b' begins at byte 3 of the data instead of 2: a hole", 4);
  expect_invalid_json(two(0, 3, 2, 4), "tensor 'b' begins at byte 2 of the data instead of 3: an overlap", 4);
  expect_invalid_json(two(0, 2, 0, 2), "an overlap", 2);
  expect_invalid_json(two(0, 2, 2, 4), "need 4 bytes of data, but 5 follow the header", 5);
  expect_invalid_json(two(0, 2, 2, 4),
                      "need 4 bytes of data, but 3 follow the header; is the file cut short?", 3);
  expect_invalid_json(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,18446744073709551615]}})",
                      "hold 18446744073709551615 bytes");
  const std::string backwards = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                R"("b":{"dtype":"U8","shape":[0],"data_offsets":[4,2]}})";
  expect_invalid_json(backwards, "tensor 'b': data_offsets [4, 2] end before they begin", 4);
}

TEST(Safetensors, LongAndOddNamesStayOnOneShortLine) {
  const std::string message =
      message_of([&] { parse(raw_file("{\"" + std::string(5000, 'n') + "\\n\":1}", 0)); });
  EXPECT_LT(message.size(), 300u);
  expect_invalid_json(R"({"a\nb":1})", R"('a\x0ab')");
}

TEST(SafetensorsWriter, TakesTensorsInAnyOrder) {
  TemporaryFolder folder;
  const std::vector<float> a{1, 2, 3};
  const std::vector<std::int64_t> b{4};
  const TensorEntry declared[] = {make_tensor_entry("a", DType::f32, {3}),
                                  make_tensor_entry("b", DType::i64, {})};
  SafetensorsWriter writer(folder / "w.safetensors", declared);
  writer.write("a", test::bytes_of(a));
  expect_contains(message_of<Error>([&] { writer.finish(); }), "tensor 'b'");
  writer.write("b", test::bytes_of(b));
  EXPECT_FALSE(std::filesystem::exists(folder / "w.safetensors"));
  writer.finish();
  const SafetensorsFile file = SafetensorsFile::open(folder / "w.safetensors");
  EXPECT_TRUE(std::ranges::equal(file.at("a").data, test::bytes_of(a)));
  EXPECT_TRUE(std::ranges::equal(file.at("b").data, test::bytes_of(b)));
  EXPECT_EQ(file.metadata().at("format"), "pt");
}

TEST(SafetensorsWriter, RejectsWhatWasNotDeclared) {
  TemporaryFolder folder;
  const std::vector<float> a{1, 2, 3};
  const TensorEntry entry = make_tensor_entry("a", DType::f32, {3});
  SafetensorsWriter writer(folder / "w", {&entry, 1});
  expect_contains(message_of<Error>([&] { writer.write("b", {}); }), "tensor 'b' was not declared");
  expect_contains(message_of<Error>([&] { writer.write("a", test::bytes_of(a).first(4)); }),
                  "has 4 bytes, declared 12");
  writer.write("a", test::bytes_of(a));
  expect_contains(message_of<Error>([&] { writer.write("a", test::bytes_of(a)); }), "written twice");
  const TensorEntry twice[] = {entry, entry};
  expect_contains(message_of<Error>([&] { SafetensorsWriter again(folder / "x", twice); }), "declared twice");
  const TensorEntry bad = make_tensor_entry("a\xFF", DType::f32, {3});
  expect_contains(message_of([&] { SafetensorsWriter ill(folder / "x", {&bad, 1}); }), "not valid UTF-8");
}

TEST(SafetensorsWriter, FullDiskKeepsTheOldFile) {
  TemporaryFolder folder;
  const std::vector<float> data(10'000, 1.0f);
  const std::vector<float> old_data(3, 2.0f);
  const TensorEntry small = make_tensor_entry("a", DType::f32, {3}, test::bytes_of(old_data));
  write_safetensors(folder / "w.safetensors", {&small, 1});
  const TensorEntry large = make_tensor_entry("a", DType::f32, {10'000}, test::bytes_of(data));
  const std::string message = test::message_on_full_disk(20'000, [&] {
    write_safetensors(folder / "w.safetensors", {&large, 1});
  });
  expect_contains(message, "cannot write '" + (folder / "w.safetensors"));
  EXPECT_EQ(SafetensorsFile::open(folder / "w.safetensors").at("a").data.size(), 12u);
  EXPECT_EQ(folder.names().size(), 1u);
}

}  // namespace
}  // namespace ridge
