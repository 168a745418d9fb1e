#include "kernels/matmul.h"

#include <thread>

#include "core/base/memory.h"
#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {
namespace {

template <class Input, class Output>
struct Types {
  using In = Input;
  using Out = Output;
};
template <class P>
class Matmul : public ::testing::Test {};
using Pairs =
    ::testing::Types<Types<float, float>, Types<double, double>, Types<bf16, bf16>, Types<bf16, float>>;
TYPED_TEST_SUITE(Matmul, Pairs);

enum class Layout { rows, gapped_rows, columns, gapped_columns };
constexpr Layout kLayouts[] = {Layout::rows, Layout::gapped_rows, Layout::columns, Layout::gapped_columns};

template <class T>
Array<T> make(Layout layout, std::int64_t rows, std::int64_t columns) {
  switch (layout) {
    case Layout::rows:
      return Array<T>({rows, columns});
    case Layout::gapped_rows:
      return Array<T>({rows, columns}, {columns + 5, 1});
    case Layout::columns:
      return Array<T>({rows, columns}, {1, rows});
    default:
      return Array<T>({rows, columns}, {1, rows + 3});
  }
}

// alpha a b + beta c in f64, by the book.
std::vector<double> reference(const std::vector<double>& a, const std::vector<double>& b,
                              const std::vector<double>& c, std::size_t m, std::size_t k, std::size_t n,
                              double alpha, double beta) {
  std::vector<double> out;
  for (std::size_t i = 0; i < m; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      double sum = 0;
      for (std::size_t l = 0; l < k; ++l) sum += a[i * k + l] * b[l * n + j];
      out.push_back(alpha * sum + (beta == 0 ? 0 : beta * c[i * n + j]));
    }
  }
  return out;
}

// Elements of the memory that are not in the view keep their bits.
template <class T>
void expect_gaps_kept(Array<T>& c, Memory<T> before, const std::string& what) {
  const View<T> view = c.view();
  std::vector<bool> inside(before.size(), false);
  for (std::int64_t i = 0; i < view.numel(); ++i)
    inside[static_cast<std::size_t>(offset_of(view.shape, view.strides, i))] = true;
  for (std::size_t i = 0; i < before.size(); ++i) {
    if (inside[i]) continue;
    ASSERT_EQ(std::memcmp(&c.data()[i], &before[i], sizeof(T)), 0) << what << ": gap " << i;
  }
}

template <class T, class C>
void check(Array<T>& a, Array<T>& b, Array<C>& c, double alpha, double beta, const std::string& what) {
  const auto m = static_cast<std::size_t>(a.view().dim(0)), k = static_cast<std::size_t>(a.view().dim(1)),
             n = static_cast<std::size_t>(b.view().dim(1));
  const std::vector<double> want = reference(a.values(), b.values(), c.values(), m, k, n, alpha, beta);
  const Memory<C> before = c.data();
  matmul<T, C>(test_stream(), a.in(), b.in(), c.view(), alpha, beta);
  EXPECT_LE(normalized_error(c.values(), want, std::sqrt(static_cast<double>(k))), tolerance<C>()) << what;
  expect_gaps_kept(c, before, what);
}

struct Size {
  std::int64_t m, k, n;
};

TYPED_TEST(Matmul, EveryLayoutOddSizeAndFactor) {
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  constexpr Size kSizes[] = {{1, 1, 1},  {1, 7, 5},  {2, 33, 17}, {3, 64, 40},
                             {4, 31, 2}, {5, 32, 9}, {17, 3, 1},  {33, 65, 29}};
  constexpr std::pair<double, double> kFactors[] = {{1, 0}, {0.5, 0}, {1, 1}, {-2, 0.25}};
  for (const Size s : kSizes) {
    for (const Layout la : kLayouts) {
      for (const Layout lb : kLayouts) {
        for (const Layout lc : kLayouts) {
          for (const auto& [alpha, beta] : kFactors) {
            Array<T> a = make<T>(la, s.m, s.k).randomize(1), b = make<T>(lb, s.k, s.n).randomize(2);
            Array<C> c = make<C>(lc, s.m, s.n).randomize(3);
            check(a, b, c, alpha, beta,
                  fmt::format("{} x {} x {}, layouts {} {} {}, alpha {} beta {}", s.m, s.k, s.n,
                              static_cast<int>(la), static_cast<int>(lb), static_cast<int>(lc), alpha, beta));
            if (this->HasFailure()) return;
          }
        }
      }
    }
  }
}

