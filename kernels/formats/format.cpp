#include "kernels/formats/format.h"

#include <fmt/ranges.h>

#include <array>
#include <vector>

#include "core/base/error.h"

namespace ridge::kernels {
namespace {

struct Named {
  const char* name;
  WeightFormat format;
};

constexpr std::array kFormats = {
    Named{"int8", {Codes::int8}},
    Named{"fp8", {Codes::fp8}},
    Named{"fp8-block", {Codes::fp8, kTile, true}},
    Named{"nf4", {Codes::nf4, kFlatBlock}},
    Named{"nf4-dq", {Codes::nf4, kFlatBlock, false, true}},
    Named{"fp4", {Codes::fp4, kFlatBlock}},
    Named{"fp4-dq", {Codes::fp4, kFlatBlock, false, true}},
    Named{"int4-g32", {Codes::int4, 32}},
    Named{"int4-g64", {Codes::int4, 64}},
    Named{"int4-g128", {Codes::int4, 128}},
    Named{"int4-g32-zp", {Codes::int4, 32, false, false, true}},
    Named{"int4-g64-zp", {Codes::int4, 64, false, false, true}},
    Named{"int4-g128-zp", {Codes::int4, 128, false, false, true}},
};

std::int64_t parts(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

}  // namespace

WeightFormat parse_weight_format(std::string_view name) {
  if (name == "int4") name = "int4-g128";
  std::vector<std::string_view> names;
  for (const Named& named : kFormats) {
    if (named.name == name) return named.format;
    names.emplace_back(named.name);
  }
  fail_user("the weight format '{}' is unknown: use {}", name, fmt::join(names, ", "));
}

std::string name_of(const WeightFormat& format) {
  for (const Named& named : kFormats) {
    if (named.format == format) return named.name;
  }
  if (format.codes == Codes::int4)
    return fmt::format("int4-g{}{}", format.group, format.zero_points ? "-zp" : "");
  fail("a weight format without a name");
}

void check_divides(const WeightFormat& format, std::int64_t rows, std::int64_t cols, std::string_view what) {
  if (format.codes != Codes::int4) return;
  require(cols % format.group == 0,
          "{}: {} needs groups of {} columns, but the weight is [{}, {}]: choose a smaller group, or nf4",
          what, name_of(format), format.group, rows, cols);
}

std::int64_t code_bytes(const WeightFormat& format, std::int64_t rows, std::int64_t cols) {
  return parts(rows * cols * format.bits(), 8);
}

std::int64_t scale_count(const WeightFormat& format, std::int64_t rows, std::int64_t cols) {
  if (format.flat()) return parts(rows * cols, format.group);
  if (format.tiles) return parts(rows, format.group) * parts(cols, format.group);
  return rows * (format.group == 0 ? 1 : cols / format.group);
}

std::int64_t stored_bytes(const WeightFormat& format, std::int64_t rows, std::int64_t cols, DType scale) {
  const std::int64_t scales = scale_count(format, rows, cols);
  const auto width = static_cast<std::int64_t>(size_of(scale));
  std::int64_t bytes = code_bytes(format, rows, cols);
  bytes += format.double_quant ? scales + 4 * parts(scales, kNestedBlock) + 4 * 257 : scales * width;
  return bytes + (format.zero_points ? scales : 0);
}

double bytes_of(const QuantView& w) {
  return static_cast<double>(stored_bytes(w.format, w.rows, w.cols, w.scale_dtype));
}

}  // namespace ridge::kernels
