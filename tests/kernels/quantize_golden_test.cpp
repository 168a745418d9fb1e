// What bitsandbytes 0.50.2 and compressed-tensors 0.20.0 (PyTorch 2.15.0, CPU) make of the same numbers.
#include "kernels/formats/codes.h"
#include "kernels/quantize_nested.h"
#include "tests/kernels/quantized_array.h"

namespace ridge::kernels::testing {
namespace {

/// Exact in f32: a generator's high bits, louder every 64 elements.
Array<float> golden_input(std::int64_t rows, std::int64_t cols, std::uint32_t seed) {
  Array<float> w({rows, cols});
  std::int64_t i = 0;
  for (float& x : w.data()) {
    seed = (seed * 1103515245u + 12345u) & 0x7FFFFFFFu;
    x = (static_cast<float>(seed >> 16) - 16384.0f) / 8192.0f * static_cast<float>(1 + i++ / 64 % 5);
  }
  return w;
}

std::string hex(const Memory<std::uint8_t>& bytes) {
  std::string text;
  for (const std::uint8_t byte : bytes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

std::vector<float> floats(const Memory<float>& values) { return {values.begin(), values.end()}; }

TEST(QuantizeGolden, Nf4) {
  const Array<float> w = golden_input(3, 50, 1);
  QuantizedArray q("nf4", 3, 50);
  quantize<float>(test_stream(), w.in(), q.target());
  wait_for_device();
  EXPECT_EQ(
      hex(q.codes),
      "7138f1c2710524f8dbdde1a34f85adfeebd9541e56f12fc5ddf03d290f306e91927265e544018c15d24233e0b5bcf2efd5bd"
      "131ed213d29c1f25deef55162fba26d0612faf6dc4781941dc");
  EXPECT_EQ(floats(q.scales), (std::vector<float>{0x1.ef08p+0f, 0x1.f59p+1f, 0x1.76e8p+2f}));
  Array<float> back({3, 50});
  dequantize<float>(test_stream(), q.view(), back.view());
  const float want[] = {0.0f,         -0x1.58a32p+0f, -0x1.86fe34p-1f, 0x1.3b286ap-3f,
                        0x1.ef08p+0f, -0x1.58a32p+0f, 0x1.b4548cp-1f,  -0x1.03ed76p+0f};
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(back.data()[i], want[i]) << i;
  EXPECT_EQ(back.data()[148], 0x1.a5db76p+1f);
  EXPECT_EQ(back.data()[149], 0x1.4a7322p+1f);
}

TEST(QuantizeGolden, Nf4OfBf16) {
  const Array<float> w = golden_input(3, 50, 1);
  Array<bf16> narrow({3, 50});
  const std::vector<double> values = w.values();
  for (std::size_t i = 0; i < values.size(); ++i) narrow.data()[i] = bf16(static_cast<float>(values[i]));
  QuantizedArray q("nf4", 3, 50);
  quantize<bf16>(test_stream(), narrow.in(), q.target());
  wait_for_device();
  EXPECT_EQ(
      hex(q.codes),
      "7138f1c2710534f8dbdde1a34f85adfeebd9541e56f12fc5ddf03d290f306e91927265e544018c15d24233e0b5bcf2efd5bd"
      "131ed213d29c1f25deef55162fba26d0612faf6dd4781941dc");
  EXPECT_EQ(floats(q.scales), (std::vector<float>{0x1.fp+0f, 0x1.f6p+1f, 0x1.76p+2f}));
  Array<bf16> back({3, 50});
  dequantize<bf16>(test_stream(), q.view(), back.view());
  const float want[] = {0.0f, -0x1.5ap+0f, -0x1.88p-1f, 0x1.3cp-3f, 0x1.fp+0f, -0x1.5ap+0f, 0x1.b6p-1f};
  for (std::size_t i = 0; i < 7; ++i) EXPECT_EQ(static_cast<float>(back.data()[i]), want[i]) << i;
}

TEST(QuantizeGolden, Fp4) {
  const Array<float> w = golden_input(3, 50, 1);
  QuantizedArray q("fp4", 3, 50);
  quantize<float>(test_stream(), w.in(), q.target());
  Array<float> back({3, 50});
  dequantize<float>(test_stream(), q.view(), back.view());
  wait_for_device();
  EXPECT_EQ(
      hex(q.codes),
      "1ac13a5d9abfdf3154552a7cc31e72322456fca2e93aa35e553bc5d6b3cbe36a6d9d9e2effba14ae5dcdcc2b4e453d235e42"
      "ada25aad2d65a3de5223feaed347de2b9ad373925f91a6ca55");
  const float want[] = {0x1.4a0556p-7f, -0x1.4a0556p+0f, -0x1.4a0556p-1f, 0x1.4a0556p-7f, 0x1.ef08p+0f};
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(back.data()[i], want[i]) << i;
}

// The mean is summed in another order there: its last bit, and that of what depends on it, may differ.
TEST(QuantizeGolden, DoubleQuantization) {
  const Array<float> w = golden_input(70, 64, 2);
  QuantizedArray q("nf4-dq", 70, 64);
  quantize<float>(test_stream(), w.in(), q.target());
  Array<float> back({70, 64});
  dequantize<float>(test_stream(), q.view(), back.view());
  wait_for_device();
  EXPECT_EQ(
      hex(q.scale_codes),
      "02235adafc022556dbfe02259fd8f601259ed9f80225a2dbff0225a2dbfe012391dafc0224a0dafe0223a2daf60225a2d7fd"
      "02259cdcfa0225a2dbf902249fdaff02225ddafe");
  EXPECT_NEAR(q.nested_scales[0], 0x1.048fb6p+2f, 1e-6);
  EXPECT_NEAR(q.offset[0], 0x1.7a3a4ap+2f, 1e-6);
  const float want[] = {-0x1.fb4e84p+0f, 0x1.bf266cp-1f, -0x1.90b046p-1f, -0x1.76f27cp-2f, 0x1.1d6b5cp+0f};
  for (std::size_t i = 0; i < 5; ++i) EXPECT_NEAR(back.data()[i], want[i], 2e-6) << i;
  EXPECT_NEAR(back.data().back(), -0x1.cff5aep-1f, 2e-6);
}

TEST(QuantizeGolden, Int4Groups) {
  const Array<float> w = golden_input(2, 64, 4);
  QuantizedArray q("int4-g32", 2, 64);
  quantize<float>(test_stream(), w.in(), q.target());
  wait_for_device();
  EXPECT_EQ(
      hex(q.codes),
      "c1253826be2499c0328bd726b78ca42be6a54164f801bbd9f8e23c4e3dc376e169d84a99b15dc628c0732a3628fc3a6776c2"
      "c21872dea812f31316fe95f55c29");
  EXPECT_EQ(floats(q.scales),
            (std::vector<float>{0x1.0f599ap-2f, 0x1.0fe666p-2f, 0x1.ef2aaap-2f, 0x1.07d556p-1f}));
}

TEST(QuantizeGolden, Int4GroupsWithZeroPoints) {
  const Array<float> w = golden_input(2, 64, 4);
  QuantizedArray q("int4-g32-zp", 2, 64);
  quantize<float>(test_stream(), w.in(), q.target());
  wait_for_device();
  EXPECT_EQ(
      hex(q.codes),
      "d1263826df24abe0429cf827c89db43ce5b54064f800cbd9f8f23c4f2ed376e169e84a99b05dc618c0731b2618fc3a6776c2"
      "c21872dea802f31316fe95f55c29");
  EXPECT_EQ(hex(q.zeros), "09080808");
  EXPECT_EQ(floats(q.scales),
            (std::vector<float>{0x1.d8fbbcp-3f, 0x1.ffc888p-3f, 0x1.d23778p-2f, 0x1.055556p-1f}));
}

TEST(QuantizeGolden, Int8Rows) {
  const Array<float> w = golden_input(2, 40, 5);
  QuantizedArray q("int8", 2, 40);
  quantize<float>(test_stream(), w.in(), q.target());
  wait_for_device();
  EXPECT_EQ(
      hex(q.codes),
      "12c2d37acf4b0e397f196d263226d70561877c3f1d43cf3652c552ab92bc18b8aa7d502f63b0c50ddacbc0e5003ed70f1b40"
      "d407e1e7d2f92505cd1a41e40228c08d062f7fb69f21cc9e898ed9e526dd");
  EXPECT_EQ(floats(q.scales), (std::vector<float>{0x1.fbdbdcp-7f, 0x1.f2a2a2p-6f}));
}

TEST(QuantizeGolden, Fp8Rows) {
  const Array<float> w = golden_input(2, 40, 5);
  QuantizedArray q("fp8", 2, 40);
  quantize<float>(test_stream(), w.in(), q.target());
  wait_for_device();
  EXPECT_EQ(
      hex(q.codes),
      "68f6f27df37864757e6b7c707370f1587bfd7e766d77f37479f579f9fcf76bf8f97e79727bf9f564f0f4f6ec3a76f1656c76"
      "f25ceeebf2dc7059f36b76ec5071f6fd5b727ef8fb6ff4fbfdfdf1ec70ef");
  EXPECT_EQ(floats(q.scales), (std::vector<float>{0x1.21124ap-8f, 0x1.1bd24ap-7f}));
}

TEST(QuantizeGolden, DynamicMap) {
  const std::array<float, 256>& map = dynamic_map();
  EXPECT_FLOAT_EQ(map[0], -0.99296875f);
  EXPECT_FLOAT_EQ(map[1], -0.97890625f);
  EXPECT_FLOAT_EQ(map[126], -5.5e-7f);
  EXPECT_EQ(map[127], 0.0f);
  EXPECT_FLOAT_EQ(map[128], 5.5e-7f);
  EXPECT_EQ(map[255], 1.0f);
  std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a of bitsandbytes' 1024 bytes
  for (const float x : map) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((bits >> shift) & 0xFFu)) * 0x100000001b3u;
  }
  EXPECT_EQ(hash, 0xd677f22a96665bc4u);
}

TEST(QuantizeGolden, PackingOrder) {
  // Values that have codes 0 1 2 3 of nf4, with the 1 that makes absmax 1; codes -8 .. -1 of int4 are a word.
  Array<float> w({1, 64});
  for (std::size_t i = 0; i < 4; ++i) w.data()[i] = nf4_values()[i];
  QuantizedArray q("nf4", 1, 64);
  quantize<float>(test_stream(), w.in(), q.target());
  wait_for_device();
  EXPECT_EQ(hex(q.codes).substr(0, 6), "012377");
  Array<float> v({1, 32});
  for (std::size_t i = 0; i < 8; ++i) v.data()[i] = static_cast<float>(i) - 7.5f;
  QuantizedArray p("int4-g32", 1, 32);  // scale 1: ties go to even codes
  quantize<float>(test_stream(), v.in(), p.target());
  wait_for_device();
  EXPECT_EQ(p.scales[0], 1.0f);
  EXPECT_EQ(hex(p.codes).substr(0, 8), "20426486");
}

}  // namespace
}  // namespace ridge::kernels::testing