// Above the size of one serial call, and past a tile in either direction, on any number of threads.
TYPED_TEST(Matmul, LargeOnesAreCutAmongThreads) {
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  const ThreadScope scope;
  for (const int threads : {1, 2, 3, 7}) {
    set_thread_count(threads);
    for (const Size s : {Size{130, 67, 101}, Size{3301, 31, 7}, Size{9, 37, 3203}}) {
      for (const Layout lc : {Layout::gapped_rows, Layout::gapped_columns}) {
        Array<T> a = make<T>(Layout::gapped_columns, s.m, s.k).randomize(1);
        Array<T> b = make<T>(Layout::gapped_rows, s.k, s.n).randomize(2);
        Array<C> c = make<C>(lc, s.m, s.n).randomize(3);
        check(a, b, c, 0.5, 1, fmt::format("{} threads, {} x {} x {}", threads, s.m, s.k, s.n));
      }
    }
  }
}

TYPED_TEST(Matmul, TheSameThreadsGiveTheSameBits) {
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  Array<T> a = make<T>(Layout::rows, 130, 67).randomize(1),
           b = make<T>(Layout::columns, 67, 101).randomize(2);
  const auto run = [&] {
    Array<C> c = make<C>(Layout::rows, 130, 101);
    matmul<T, C>(test_stream(), a.in(), b.in(), c.view());
    return c.values();
  };
  const auto first = run();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(run(), first);
}

TYPED_TEST(Matmul, BetaZeroDoesNotReadC) {
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  for (const std::int64_t m : {1, 4, 6, 70}) {
    for (const Layout lc : kLayouts) {
      Array<T> a = make<T>(Layout::rows, m, 33).randomize(1),
               b = make<T>(Layout::columns, 33, 19).randomize(2);
      Array<C> c = make<C>(lc, m, 19);
      for (C& x : c.data()) x = static_cast<C>(std::numeric_limits<float>::quiet_NaN());
      matmul<T, C>(test_stream(), a.in(), b.in(), c.view(), 0.5, 0);
      for (const double x : c.values()) ASSERT_TRUE(std::isfinite(x)) << m;
      for (C& x : c.data()) x = static_cast<C>(std::numeric_limits<float>::quiet_NaN());
      matmul<T, C>(test_stream(), a.in(), b.in(), c.view());
      for (const double x : c.values()) ASSERT_TRUE(std::isfinite(x)) << m;
    }
  }
}

