// Quantized folders: what bitsandbytes and compressed-tensors wrote gives their logits, and state that does
// not fit is named.
#include "core/models/quantized_weights.h"

#include <gtest/gtest.h>

#include <list>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/models/bitsandbytes_keys.h"
#include "core/nn/quantized_linear.h"
#include "kernels/quantize.h"
#include "tests/core/io/io_test_util.h"
#include "tests/core/models/reference.h"

namespace ridge::models {
namespace {

namespace fs = std::filesystem;
using test::data_path;
using test::expect_contains;
using test::message_of;
using test::TemporaryFolder;

const std::string kQuery = "model.layers.0.self_attn.q_proj";  // [64, 64]

// A copy of a folder that others quantized, in which tensors and config can be changed.
class Copy {
 public:
  explicit Copy(const std::string& name)
      : source_(WeightFolder::open(data_path("models/quantized/" + name))) {
    config_ = test::read_text(data_path("models/quantized/" + name + "/config.json"));
    for (const std::string& key : source_.names()) entries_.push_back(source_.at(key));
  }
  TensorEntry& at(const std::string& name) {
    return *std::find_if(entries_.begin(), entries_.end(), [&](auto& e) { return e.name == name; });
  }
  void remove(const std::string& name) {
    const auto gone = std::erase_if(entries_, [&](const TensorEntry& e) { return e.name == name; });
    EXPECT_EQ(gone, 1u) << name;
  }
  void add(TensorEntry entry) { entries_.push_back(std::move(entry)); }
  /// Other bytes in place of a tensor's.
  template <class T>
  void set(const std::string& name, std::size_t index, T value) {
    TensorEntry& entry = at(name);
    bytes_.emplace_back(entry.data.begin(), entry.data.end());
    ASSERT_LE((index + 1) * sizeof(T), bytes_.back().size());
    std::memcpy(bytes_.back().data() + index * sizeof(T), &value, sizeof(T));
    entry.data = bytes_.back();
  }
  void set_text(const std::string& name, const std::string& text) {
    const auto* begin = reinterpret_cast<const std::byte*>(text.data());
    bytes_.emplace_back(begin, begin + text.size());
    at(name).data = bytes_.back();
    at(name).shape = {static_cast<std::int64_t>(text.size())};
  }
  std::string text_of(const std::string& name) {
    return {reinterpret_cast<const char*>(at(name).data.data()), at(name).data.size()};
  }
  void replace_in_config(const std::string& from, const std::string& to) {
    ASSERT_NE(config_.find(from), std::string::npos) << from;
    config_.replace(config_.find(from), from.size(), to);
  }
  std::string& config() { return config_; }

  LoadedModel load(const QuantizeOnLoad& how = {}) const {
    write_weight_folder(folder_.path(), entries_);
    test::write_text(folder_.path() + "/config.json", config_);
    return load_model(folder_.path(), DType::f32, LoadMode::read, test::test_device(), how);
  }
  void expect_error(const std::vector<std::string>& parts) const {
    const std::string message = message_of([&] { load(); });
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string& part : parts) expect_contains(message, part);
  }

