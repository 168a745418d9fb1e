#include "core/io/safetensors_types.h"

#include <array>

#include "core/base/error.h"

namespace ridge {
namespace {

constexpr std::array<SafetensorsType, 22> kTypes{{{"BOOL", 8, 0, {}},
                                                  {"F4", 4, 1, {}},
                                                  {"F6_E2M3", 6, 2, {}},
                                                  {"F6_E3M2", 6, 3, {}},
                                                  {"U8", 8, 4, DType::u8},
                                                  {"I8", 8, 5, DType::i8},
                                                  {"F8_E5M2", 8, 6, {}},
                                                  {"F8_E4M3", 8, 7, {}},
                                                  {"F8_E8M0", 8, 8, {}},
                                                  {"F8_E4M3FNUZ", 8, 9, {}},
                                                  {"F8_E5M2FNUZ", 8, 10, {}},
                                                  {"I16", 16, 11, {}},
                                                  {"U16", 16, 12, {}},
                                                  {"F16", 16, 13, DType::f16},
                                                  {"BF16", 16, 14, DType::bf16},
                                                  {"I32", 32, 15, DType::i32},
                                                  {"U32", 32, 16, {}},
                                                  {"F32", 32, 17, DType::f32},
                                                  {"C64", 64, 18, {}},
                                                  {"F64", 64, 19, DType::f64},
                                                  {"I64", 64, 20, DType::i64},
                                                  {"U64", 64, 21, {}}}};

}  // namespace

const SafetensorsType* find_safetensors_type(std::string_view name) {
  for (const SafetensorsType& type : kTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

const SafetensorsType& safetensors_type(DType dtype) {
  for (const SafetensorsType& type : kTypes) {
    if (type.dtype == dtype) return type;
  }
  fail("dtype {} has no safetensors name", name_of(dtype));
}

std::optional<std::uint64_t> safetensors_bytes(const SafetensorsType& type,
                                               const std::vector<std::int64_t>& shape) {
  std::uint64_t bits = 1;
  for (const std::int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(bits, static_cast<std::uint64_t>(dim), &bits)) return {};
  }
  if (__builtin_mul_overflow(bits, static_cast<std::uint64_t>(type.bits), &bits) || bits % 8 != 0) return {};
  return bits / 8;
}

}  // namespace ridge
