#include "kernels/reduce.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/element.h"
#include "kernels/strided.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kSegment = 1024;     // elements of one vector sum along a row
constexpr std::int64_t kTask = 16384;       // elements of one task at the least
constexpr std::int64_t kRowsPerPart = 256;  // rows added one by one before the tree
constexpr std::int64_t kColumns = 4096;     // columns of one task: their sums stay in L1

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class T>
acc_t<T> row_sum(const T* x, std::int64_t step, std::int64_t n) {
  if (step == 1) return sum_terms<acc_t<T>>(n, [x](std::int64_t i) { return load(x[i]); });
  return sum_terms<acc_t<T>>(n, [x, step](std::int64_t i) { return load(x[i * step]); });
}

/// sum[i] += the i-th elements of the rows, where row r starts at x[offsets[r]].
template <class T>
void add_rows(const T* x, const std::array<std::int64_t, 4>& offsets, std::int64_t step, acc_t<T>* sum,
              std::int64_t n) {
  const T *x0 = x + offsets[0], *x1 = x + offsets[1], *x2 = x + offsets[2], *x3 = x + offsets[3];
  if (step == 1) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) sum[i] += (load(x0[i]) + load(x1[i])) + (load(x2[i]) + load(x3[i]));
    return;
  }
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t at = i * step;
    sum[i] += (load(x0[at]) + load(x1[at])) + (load(x2[at]) + load(x3[at]));
  }
}

template <class T>
void add_row(const T* x, std::int64_t step, acc_t<T>* sum, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) sum[i] += load(x[i * step]);
}

/// Sums over some dimensions: kept index k, reduced index m. Every output is cut into `parts_` partial sums,
/// fixed by the shapes, that a tree joins.
template <class T>
class Sum {
 public:
  Sum(View<const T> x, View<T> y, double factor) : x_(x.data), y_(y.data), factor_(factor) {
    for (int d = 0; d < x.ndim(); ++d) {
      const bool reduces = y.shape[d] == 1;
      (reduces ? reduced_ : kept_).push(x.shape[d], x.strides[d]);
      if (!reduces) out_.push(y.shape[d], y.strides[d]);
    }
  }

  void run() {
    const bool along =
        kept_.count == 1 || (reduced_.ndim > 0 && std::abs(reduced_.step()) <= std::abs(kept_.step()));
    along ? sum_along_rows() : sum_across_rows();
    if (parts_ > 1) join();
  }