 private:
  TemporaryFolder folder_;
  WeightFolder source_;
  std::string config_;
  std::vector<TensorEntry> entries_;
  std::list<std::vector<std::byte>> bytes_;
};

std::int64_t quantized_layers(Llama& model) {
  std::int64_t count = 0;
  for (const nn::LinearSlot& slot : model.linears()) count += (*slot.slot)->quantized() != nullptr;
  return count;
}

class TheirFolders : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(TheirFolders, GiveTheirLogits) {
  const auto [name, format] = GetParam();
  const std::string folder = data_path("models/quantized/" + std::string(name));
  const SafetensorsFile expected =
      SafetensorsFile::open(data_path("expected/quantized/" + std::string(name) + ".safetensors"));
  const autograd::NoGradScope no_grad;
  for (const bool dequantize : {false, true}) {
    QuantizeOnLoad how;
    how.dequantize = dequantize;
    const LoadedModel loaded = load_model(folder, DType::f32, LoadMode::read, test::test_device(), how);
    EXPECT_EQ(quantized_layers(*loaded.model), dequantize ? 0 : 7);  // the output layer is dense
    EXPECT_TRUE(loaded.notes.empty()) << loaded.notes.front();
    const Tensor logits = loaded.model->logits(test::read_tensor(expected, "ids"));
    EXPECT_LT(test::range_error(logits, test::read_tensor(expected, "logits")), 1e-5);
  }
  const ModelWeights weights(folder);
  EXPECT_EQ(weights.format_of(kQuery), kernels::parse_weight_format(format));
  EXPECT_FALSE(weights.format_of("lm_head"));
  EXPECT_EQ(weights.stored_bytes(), static_cast<std::int64_t>(WeightFolder::open(folder).total_bytes()));
}

INSTANTIATE_TEST_SUITE_P(Quantized, TheirFolders,
                         testing::Values(std::pair("nf4-dq", "nf4-dq"), std::pair("fp4", "fp4"),
                                         std::pair("llm-int8", "int8"),
                                         std::pair("int4-g32-zp", "int4-g32-zp"),
                                         std::pair("int4-channel", "int4-g64"), std::pair("int8", "int8"),
                                         std::pair("fp8-block", "fp8-block")),
                         [](const auto& info) {
                           std::string name = info.param.first;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(QuantizedFolder, ReadGivesTheDequantizedWeight) {
  const ModelWeights weights(data_path("models/quantized/nf4-dq"));
  const Tensor dense = weights.read(kQuery + ".weight", {64, 64});
  EXPECT_EQ(dense.dtype(), DType::f32);
  const QuantizedWeight codes = weights.read_quantized(kQuery, 64, 64);
  EXPECT_TRUE(test::same_bits(dense, dequantize(codes, DType::f32)));
}

TEST(QuantizedFolder, BytesOfAnotherTypeAreCodesAllTheSame) {
  Copy copy("fp4");
  const auto plain = copy.load();
  TensorEntry& codes = copy.at(kQuery + ".weight");  // as bnb_4bit_quant_storage gives them
  codes.dtype = "BF16";
  codes.shape = {64 * 64 / 4, 1};
  const auto typed = copy.load();
  EXPECT_TRUE(test::same_bits(test::parameter(*plain.model, kQuery + ".weight"),
                              test::parameter(*typed.model, kQuery + ".weight")));
}

TEST(QuantizedFolder, KeysDecideNotTheConfig) {
  Copy copy("int8");
  copy.config() = test::read_text(data_path("models/llama3/config.json"));
  const std::string dense = data_path("models/llama3");
  const TemporaryFolder folder;
  fs::copy_file(dense + "/model.safetensors", folder / "model.safetensors");
  std::string config = test::read_text(dense + "/config.json");
  config.insert(config.find('{') + 1,
                R"("quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true},)");
  test::write_text(folder / "config.json", config);
  const LoadedModel loaded = load_model(folder.path(), DType::f32, LoadMode::read);
  EXPECT_EQ(quantized_layers(*loaded.model), 0);
  ASSERT_EQ(loaded.notes.size(), 1u);
  expect_contains(loaded.notes[0], "plain");
}

TEST(QuantizedFolder, NoConfigIsNeededBesideTheKeys) {
  Copy copy("nf4-dq");
  copy.replace_in_config("quantization_config", "another_key");
  EXPECT_EQ(quantized_layers(*copy.load().model), 7);
}

TEST(QuantizedFolder, ScalesOfATensorHoldForEveryRow) {
  Copy copy("int8");
  copy.replace_in_config("\"channel\"", "\"tensor\"");
  float first = 0;
  for (const char* layer : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
    TensorEntry& scale = copy.at(std::string("model.layers.0.") + layer + ".weight_scale");
    if (first == 0) std::memcpy(&first, scale.data.data(), 4);
    scale.shape = {1};
    scale.data = scale.data.first(4);
  }
  const auto loaded = copy.load();
  for (const double scale : test::values_of(test::parameter(*loaded.model, kQuery + ".weight.absmax")))
    EXPECT_EQ(scale, static_cast<double>(first));
}

// The same bytes under the names that DeepSeek gives them.
TEST(QuantizedFolder, InverseScalesAreMultipliers) {
  Copy copy("fp8-block");
  const auto plain = copy.load();
  copy.config().erase(copy.config().find("\"quantization_config\""));
  copy.config() += R"("quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128],
                      "activation_scheme": "dynamic"}, "hidden_size": 64, "intermediate_size": 192,
                      "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 61})";
  for (const char* layer : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
    copy.at(std::string("model.layers.0.") + layer + ".weight_scale").name += "_inv";
  const auto inverse = copy.load();
  ASSERT_EQ(inverse.notes.size(), 1u);
  expect_contains(inverse.notes[0], "activations");
  for (const char* part : {"", ".absmax"})
    EXPECT_TRUE(test::same_bits(test::parameter(*plain.model, kQuery + ".weight" + part),
                                test::parameter(*inverse.model, kQuery + ".weight" + part)));
}

TEST(BadQuantizedFolder, BitsandbytesStateThatIsMissing) {
  const std::string state = kQuery + ".weight.quant_state.bitsandbytes__nf4";
  for (const std::string& key :
       {kQuery + ".weight", kQuery + ".weight.absmax", kQuery + ".weight.quant_map",
        kQuery + ".weight.nested_absmax", kQuery + ".weight.nested_quant_map", state}) {
    Copy copy("nf4-dq");
    copy.remove(key);
    copy.expect_error({key.substr(0, key.rfind("__")), "missing"});
  }
  Copy copy("llm-int8");
  copy.remove(kQuery + ".SCB");
  copy.expect_error({kQuery, "SCB", "missing"});
}

TEST(BadQuantizedFolder, BitsandbytesStateThatContradictsItself) {
  const std::string state = kQuery + ".weight.quant_state.bitsandbytes__nf4";
  const std::vector<std::array<std::string, 4>> changes = {
      {"\"quant_type\": \"nf4\"", "\"quant_type\": \"fp4\"", "fp4", "name"},
      {"\"quant_type\": \"nf4\"", "\"quant_type\": \"int3\"", "int3", "nf4"},
      {"\"blocksize\": 64", "\"blocksize\": 128", "128", "64"},
      {"[64, 64]", "[64, 32]", "[64, 32]", "[64, 64]"},
      {"[64, 64]", "[-64, 64]", "-64", "shape"},
      {"\"nested_blocksize\": 256", "\"nested_blocksize\": 512", "512", "256"},
      {"\"nested_offset\"", "\"nested_offse\"", "nested_offset", "missing"},
      {"{", "[", "JSON", "quant_state"}};
  for (const auto& [from, to, first, second] : changes) {
    Copy copy("nf4-dq");
    std::string text = copy.text_of(state);
    ASSERT_NE(text.find(from), std::string::npos) << text;
    copy.set_text(state, text.replace(text.find(from), from.size(), to));
    copy.expect_error({state, first, second});
  }
}

TEST(BadQuantizedFolder, BitsandbytesTensorsOfAnotherSize) {
  Copy scales("nf4-dq");
  scales.at(kQuery + ".weight.absmax").shape = {63};
  scales.at(kQuery + ".weight.absmax").data = scales.at(kQuery + ".weight.absmax").data.first(63);
  scales.expect_error({kQuery + ".weight.absmax", "[63]", "64"});
  Copy map("nf4-dq");
  map.at(kQuery + ".weight.nested_quant_map").shape = {128};
  map.at(kQuery + ".weight.nested_quant_map").data =
      map.at(kQuery + ".weight.nested_quant_map").data.first(512);
  map.expect_error({"nested_quant_map", "[128]", "256"});
  Copy codes("nf4-dq");
  codes.at(kQuery + ".weight").shape = {2047, 1};
  codes.at(kQuery + ".weight").data = codes.at(kQuery + ".weight").data.first(2047);
  codes.expect_error({kQuery + ".weight", "2047", "2048"});
}

TEST(BadQuantizedFolder, ValuesThatCannotBeScalesOrMaps) {
  for (const float bad : {-1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    Copy copy("fp4");
    copy.set(kQuery + ".weight.absmax", 3, bad);
    copy.expect_error({kQuery + ".weight.absmax[3]", fmt::format("{}", bad)});
    Copy rows("int8");
    rows.set(kQuery + ".weight_scale", 5, bad);
    rows.expect_error({kQuery + ".weight_scale[5]", "finite and above 0"});
  }
  Copy zero("int8");
  zero.set(kQuery + ".weight_scale", 0, 0.0f);
  zero.expect_error({kQuery + ".weight_scale[0] is 0"});
  Copy empty_block("fp4");  // a block of zeros is no error
  empty_block.set(kQuery + ".weight.absmax", 0, 0.0f);
  EXPECT_EQ(quantized_layers(*empty_block.load().model), 7);
  Copy map("fp4");
  map.set(kQuery + ".weight.quant_map", 2, 0.25f);
  map.expect_error({"quant_map[2]", "0.25", "0.6666"});
}

TEST(BadQuantizedFolder, CompressedStateThatIsMissingOrContradictsItself) {
  Copy scale("int4-g32-zp");
  scale.remove(kQuery + ".weight_scale");
  scale.expect_error({kQuery + ".weight_scale", "missing"});
  Copy shape("int4-g32-zp");
  shape.remove(kQuery + ".weight_shape");
  shape.expect_error({kQuery + ".weight_shape", "missing"});
  Copy other("int4-g32-zp");
  other.set<std::int64_t>(kQuery + ".weight_shape", 1, 128);
  other.expect_error({kQuery + ".weight_shape", "[64, 128]", "[64, 64]"});
  Copy zeros("int4-g32-zp");
  zeros.remove(kQuery + ".weight_zero_point");
  zeros.expect_error({kQuery, "symmetric", "zero points"});
  Copy three("int4-g32-zp");
  three.at(kQuery + ".weight_packed").shape = {64, 6};  // 3 bits
  three.at(kQuery + ".weight_packed").data = three.at(kQuery + ".weight_packed").data.first(64 * 6 * 4);
  three.expect_error({kQuery + ".weight_packed", "[64, 6]", "[64, 8]"});
  Copy group("int4-g32-zp");
  group.replace_in_config("\"group_size\": 32", "\"group_size\": 64");
  group.expect_error({kQuery, "group of 32", "group of 64"});
  Copy bits("int8");
  bits.replace_in_config("\"num_bits\": 8", "\"num_bits\": 4");
  bits.expect_error({kQuery, "8 bits", "4 bits"});
}

// [64, 64] in groups of 32: words [8, 2].
TEST(BadQuantizedFolder, ZeroPointsOfAnotherShapeWithAsManyElements) {
  const std::string zeros = kQuery + ".weight_zero_point";
  for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{2, 8}, {16}, {4, 4}, {8, 2, 1}}) {
    Copy copy("int4-g32-zp");
    copy.at(zeros).shape = shape;
    copy.expect_error({zeros, shape_text(shape), "not [8, 2]"});
  }
}

