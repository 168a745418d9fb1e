#include "launch/commands/bench_gemm.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <memory>

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/quantized_weight.h"
#include "kernels/decode_product.h"
#include "kernels/fill.h"
#include "kernels/matmul.h"
#include "kernels/quant_matmul.h"
#include "kernels/quantize.h"
#include "launch/ceilings.h"
#include "launch/context.h"
#include "launch/workloads.h"

namespace ridge {
namespace {

constexpr std::int64_t kColdBytes = std::int64_t{256} << 20;  // of all copies of a weight: beyond every cache
constexpr std::size_t kMostCopies = 4096;
constexpr std::int64_t kMostRows = 65536, kMostSide = 1 << 20;

struct Options {
  std::vector<std::string> formats, rows, shapes;
  std::int64_t runs = 50;
};

struct Shape2 {
  std::int64_t n = 0, k = 0;
};

struct Case {
  std::string format;
  std::int64_t rows = 0;
  Shape2 shape;
  bool codes = true;  // multiplied as they are, not dequantized first
  double seconds = 0, best = 0, bytes = 0;
  double over_bf16 = 0;  // how much faster
};

std::vector<std::string> split(const std::vector<std::string>& lists, char separator = ',') {
  std::vector<std::string> parts;
  for (const std::string& list : lists) {
    for (std::size_t begin = 0; begin <= list.size();) {
      const std::size_t end = std::min(list.find(separator, begin), list.size());
      parts.push_back(list.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  return parts;
}

std::int64_t number(const std::string& text, std::int64_t most, const char* option) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc() && end == text.data() + text.size() && value >= 1 && value <= most,
          "{}: '{}' is no whole number from 1 to {}", option, text, most);
  return value;
}

std::vector<std::int64_t> rows_of(const Options& options, Device device) {
  if (options.rows.empty())
    return device == Device::cuda ? std::vector<std::int64_t>{1, 2, 4, 8, 16, 32, 64}
                                  : std::vector<std::int64_t>{1, 2, 4, 8};
  std::vector<std::int64_t> rows;
  for (const std::string& text : split(options.rows)) rows.push_back(number(text, kMostRows, "--rows"));
  return rows;
}

// By default those of models of 110M and 1B parameters on a CPU, of 8B on a GPU.
std::vector<Shape2> shapes_of(const Options& options, Device device) {
  if (options.shapes.empty()) {
    if (device == Device::cuda) return {{4096, 4096}, {14336, 4096}, {4096, 14336}};
    return {{2304, 768}, {768, 3072}, {2048, 2048}, {8192, 2048}, {2048, 8192}};
  }
  std::vector<Shape2> shapes;
  for (const std::string& text : split(options.shapes)) {
    const std::vector<std::string> sides = split({text}, 'x');
    require(sides.size() == 2, "--shapes: '{}' is not NxK, such as 4096x14336", text);
    shapes.push_back({number(sides[0], kMostSide, "--shapes"), number(sides[1], kMostSide, "--shapes")});
  }
  return shapes;
}

std::vector<kernels::WeightFormat> formats_of(const Options& options) {
  std::vector<std::string> names = split(options.formats);
  if (names.empty()) {
    names = {"int8",      "fp8",      "fp8-block", "nf4",          "nf4-dq",      "fp4",
             "int4-g128", "int4-g64", "int4-g32",  "int4-g128-zp", "int4-g64-zp", "int4-g32-zp"};
  }
  std::erase(names, "bf16");  // is measured anyway
  std::vector<kernels::WeightFormat> formats;
  for (const std::string& name : names) formats.push_back(kernels::parse_weight_format(name));
  return formats;
}

class GemmBench {
 public:
  GemmBench(Device device, std::int64_t runs) : device_(device), runs_(runs) {}

  // bf16, then every format.
  void shape(const Shape2& s, const std::vector<std::int64_t>& rows,
             const std::vector<kernels::WeightFormat>& formats) {
    const Tensor w = random({s.n, s.k}, 0.05);
    std::vector<double> base;
    {
      const std::vector<Tensor> copies =
          repeat(w, w.bytes(), [](const Tensor& t) { return t.contiguous_copy(); });
      for (const std::int64_t m : rows) {
        dense(copies, m, s);
        base.push_back(cases_.back().seconds);
      }
    }
    for (const kernels::WeightFormat& format : formats) {
      const QuantizedWeight codes = quantize(w, format);
      const std::vector<QuantizedWeight> copies = repeat(codes, codes.bytes(), copy_of);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        quantized(copies, rows[i], s);
        cases_.back().over_bf16 = base[i] / cases_.back().seconds;
      }
    }
  }

  const std::vector<Case>& cases() const { return cases_; }

 private:
  using Bf16 = View<const bf16>;

  Stream& stream() const { return current_stream(device_); }

  Tensor random(const Shape& shape, double spread) {
    const Tensor t = Tensor::empty(shape, DType::bf16, device_);
    kernels::normal<bf16>(stream(), t.view<bf16>(), 0, spread, {key_++, 0});
    return t;
  }

  static QuantizedWeight copy_of(const QuantizedWeight& w) {
    QuantizedWeight copy = w;
    for (const QuantizedWeight::Part& part : copy.parts()) *part.value = part.value->contiguous_copy();
    return copy;
  }

  template <class W, class Copy>
  static std::vector<W> repeat(const W& w, std::int64_t bytes, Copy copy) {
    std::vector<W> copies;
    for (std::int64_t all = 0; all < kColdBytes && copies.size() < kMostCopies; all += bytes)
      copies.push_back(copy(w));
    return copies;
  }

  void dense(const std::vector<Tensor>& copies, std::int64_t m, const Shape2& s) {
    const Tensor x = random({m, s.k}, 1), y = random({m, s.n}, 1);
    const Work work =
        kernels::matmul_work<bf16, bf16>(x.view<bf16>(), copies[0].transposed(0, 1).view<bf16>(), false);
    time({"bf16", m, s, true, 0, 0, work.bytes, 1}, copies.size(), [&](std::size_t i) {
      kernels::matmul<bf16>(stream(), x.view<bf16>(), copies[i].transposed(0, 1).view<bf16>(),
                            y.view<bf16>());
    });
  }

  void quantized(const std::vector<QuantizedWeight>& copies, std::int64_t m, const Shape2& s) {
    const Tensor x = random({m, s.k}, 1), y = random({m, s.n}, 1);
    const kernels::QuantView first = copies[0].view();
    kernels::ProductSteps steps;  // of a token: kernels begin while the one ahead runs
    steps.early = true;
    const bool step = kernels::has_decode_product(first, m, steps, device_);
    const bool codes = step || kernels::has_quant_matmul(first, m, device_);
    const Tensor dense = codes ? Tensor() : random({s.n, s.k}, 1);
    const double bytes = kernels::quant_matmul_work<bf16>(x.view<bf16>(), first).bytes;
    time({name_of(first.format), m, s, codes, 0, 0, bytes, 0}, copies.size(), [&](std::size_t i) {
      if (step)
        return kernels::decode_product(stream(), x.view<bf16>(), copies[i].view(), steps, y.view<bf16>());
      if (codes)
        return kernels::quant_matmul<bf16>(stream(), x.view<bf16>(), copies[i].view(), y.view<bf16>(),
                                           steps.early);
      kernels::dequantize<bf16>(stream(), copies[i].view(), dense.view<bf16>());
      kernels::matmul<bf16>(stream(), x.view<bf16>(), dense.transposed(0, 1).view<bf16>(), y.view<bf16>());
    });
  }

  // On a GPU a run is a batch of launches between two events, on the CPU one launch. Each takes the next
  // copy.
  template <class F>
  void time(Case result, std::size_t copies, F&& product) {
    const std::int64_t batch = device_ == Device::cuda ? 10 : 1;
    std::vector<double> seconds;
    std::size_t next = 0;
    const auto launches = [&] {
      for (std::int64_t i = 0; i < batch; ++i) product(next++ % copies);
    };
    for (std::int64_t run = -3; run < runs_; ++run) {
      const double all = elapsed(launches);
      if (run >= 0) seconds.push_back(all / static_cast<double>(batch));
    }
    result.seconds = median(seconds);
    result.best = *std::min_element(seconds.begin(), seconds.end());
    cases_.push_back(std::move(result));
  }

  template <class F>
  double elapsed(F&& launches) const {
    if (device_ == Device::cuda) {
      cuda::Event begin(true), end(true);
      begin.record(stream());
      launches();
      end.record(stream());
      end.synchronize();
      return end.nanoseconds_since(begin) * 1e-9;
    }
    const auto begin = std::chrono::steady_clock::now();
    launches();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  Device device_;
  std::int64_t runs_;
  std::uint64_t key_ = 1;
  std::vector<Case> cases_;
};

std::string text_of(const std::vector<Case>& cases, const Ceilings& roof, std::int64_t runs) {
  std::string text = fmt::format("{:<13} {:>5} {:>13} {:>10} {:>10} {:>8} {:>8} {:>9}\n", "weight", "rows",
                                 "N x K", "us", "best us", "GB/s", "of read", "over bf16");
  for (const Case& c : cases) {
    const double rate = c.bytes / c.seconds;
    text += fmt::format("{:<13} {:>5} {:>13} {:>10.1f} {:>10.1f} {:>8.1f} {:>7.1f}% {:>8.2f}x{}\n", c.format,
                        c.rows, fmt::format("{} x {}", c.shape.n, c.shape.k), c.seconds * 1e6, c.best * 1e6,
                        rate / 1e9, 100 * rate / roof.read_bytes_per_s, c.over_bf16,
                        c.codes ? "" : "  dequantized first");
  }
  return text + fmt::format(
                    "medians of {}, weights from memory; limit: {:.1f} GB/s read, the better of before and "
                    "after\n",
                    runs, roof.read_bytes_per_s / 1e9);
}

void bench(const Options& options, Context& context) {
  require(options.runs >= 1 && options.runs <= 1'000'000, "--runs is {}: give 1 to a million", options.runs);
  const Device device = context.use_device();
  const auto rows = rows_of(options, device);
  const auto shapes = shapes_of(options, device);
  const auto formats = formats_of(options);
  for (const Shape2& s : shapes) {
    for (const kernels::WeightFormat& f : formats)
      check_divides(f, s.n, s.k, fmt::format("--shapes {}x{}", s.n, s.k));
  }
  Ceilings roof = measure_ceilings(device, DType::bf16);
  GemmBench gemm(device, options.runs);
  for (const Shape2& s : shapes) gemm.shape(s, rows, formats);
  roof.read_bytes_per_s =
      std::max(roof.read_bytes_per_s, measure_ceilings(device, DType::bf16).read_bytes_per_s);
  std::vector<JsonObject> cases;
  for (const Case& c : gemm.cases()) {
    const double rate = c.bytes / c.seconds;
    cases.push_back({{"format", c.format},
                     {"rows", c.rows},
                     {"n", c.shape.n},
                     {"k", c.shape.k},
                     {"seconds", c.seconds},
                     {"best_seconds", c.best},
                     {"bytes", c.bytes},
                     {"bytes_per_s", rate},
                     {"limit_share", rate / roof.read_bytes_per_s},
                     {"over_bf16", c.over_bf16},
                     {"dequantized_first", !c.codes}});
  }
  JsonObject json{{"read_bytes_per_s", roof.read_bytes_per_s}};
  json.add("cases", cases);
  context.emit(json, text_of(gemm.cases(), roof, options.runs));
}

}  // namespace

void add_bench_gemm(const Command& bench_command, Context& context) {
  const Command command =
      bench_command.add("gemm", "Few rows times a weight in every format, read from memory");
  auto options = std::make_shared<Options>();
  command.option("--formats", options->formats,
                 "Weight formats, with commas between them; bf16 is always there");
  command.option("--rows", options->rows, "Rows of x, with commas between them");
  command.option("--shapes", options->shapes, "NxK of the weights, with commas between them");
  command.option("--runs", options->runs, "Runs of each; on a GPU of ten launches");
  command.run([options, &context] { bench(*options, context); });
}

}  // namespace ridge
