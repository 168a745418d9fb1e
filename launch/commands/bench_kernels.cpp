// ridge bench kernels: the kernels of a training step beside the limits of the machine.
#include <algorithm>
#include <chrono>

#include "core/base/cuda.h"
#include "core/base/profiler.h"
#include "core/tensor.h"
#include "kernels/activation.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/fill.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "kernels/rotary.h"
#include "launch/ceilings.h"
#include "launch/commands/bench_kernels.h"
#include "launch/context.h"
#include "launch/workloads.h"

namespace ridge {
namespace {

struct Row {
  std::string kernel;
  double seconds = 0, bytes = 0, flops = 0;
};

// Runs kernels on random data under the profiler, which knows their work.
class KernelBench {
 public:
  KernelBench(Device device, std::int64_t runs) : device_(device), runs_(runs) {}

  Tensor random(const Shape& shape, DType dtype, double spread = 1) {
    const Tensor t = Tensor::empty(shape, dtype, device_);
    visit_compute(dtype, [&]<class T>(std::type_identity<T>) {
      kernels::normal<T>(stream(), t.view<T>(), 0, spread, {key_++, 0});
    });
    return t;
  }

  // The median of `runs` batches of back-to-back launches after one to warm up; one launch tells the work.
  template <class F>
  void time(const std::string& name, F&& kernel) {
    Profiler profiler;
    {
      const ProfilerScope scope(stream(), &profiler);
      kernel();
    }
    const LaunchRecord one = profiler.records().front();
    std::vector<double> seconds;
    for (std::int64_t run = -1; run < runs_; ++run) {
      const double batch = batch_seconds(kernel);
      if (run >= 0) seconds.push_back(batch / kBatch);
    }
    rows_.push_back({name, median(seconds), one.bytes, one.flops});
  }

  Stream& stream() const { return current_stream(device_); }
  Device device() const { return device_; }
  const std::vector<Row>& rows() const { return rows_; }

 private:
  static constexpr int kBatch = 10;