TEST(BadQuantizedFolder, AScaleBesideAWeightThatIsDense) {
  for (const char* name : {"int8", "fp8-block"}) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f64}) {
      Copy copy(name);
      const std::vector<std::byte> ones(64 * 64 * size_of(dtype), std::byte{1});
      TensorEntry& weight = copy.at(kQuery + ".weight");
      weight.dtype = safetensors_name(dtype);
      weight.data = ones;
      copy.expect_error({kQuery + ".weight is stored as " + weight.dtype, kQuery + ".weight_scale is there"});
    }
  }
  Copy inverse("fp8-block");
  const std::vector<std::byte> ones(64 * 64 * 4, std::byte{1});
  inverse.at(kQuery + ".weight").dtype = "F32";
  inverse.at(kQuery + ".weight").data = ones;
  inverse.at(kQuery + ".weight_scale").name += "_inv";
  inverse.expect_error({kQuery + ".weight_scale_inv is there"});
  Copy table("int8");  // no linear layer
  TensorEntry scale = table.at(kQuery + ".weight_scale");
  scale.name = "model.embed_tokens.weight_scale";
  table.add(scale);
  table.expect_error({"model.embed_tokens.weight_scale is there"});
}

TEST(BadQuantizedFolder, Fp8CodesThatAreNaN) {
  for (const int code : {0x7f, 0xff}) {
    Copy copy("fp8-block");
    copy.set(kQuery + ".weight", 64 * 3 + 5, static_cast<std::uint8_t>(code));
    copy.expect_error({kQuery + ".weight[3, 5]", fmt::format("{:#x}", code), "NaN"});
  }
  for (const int code : {0x7e, 0xfe}) {  // the largest numbers
    Copy copy("fp8-block");
    copy.set(kQuery + ".weight", 0, static_cast<std::uint8_t>(code));
    EXPECT_EQ(quantized_layers(*copy.load().model), 7);
  }
}

