#include "core/quantized_weight.h"

#include "core/base/stream.h"
#include "kernels/quantize.h"

namespace ridge {
namespace {

using kernels::WeightFormat;

bool rows_are_bytes(const WeightFormat& f, std::int64_t cols) { return cols * f.bits() % 8 == 0; }

Shape scale_shape(const WeightFormat& f, std::int64_t rows, std::int64_t cols) {
  const std::int64_t count = kernels::scale_count(f, rows, cols);
  if (f.tiles) return {(rows + f.group - 1) / f.group, (cols + f.group - 1) / f.group};
  if (f.flat() && cols % f.group != 0) return {count};
  return {rows, count / rows};
}

template <bool kConst, class Weight>
kernels::BasicQuantView<kConst> view_of(Weight& w) {
  const auto bytes = [](const Tensor& t) {
    return t.defined() ? static_cast<std::uint8_t*>(t.data()) : nullptr;
  };
  const auto floats = [](const Tensor& t) { return t.defined() ? static_cast<float*>(t.data()) : nullptr; };
  kernels::BasicQuantView<kConst> v;
  v.format = w.format;
  v.rows = w.shape[0];
  v.cols = w.shape[1];
  v.codes = bytes(w.codes);
  v.scales = w.scales.defined() ? w.scales.data() : nullptr;
  v.scale_dtype = w.scales.defined() ? w.scales.dtype() : DType::f32;
  v.zeros = bytes(w.zeros);
  v.scale_codes = bytes(w.scale_codes);
  v.nested_scales = floats(w.nested_scales);
  v.nested_map = floats(w.nested_map);
  v.nested_offset = floats(w.nested_offset);
  v.first_block = w.first_block;
  v.row_blocks = w.row_blocks;
  return v;
}

// Where column or row `at` of the matrix is in a part of `extent` of the matrix's `whole`.
std::int64_t place_in(std::int64_t at, std::int64_t extent, std::int64_t whole, const WeightFormat& f) {
  if (at == whole) return extent;
  // Of tiles, whose last may be smaller, `extent / whole` is no width.
  const std::int64_t width = f.tiles && extent < whole ? f.group : 0;
  const bool fits = width > 0 ? at % width == 0 : at * extent % whole == 0;
  require(fits, "{}: a weight cannot be cut at {} of {}: that is within a group", name_of(f), at, whole);
  return width > 0 ? at / width : at * extent / whole;
}

}  // namespace

QuantizedWeight QuantizedWeight::empty(const WeightFormat& format, std::int64_t rows, std::int64_t cols,
                                       DType scale_dtype, Device device) {
  kernels::check_divides(format, rows, cols, "a weight");
  const PurposeScope purpose(Purpose::weights);
  QuantizedWeight w;
  w.format = format;
  w.shape = {rows, cols};
  const std::int64_t bytes = kernels::code_bytes(format, rows, cols);
  w.codes = Tensor::empty(rows_are_bytes(format, cols) ? Shape{rows, bytes / rows} : Shape{bytes}, DType::u8,
                          device);
  const Shape scales = scale_shape(format, rows, cols);
  w.row_blocks = scales.ndim() == 2 ? scales[1] : 0;
  if (format.zero_points) w.zeros = Tensor::empty(scales, DType::u8, device);
  if (!format.double_quant) {
    const bool narrow = format.codes == kernels::Codes::int4 && scale_dtype == DType::bf16;
    w.scales = Tensor::empty(scales, narrow ? DType::bf16 : DType::f32, device);
    return w;
  }
  const std::int64_t blocks = numel(scales);
  w.scale_codes = Tensor::empty(scales, DType::u8, device);
  w.nested_scales =
      Tensor::empty({(blocks + kernels::kNestedBlock - 1) / kernels::kNestedBlock}, DType::f32, device);
  w.nested_map = Tensor::empty({256}, DType::f32, device);
  w.nested_offset = Tensor::empty({1}, DType::f32, device);
  return w;
}

std::vector<QuantizedWeight::Part> QuantizedWeight::parts() {
  std::vector<Part> all{{"", &codes, true},
                        {".absmax", &scales, true},
                        {".zero_point", &zeros, true},
                        {".absmax_codes", &scale_codes, true},
                        {".nested_absmax", &nested_scales, false},
                        {".nested_quant_map", &nested_map, false},
                        {".nested_offset", &nested_offset, false}};
  std::erase_if(all, [](const Part& part) { return !part.value->defined(); });
  return all;
}

bool QuantizedWeight::shares(const Part& part, int dim) const {
  const bool any_columns = format.group == 0 || format.tiles;
  return !part.cut || (any_columns && part.value->dim(dim) == 1 && shape[dim] > 1);
}

kernels::QuantView QuantizedWeight::view() const { return view_of<true>(*this); }

std::int64_t QuantizedWeight::bytes() const {
  std::int64_t sum = 0;
  for (const Tensor* t : {&codes, &scales, &zeros, &scale_codes, &nested_scales, &nested_map, &nested_offset})
    sum += t->defined() ? t->bytes() : 0;
  return sum;
}

QuantizedWeight QuantizedWeight::on(Device device) const {
  QuantizedWeight moved = *this;
  const PurposeScope purpose(Purpose::weights);
  for (const Part& part : moved.parts()) *part.value = part.value->on(device);
  return moved;
}

QuantizedWeight QuantizedWeight::piece(int dim, std::int64_t begin, std::int64_t end) const {
  if (begin == 0 && end == shape[dim]) return *this;
  QuantizedWeight cut = *this;
  cut.shape[dim] = end - begin;
  require(codes.ndim() == 2 && (format.tiles || row_blocks > 0),
          "{}: a weight [{}, {}] cannot be cut: its blocks run across rows", name_of(format), shape[0],
          shape[1]);
  for (const Part& part : cut.parts()) {
    if (shares(part, dim)) continue;
    const std::int64_t extent = part.value->dim(dim);
    const std::int64_t first = place_in(begin, extent, shape[dim], format);
    const std::int64_t last = place_in(end, extent, shape[dim], format);
    if (part.value->device() == Device::meta) {
      Shape kept = part.value->shape();
      kept[dim] = last - first;
      *part.value = Tensor::empty(kept, part.value->dtype(), Device::meta);
    } else {
      *part.value = part.value->sliced(dim, first, last).contiguous_copy();
    }
  }
  if (format.flat()) cut.first_block += dim == 0 ? begin * row_blocks : begin / format.group;
  return cut;
}

QuantizedWeight quantize(const Tensor& w_NK, const WeightFormat& format) {
  check(w_NK.ndim() == 2, "a matrix");
  if (w_NK.dtype() != DType::f32 && w_NK.dtype() != DType::bf16) return quantize(w_NK.to(DType::f32), format);
  QuantizedWeight out = QuantizedWeight::empty(format, w_NK.dim(0), w_NK.dim(1), w_NK.dtype(), w_NK.device());
  const Tensor w = w_NK.as_row_dense();
  Stream& stream = current_stream(w.device());
  const kernels::QuantTarget target = view_of<false>(out);
  if (w.dtype() == DType::f32) {
    kernels::quantize<float>(stream, w.view<float>(), target);
  } else {
    kernels::quantize<bf16>(stream, w.view<bf16>(), target);
  }
  return out;
}

Tensor dequantize(const QuantizedWeight& w, DType dtype) {
  const Tensor out = Tensor::empty(w.shape, dtype, w.codes.device());
  visit_compute(dtype, [&]<class T>(std::type_identity<T>) {
    kernels::dequantize<T>(current_stream(out.device()), w.view(), out.view<T>());
  });
  return out;
}

}  // namespace ridge