  template <class F>
  double batch_seconds(F&& kernel) const {
    if (device_ == Device::cuda) {
      cuda::Event begin(true), end(true);
      begin.record(stream());
      for (int i = 0; i < kBatch; ++i) kernel();
      end.record(stream());
      end.synchronize();
      return end.nanoseconds_since(begin) * 1e-9;
    }
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kBatch; ++i) kernel();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  Device device_;
  std::int64_t runs_;
  std::uint64_t key_ = 1;
  std::vector<Row> rows_;
};

void bench_norms(KernelBench& bench, std::int64_t rows, std::int64_t channels) {
  const Tensor x = bench.random({rows, channels}, DType::bf16),
               d = bench.random({rows, channels}, DType::bf16);
  const Tensor w = bench.random({channels}, DType::bf16), y = bench.random({rows, channels}, DType::bf16);
  const Tensor sum = bench.random({rows, channels}, DType::bf16), inv = bench.random({rows}, DType::f32);
  const Tensor dw = bench.random({channels}, DType::f32);
  Stream& s = bench.stream();
  bench.time("rms_norm", [&] {
    kernels::rms_norm<bf16>(s, x.view<bf16>(), w.view<bf16>(), y.view<bf16>(), inv.view<float>(), 1e-5);
  });
  bench.time("add_rms_norm", [&] {
    kernels::add_rms_norm<bf16>(s, x.view<bf16>(), d.view<bf16>(), w.view<bf16>(), sum.view<bf16>(),
                                y.view<bf16>(), inv.view<float>(), 1e-5);
  });
  bench.time("rms_norm_backward", [&] {
    kernels::rms_norm_backward<bf16>(s, d.view<bf16>(), x.view<bf16>(), w.view<bf16>(), inv.view<float>(),
                                     y.view<bf16>(), dw.view<float>(), sum.view<bf16>());
  });
  bench.time("add", [&] { kernels::add<bf16>(s, x.view<bf16>(), d.view<bf16>(), y.view<bf16>()); });
}

void bench_attention(KernelBench& bench, std::int64_t rows, std::int64_t head_dim) {
  const std::int64_t H = 2048 / head_dim, G = H / 4, T = std::min<std::int64_t>(rows, 4096),
                     B = std::max<std::int64_t>(1, rows / T);
  const Tensor packed = bench.random({B, T, H + 2 * G, head_dim}, DType::bf16, 0.5);
  const Tensor cos = bench.random({T, head_dim / 2}, DType::f32),
               sin = bench.random({T, head_dim / 2}, DType::f32);
  const Tensor q = packed.sliced(2, 0, H), k = packed.sliced(2, H, H + G),
               v = packed.sliced(2, H + G, H + 2 * G);
  const Tensor qk = packed.sliced(2, 0, H + G), o = bench.random({B, T, H, head_dim}, DType::bf16);
  const Tensor lse = bench.random({B, H, T}, DType::f32), grads = bench.random(packed.shape(), DType::bf16);
  const Tensor dq = grads.sliced(2, 0, H), dk = grads.sliced(2, H, H + G),
               dv = grads.sliced(2, H + G, H + 2 * G);
  const Tensor dy = bench.random(o.shape(), DType::bf16);
  kernels::AttentionOptions options;
  options.scale = 0.125;
  Stream& s = bench.stream();
  const std::string name = fmt::format(", {} heads of {}, T {}", H, head_dim, T);
  bench.time("rotary, in place" + name, [&] {
    kernels::rotary<bf16>(s, qk.view<bf16>(), cos.view<float>(), sin.view<float>(), View<std::int32_t>(),
                          qk.view<bf16>());
  });
  const Tensor fresh = bench.random(packed.shape(), DType::bf16, 0.5);
  packed.copy_from(fresh);
  bench.time("attention" + name, [&] {
    kernels::attention<bf16>(s, q.view<bf16>(), k.view<bf16>(), v.view<bf16>(), o.view<bf16>(),
                             lse.view<float>(), options);
  });
  for (const bool deterministic : {true, false}) {
    options.deterministic = deterministic;
    bench.time((deterministic ? "attention_backward" : "attention_backward, any order") + name, [&] {
      kernels::attention_backward<bf16>(s, dy.view<bf16>(), q.view<bf16>(), k.view<bf16>(), v.view<bf16>(),
                                        o.view<bf16>(), lse.view<float>(), dq.view<bf16>(), dk.view<bf16>(),
                                        dv.view<bf16>(), options);
    });
  }
}

void bench_feed_forward(KernelBench& bench, std::int64_t rows, std::int64_t width) {
  const Tensor packed = bench.random({rows, 2 * width}, DType::bf16),
               y = bench.random({rows, width}, DType::bf16);
  const Tensor d = bench.random({rows, 2 * width}, DType::bf16);
  const Tensor gate = packed.sliced(1, 0, width), up = packed.sliced(1, width, 2 * width);
  const Tensor dgate = d.sliced(1, 0, width), dup = d.sliced(1, width, 2 * width);
  Stream& s = bench.stream();
  bench.time("swiglu", [&] { kernels::swiglu<bf16>(s, gate.view<bf16>(), up.view<bf16>(), y.view<bf16>()); });
  bench.time("swiglu_backward", [&] {
    kernels::swiglu_backward<bf16>(s, y.view<bf16>(), gate.view<bf16>(), up.view<bf16>(), dgate.view<bf16>(),
                                   dup.view<bf16>());
  });
}

void bench_loss(KernelBench& bench, std::int64_t rows, std::int64_t vocabulary) {
  const Tensor logits = bench.random({rows, vocabulary}, DType::bf16),
               loss = bench.random({rows}, DType::f32);
  const Tensor targets = Tensor::full({rows}, 7, DType::i32, bench.device());
  bench.time("cross_entropy_in_place", [&] {
    kernels::cross_entropy_in_place<bf16>(bench.stream(), logits.view<bf16>(), targets.view<std::int32_t>(),
                                          1e-3, loss.view<float>());
  });
}

template <class M>
void bench_adamw(KernelBench& bench, std::int64_t count, const char* name) {
  const Tensor value = bench.random({count}, DType::bf16),
               low = Tensor::zeros({2 * count}, DType::i8, bench.device());
  const Tensor grad = bench.random({count}, DType::f32), m = bench.random({count}, dtype_of<M>);
  const Tensor v = Tensor::full({count}, 1, dtype_of<M>, bench.device());
  const View<std::int16_t> halves(static_cast<std::int16_t*>(low.data()), {count});
  bench.time(name, [&] {
    kernels::adamw<M>(bench.stream(), value.view<bf16>(), halves, grad.view<float>(), m.view<M>(),
                      v.view<M>(), {});
  });
}

void bench_matmul(KernelBench& bench, std::int64_t m, std::int64_t n, std::int64_t k) {
  const Tensor x = bench.random({m, k}, DType::bf16), w = bench.random({n, k}, DType::bf16),
               dy = bench.random({m, n}, DType::bf16);
  const Tensor dw = bench.random({n, k}, DType::f32);
  Stream& s = bench.stream();
  const std::string shape = fmt::format(" {} x {} x {}", m, n, k);
  bench.time("matmul y = x w'" + shape, [&] {
    kernels::matmul<bf16>(s, x.view<bf16>(), w.transposed(0, 1).view<bf16>(), dy.view<bf16>());
  });
  bench.time("matmul dx = dy w" + shape,
             [&] { kernels::matmul<bf16>(s, dy.view<bf16>(), w.view<bf16>(), x.view<bf16>()); });
  bench.time("matmul dw += dy' x" + shape, [&] {
    kernels::matmul<bf16, float>(s, dy.transposed(0, 1).view<bf16>(), x.view<bf16>(), dw.view<float>(), 1, 1);
  });
}

}  // namespace

void bench_kernels(const KernelBenchOptions& options, Context& context) {
  require(options.rows >= 1 && options.runs >= 1, "--rows {} and --runs {} must be at least 1", options.rows,
          options.runs);
  const Device device = context.use_device();
  const Ceilings roof = measure_ceilings(device, DType::bf16);
  KernelBench bench(device, options.runs);
  const std::int64_t R = options.rows;
  bench_norms(bench, R, 4096);
  bench_attention(bench, R, 64);
  bench_attention(bench, R, 128);
  bench_feed_forward(bench, R, 8192);
  bench_loss(bench, std::max<std::int64_t>(1, R / 8), 128256);
  bench_adamw<float>(bench, R * 8192, "adamw, f32 moments");
  bench_adamw<bf16>(bench, R * 8192, "adamw, bf16 moments");
  for (const auto& [n, k] :
       {std::pair<std::int64_t, std::int64_t>{3072, 2048}, {2048, 2048}, {16384, 2048}, {2048, 8192}})
    bench_matmul(bench, R, n, k);
  std::string text =
      fmt::format("{:<52} {:>10} {:>9} {:>9} {:>9}\n", "kernel", "us", "GB/s", "of copy", "of matmul");
  std::vector<JsonObject> rows;
  for (const Row& r : bench.rows()) {
    const double rate = r.bytes / r.seconds, flops = r.flops / r.seconds;
    text += fmt::format("{:<52} {:>10.1f} {:>9.0f} {:>8.1f}% {:>8.1f}%\n", r.kernel, r.seconds * 1e6,
                        rate / 1e9, 100 * rate / roof.copy_bytes_per_s, 100 * flops / roof.flops_per_s);
    rows.push_back({{"kernel", r.kernel}, {"seconds", r.seconds}, {"bytes", r.bytes}, {"flops", r.flops}});
  }
  text += fmt::format("limits: {:.0f} GB/s copy, {:.0f} GB/s read, {:.0f} GFLOP/s matmul\n",
                      roof.copy_bytes_per_s / 1e9, roof.read_bytes_per_s / 1e9, roof.flops_per_s / 1e9);
  JsonObject json{{"copy_bytes_per_s", roof.copy_bytes_per_s}, {"flops_per_s", roof.flops_per_s}};
  json.add("kernels", rows);
  context.emit(json, text);
}

}  // namespace ridge