// absmax = map[code] nested_absmax + nested_offset, and an absmax is no less than 0.
TEST(BadQuantizedFolder, AnOffsetThatMakesNoAbsmax) {
  const std::string state = kQuery + ".weight.quant_state.bitsandbytes__nf4";
  for (const char* offset : {"-5", "-1e30", "-3e38"}) {
    Copy copy("nf4-dq");
    std::string text = copy.text_of(state);
    const std::size_t at = text.find("\"nested_offset\"");
    text.replace(at, text.find('}', at) - at, std::string("\"nested_offset\": ") + offset);
    copy.set_text(state, text);
    copy.expect_error({kQuery + ".weight.absmax[0]", "nested_offset -", "finite"});
  }
  Copy wide("nf4-dq");  // of finite numbers
  std::string text = wide.text_of(state);
  const std::size_t at = text.find("\"nested_offset\"");
  wide.set_text(state, text.replace(at, text.find('}', at) - at, "\"nested_offset\": 3e38"));
  wide.set(kQuery + ".weight.nested_absmax", 0, 3e38f);
  wide.expect_error({kQuery + ".weight.absmax[", "inf", "finite"});
}

// A block of zeros under double quantization comes back as a little less.
TEST(QuantizedFolder, BlocksOfZerosUnderDoubleQuantization) {
  const TemporaryFolder folder;
  const QuantizedWeight whole = [] {
    const Tensor w = Tensor::empty({64, 64}, DType::f32);
    std::uint32_t seed = 5;
    for (std::size_t i = 0; i < 64 * 64; ++i) {
      seed = seed * 1664525u + 1013904223u;
      w.span<float>()[i] = i / 64 % 3 == 0 ? 0 : (static_cast<float>(seed >> 8) * 0x1p-24f - 0.5f) * 0.1f;
    }
    w.span<float>()[100] = 0.22f;  // so that no block of zeros is the block's extreme, which rounds up
    return quantize(w, kernels::parse_weight_format("nf4-dq"));
  }();
  const Tensor absmax = Tensor::empty({64}, DType::f32);
  kernels::dequantize_scales(current_stream(Device::cpu), whole.view(), absmax.view<float>());
  EXPECT_LT(*std::min_element(absmax.span<float>().begin(), absmax.span<float>().end()), 0);
  Copy copy("nf4-dq");
  std::vector<WrittenTensor> written = quantized_tensors(whole, kQuery, DType::f32);
  for (const WrittenTensor& tensor : written) {
    if (tensor.entry.name.find("quant_state") != std::string::npos) {
      const auto bytes = tensor.entry.data;
      copy.set_text(tensor.entry.name, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    } else {
      copy.at(tensor.entry.name) = tensor.entry;
    }
  }
  const auto loaded = copy.load();
  EXPECT_EQ(quantized_layers(*loaded.model), 7);
}

TEST(BadQuantizedFolder, DoubleQuantizationThatTheConfigDenies) {
  const auto change = [](Copy& copy, const char* from, const char* to) {
    const std::string key = "\"bnb_4bit_use_double_quant\": ";
    copy.replace_in_config(key + from, key + to);
  };
  Copy nested("nf4-dq");
  change(nested, "true", "false");
  nested.expect_error({kQuery, "in nf4-dq", "bnb_4bit_use_double_quant false"});
  Copy plain("fp4");
  change(plain, "false", "true");
  plain.expect_error({kQuery, "in fp4", "bnb_4bit_use_double_quant true"});
  Copy silent("nf4-dq");
  change(silent, "true", "null");
  EXPECT_EQ(quantized_layers(*silent.load().model), 7);
}

TEST(BadQuantizedFolder, QuantizingToAnotherFormat) {
  const Copy copy("int8");
  QuantizeOnLoad how;
  how.format = kernels::parse_weight_format("nf4");
  const std::string message = message_of([&] { copy.load(how); });
  for (const char* part : {"quantizing to nf4", kQuery.c_str(), "stored as int8 already"})
    expect_contains(message, part);
  how.format = kernels::parse_weight_format("int8");  // the output layer, which is dense there
  how.head = true;
  EXPECT_EQ(quantized_layers(*copy.load(how).model), 8);
}

// As QuantizedWeight::empty says it, and as reading gives it.
TEST(QuantizedFolder, IsTheSameOnMeta) {
  for (const char* name : {"nf4-dq", "fp4", "llm-int8", "int4-g32-zp", "int4-channel", "int8", "fp8-block"}) {
    const ModelWeights weights(data_path("models/quantized/" + std::string(name)));
    QuantizedWeight read = weights.read_quantized(kQuery, 64, 64), meta = weights.quantized_on_meta(kQuery);
    const auto some = read.parts(), none = meta.parts();
    ASSERT_EQ(some.size(), none.size()) << name;
    for (std::size_t i = 0; i < some.size(); ++i) {
      EXPECT_EQ(some[i].suffix, none[i].suffix);
      EXPECT_EQ(some[i].value->shape(), none[i].value->shape()) << name << some[i].suffix;
      EXPECT_EQ(some[i].value->dtype(), none[i].value->dtype()) << name << some[i].suffix;
      EXPECT_EQ(none[i].value->device(), Device::meta);
    }
    EXPECT_EQ(read.row_blocks, meta.row_blocks) << name;
  }
}

TEST(BadQuantizedFolder, MethodsAndPackingsThatAreNotRead) {
  const auto with = [](const std::string& json) {
    return message_of(
        [&] { QuantizationConfig::parse("{\"quantization_config\": " + json + "}", "c.json"); });
  };
  for (const char* method : {"gptq", "awq", "hqq"}) {
    const std::string message = with(fmt::format(R"({{"quant_method": "{}"}})", method));
    for (const char* part : {"c.json", method, "not yet"}) expect_contains(message, part);
  }
  expect_contains(with(R"({"quant_method": "other"})"), "other");
  expect_contains(with(R"({"quant_method": "compressed-tensors", "format": "marlin-24"})"), "marlin-24");
  expect_contains(with(R"({"quant_method": "fp8", "weight_block_size": [64, 128]})"), "[64,128]");
  expect_contains(with(R"({"quant_method": "compressed-tensors", "config_groups":
                       {"g": {"weights": {"num_bits": 3}}}})"),
                  "num_bits is 3");
  expect_contains(with(R"({"quant_method": "compressed-tensors", "config_groups":
                       {"g": {"weights": {"num_bits": 4, "actorder": "group"}}}})"),
                  "actorder");
  Copy gptq("int8");
  gptq.at(kQuery + ".weight").name = kQuery + ".qweight";
  gptq.expect_error({kQuery + ".qweight", "GPTQ", "not read yet"});
}

TEST(BadQuantizedFolder, AConfigOfAnotherMethod) {
  Copy type("fp4");
  type.replace_in_config("\"bnb_4bit_quant_type\": \"fp4\"", "\"bnb_4bit_quant_type\": \"nf4\"");
  type.expect_error({"fp4", "bnb_4bit_quant_type nf4"});
  Copy method("fp4");
  method.replace_in_config("\"quant_method\": \"bitsandbytes\"", "\"quant_method\": \"compressed-tensors\"");
  method.expect_error({kQuery, "bitsandbytes", "compressed-tensors"});
}

}  // namespace
}  // namespace ridge::models