 private:
  /// The reduced elements lie next to each other: vector sums of segments.
  void sum_along_rows() {
    const std::int64_t length = std::max<std::int64_t>(1, reduced_.inner()),
                       segment = std::min(kSegment, length);
    const std::int64_t per_row = ceil_div(length, segment), segments = reduced_.count / length * per_row;
    const std::int64_t group = ceil_div(kTask, segment);
    start(ceil_div(segments, group));
    const std::int64_t grain = std::max<std::int64_t>(1, kTask / std::max<std::int64_t>(1, reduced_.count));
    parallel_for(kept_.count * parts_, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t k = task / parts_, part = task % parts_;
        const T* base = x_ + kept_.offset(k);
        double sum = 0;
        for (std::int64_t s = part * group; s < std::min(segments, (part + 1) * group); ++s) {
          const std::int64_t from = s % per_row * segment;
          const T* row = base + reduced_.offset(s / per_row * length) + from * reduced_.step();
          sum += row_sum(row, reduced_.step(), std::min(segment, length - from));
        }
        emit(k, part, sum);
      }
    });
  }

  /// The kept elements lie next to each other: rows are added to rows.
  void sum_across_rows() {
    const std::int64_t length = kept_.inner(), blocks = ceil_div(length, kColumns);
    start(ceil_div(reduced_.count, kRowsPerPart));
    const std::int64_t work =
        std::min(length, kColumns) * std::clamp<std::int64_t>(reduced_.count, 1, kRowsPerPart);
    const std::int64_t tasks = kept_.count / length * blocks * parts_;
    parallel_for(tasks, std::max<std::int64_t>(1, kTask / work), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t part = task % parts_, block = task / parts_ % blocks;
        const std::int64_t k = task / parts_ / blocks * length + block * kColumns;
        sum_block(k, part, std::min(kColumns, length - block * kColumns));
      }
    });
  }

  void sum_block(std::int64_t k, std::int64_t part, std::int64_t columns) {
    std::array<acc_t<T>, kColumns> sum;
    std::fill_n(sum.begin(), columns, acc_t<T>(0));
    const T* base = x_ + kept_.offset(k);
    const std::int64_t end = std::min(reduced_.count, (part + 1) * kRowsPerPart);
    std::int64_t m = part * kRowsPerPart;
    for (; m + 4 <= end; m += 4) {
      const std::array<std::int64_t, 4> offsets{reduced_.offset(m), reduced_.offset(m + 1),
                                                reduced_.offset(m + 2), reduced_.offset(m + 3)};
      add_rows(base, offsets, kept_.step(), sum.data(), columns);
    }
    for (; m < end; ++m) add_row(base + reduced_.offset(m), kept_.step(), sum.data(), columns);
    for (std::int64_t c = 0; c < columns; ++c) emit(k + c, part, sum[static_cast<std::size_t>(c)]);
  }

  void start(std::int64_t parts) {
    parts_ = std::max<std::int64_t>(1, parts);
    if (parts_ > 1) partial_.resize(static_cast<std::size_t>(parts_ * kept_.count));
  }

  void emit(std::int64_t k, std::int64_t part, double sum) {
    if (parts_ > 1) {
      partial_[static_cast<std::size_t>(part * kept_.count + k)] = sum;
    } else {
      store(y_[out_.offset(k)], static_cast<acc_t<T>>(sum * factor_));
    }
  }

  void join() {
    parallel_for(kept_.count, kColumns, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t step = 1; step < parts_; step *= 2) {
        for (std::int64_t part = 0; part + step < parts_; part += 2 * step) {
          double* into = partial_.data() + part * kept_.count;
          const double* from = into + step * kept_.count;
          for (std::int64_t k = begin; k < end; ++k) into[k] += from[k];
        }
      }
      for (std::int64_t k = begin; k < end; ++k) {
        store(y_[out_.offset(k)], static_cast<acc_t<T>>(partial_[static_cast<std::size_t>(k)] * factor_));
      }
    });
  }

  const T* x_;
  T* y_;
  double factor_;
  Nest kept_, reduced_, out_;
  std::int64_t parts_ = 1;
  std::vector<double> partial_;
};

template <class T>
void check_reduces(View<const T> x, View<T> y) {
  bool ok = x.ndim() == y.ndim();
  for (int d = 0; ok && d < x.ndim(); ++d) ok = y.shape[d] == x.shape[d] || y.shape[d] == 1;
  check(ok, "sum: every output extent is the input's or 1");
}

template <class T>
void launch_sum(Stream& stream, const char* name, View<const T> x, View<T> y, double factor) {
  check_reduces(x, y);
  launch(
      stream, name, Work{static_cast<double>(x.numel()), distinct_bytes(x) + y.bytes()},
      [&] {
        if (y.numel() > 0) Sum<T>(x, y, factor).run();
      },
      [&] { cuda::sum_to<T>(stream, x, y, factor); });
}

}  // namespace

template <class T>
void sum_to(Stream& stream, View<const T> x, View<T> y) {
  launch_sum(stream, "sum", x, y, 1.0);
}

template <class T>
void mean_to(Stream& stream, View<const T> x, View<T> y) {
  const auto summed =
      static_cast<double>(x.numel()) / static_cast<double>(std::max<std::int64_t>(1, y.numel()));
  launch_sum(stream, "mean", x, y, 1.0 / summed);
}

template void sum_to<float>(Stream&, View<const float>, View<float>);
template void mean_to<float>(Stream&, View<const float>, View<float>);
template void sum_to<double>(Stream&, View<const double>, View<double>);
template void mean_to<double>(Stream&, View<const double>, View<double>);
template void sum_to<bf16>(Stream&, View<const bf16>, View<bf16>);
template void mean_to<bf16>(Stream&, View<const bf16>, View<bf16>);

}  // namespace ridge::kernels