TYPED_TEST(Matmul, ANaNReachesItsRowAndNoOther) {
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  for (const std::int64_t m : {2, 3, 4, 5, 40}) {
    Array<T> a = make<T>(Layout::rows, m, 37).randomize(1), b = make<T>(Layout::columns, 37, 6).randomize(2);
    a.view()(1, 36) = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
    Array<C> c = make<C>(Layout::rows, m, 6);
    matmul<T, C>(test_stream(), a.in(), b.in(), c.view());
    const auto values = c.values();
    for (std::size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(std::isnan(values[i]), i / 6 == 1) << m << ": " << i;
  }
}

TYPED_TEST(Matmul, NoTermsIsBetaTimesC) {
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  for (const Layout lc : kLayouts) {
    Array<T> a = make<T>(Layout::rows, 3, 0), b = make<T>(Layout::rows, 0, 4);
    Array<C> c = make<C>(lc, 3, 4).randomize(3);
    std::vector<double> half;
    for (const double x : c.values())
      half.push_back(static_cast<double>(static_cast<acc_t<C>>(static_cast<C>(x / 2))));
    matmul<T, C>(test_stream(), a.in(), b.in(), c.view(), 1, 0.5);
    EXPECT_EQ(c.values(), half);
    for (C& x : c.data()) x = static_cast<C>(std::numeric_limits<float>::quiet_NaN());
    matmul<T, C>(test_stream(), a.in(), b.in(), c.view());
    EXPECT_EQ(c.values(), std::vector<double>(12, 0.0));
  }
}

TYPED_TEST(Matmul, NoRowsOrColumnsIsNothing) {
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  const C seven = static_cast<C>(7.0f);
  for (const Size s : {Size{0, 5, 4}, Size{3, 5, 0}, Size{0, 0, 0}, Size{1, 5, 0}}) {
    Array<T> a({std::max<std::int64_t>(s.m, 1), 5}), b({5, 4});
    C guard = seven;
    matmul<T, C>(test_stream(), View<const T>(a.in().data, {s.m, s.k}),
                 View<const T>(b.in().data, {s.k, s.n}), View<C>(&guard, {s.m, s.n}), 1, 0);
    EXPECT_EQ(std::memcmp(&guard, &seven, sizeof(C)), 0);
  }
}

TYPED_TEST(Matmul, ShapesThatDoNotFitAreNamed) {
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  Array<T> a({2, 3}), b({4, 5});
  Array<C> c({2, 5});
  const std::string message =
      message_of<Error>([&] { matmul<T, C>(test_stream(), a.in(), b.in(), c.view()); });
  for (const char* part : {"[2, 3]", "[4, 5]", "[2, 5]"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  Array<T> fits({3, 5});
  Array<C> tall({3, 5}), flat({10});
  EXPECT_THROW((matmul<T, C>(test_stream(), a.in(), fits.in(), tall.view())), Error);
  EXPECT_THROW((matmul<T, C>(test_stream(), a.in(), fits.in(), flat.view())), Error);
}

TYPED_TEST(Matmul, AMatrixThatIsDenseInNoDimensionIsAnError) {
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  Array<T> sparse({6, 6}, {14, 2}), dense({6, 6});
  Array<C> c({6, 6}), sparse_c({6, 6}, {14, 2});
  const auto run = [](const Array<T>& a, const Array<T>& b, Array<C>& to) {
    return message_of<Error>([&] { matmul<T, C>(test_stream(), a.in(), b.in(), to.view()); });
  };
  EXPECT_NE(run(sparse, dense, c).find("[14, 2]"), std::string::npos);
  EXPECT_NE(run(dense, sparse, c).find("[14, 2]"), std::string::npos);
  if (std::is_same_v<C, bf16>) return;  // which is stored element by element
  EXPECT_NE(run(dense, dense, sparse_c).find("[14, 2]"), std::string::npos);
}

TYPED_TEST(Matmul, SeveralThreadsMayCallAtOnce) {
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  if (on_gpu()) GTEST_SKIP() << "one queue on a GPU";
  Array<T> a = make<T>(Layout::rows, 90, 80).randomize(1), b = make<T>(Layout::rows, 80, 70).randomize(2);
  Array<C> want = make<C>(Layout::rows, 90, 70);
  matmul<T, C>(test_stream(), a.in(), b.in(), want.view());
  std::vector<std::thread> threads;
  std::vector<Array<C>> got(4, Array<C>({90, 70}));
  for (Array<C>& c : got) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) matmul<T, C>(current_stream(Device::cpu), a.in(), b.in(), c.view());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (Array<C>& c : got) EXPECT_EQ(c.values(), want.values());
}

TYPED_TEST(Matmul, WorkIsTwoOperationsATermAndEveryMatrixOnce) {
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  const auto work = [](double beta) {
    return launched_on_meta([&](Stream& stream) {
      matmul<T, C>(stream, meta_view<const T>({5, 7}), meta_view<const T>({7, 11}), meta_view<C>({5, 11}), 1,
                   beta);
    });
  };
  const double inputs = (5 * 7 + 7 * 11) * sizeof(T), output = 5 * 11 * sizeof(C);
  EXPECT_STREQ(work(0).op, "matmul");
  EXPECT_EQ(work(0).flops, 2.0 * 5 * 7 * 11);
  EXPECT_EQ(work(0).bytes, inputs + output);
  EXPECT_EQ(work(1).bytes, inputs + 2 * output);
}

// Scratch is part of the forecast: meta takes what the CPU takes.
TYPED_TEST(Matmul, MetaTakesTheScratchThatTheCpuTakes) {
  if (on_gpu()) GTEST_SKIP() << "the CPU's own";
  using T = typename TypeParam::In;
  using C = typename TypeParam::Out;
  const auto scratch = [](Device device, const auto& run) {
    reset_memory_peaks(device);
    const std::int64_t before = memory_stats(device).live;
    run();
    const MemoryStats after = memory_stats(device);
    EXPECT_EQ(after.live, before);
    return std::pair(after.peak_live - before, after.peak_reserved);
  };
  for (const std::int64_t m : {3, 50}) {
    Array<T> a = make<T>(Layout::rows, m, 700).randomize(1),
             b = make<T>(Layout::columns, 700, 300).randomize(2);
    Array<C> c = make<C>(Layout::rows, m, 300);
    const auto real = scratch(Device::cpu, [&] { matmul<T, C>(test_stream(), a.in(), b.in(), c.view()); });
    Stream stream(Device::meta, "meta");
    const auto forecast = scratch(Device::meta, [&] {
      matmul<T, C>(stream, View<const T>(nullptr, {m, 700}), View<const T>(nullptr, {700, 300}, {1, 700}),
                   View<C>(nullptr, {m, 300}));
    });
    EXPECT_EQ(real, forecast);
    EXPECT_EQ(real.first > 0, (std::is_same_v<T, bf16>));
  }
}

template <class T>
class MatmulBatched : public ::testing::Test {};
TYPED_TEST_SUITE(MatmulBatched, ComputeTypes);

// Rows of every part of a longer matrix, against a product for each.
TYPED_TEST(MatmulBatched, IsAProductForEach) {
  using T = TypeParam;
  for (const auto& [P, M, K, N] : std::vector<std::array<std::int64_t, 4>>{
           {1, 3, 5, 7}, {3, 1, 8, 16}, {4, 33, 65, 17}, {2, 64, 128, 96}, {2, 3, 0, 4}, {0, 3, 4, 5}}) {
    for (const bool transposed : {false, true}) {
      for (const double beta : {0.0, 0.5}) {
        const std::int64_t part = M + 2;  // rows from one matrix to the next
        Array<T> a({P, M, K}, {part * (K + 3), K + 3, 1});
        Array<T> b = make<T>(transposed ? Layout::columns : Layout::gapped_rows, K, N);
        Array<T> c({P, M, N}, {part * (N + 8), N + 8, 1});
        a.randomize(1), b.randomize(2), c.randomize(3);
        const auto before = c.values(), as = a.values(), bs = b.values();
        std::vector<double> want;
        for (std::int64_t p = 0; p < P; ++p) {
          const auto mk = static_cast<std::ptrdiff_t>(M * K), mn = static_cast<std::ptrdiff_t>(M * N);
          const std::vector<double> mine(as.begin() + p * mk, as.begin() + (p + 1) * mk);
          const std::vector<double> old(before.begin() + p * mn, before.begin() + (p + 1) * mn);
          const auto product = reference(mine, bs, old, static_cast<std::size_t>(M),
                                         static_cast<std::size_t>(K), static_cast<std::size_t>(N), 1.5, beta);
          want.insert(want.end(), product.begin(), product.end());
        }
        const Memory<T> memory = c.data();
        matmul_batched<T>(test_stream(), a.in(), b.in(), c.view(), 1.5, beta);
        EXPECT_LT(normalized_error(c.values(), want), 4 * tolerance<T>()) << P << " x " << M;
        if (P > 0) expect_gaps_kept(c, memory, "batch");
      }
    }
  }
}

TEST(MatmulBatchedErrors, ShapesThatDoNotFit) {
  Array<float> a({2, 3, 4}), b({4, 5}), c({2, 3, 5}), other({2, 4, 5}), wrong({3, 5});
  EXPECT_THROW(matmul_batched<float>(test_stream(), a.in(), b.in(), other.view()), Error);
  EXPECT_THROW(matmul_batched<float>(test_stream(), a.in(), wrong.in(), c.view()), Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
