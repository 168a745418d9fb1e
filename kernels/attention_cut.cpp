// How a GPU cuts attention: numbers that depend on shapes alone.
#include "kernels/attention_problem.h"

namespace ridge::kernels::attention_detail {
namespace {

constexpr std::int64_t kDecodeQueries = 8;   // up to this many queries a head, decoding is the faster kernel
constexpr std::int64_t kDecodeBlocks = 528;  // enough for 4 blocks on each of 132 multiprocessors
constexpr std::int64_t kTileBlocks = 264;
constexpr std::int64_t kLeastDecodeKeys = 128;  // keys a part
constexpr std::int64_t kLeastTileKeys = 512;

// A plan takes half a second to build. Training asks for the same length again and again, and so do round
// lengths; a prompt's length comes once, and pays for a plan only when it is long.
constexpr std::int64_t kLeastFusedQueries = 64;
constexpr std::int64_t kLeastRoundQueries = 256;
constexpr std::int64_t kLongQueries = 4096;
constexpr std::int64_t kMostFusedBytes = std::int64_t{1} << 30;       // workspace that is cut for
constexpr std::int64_t kMostFusedHeadBytes = std::int64_t{16} << 30;  // workspace of one key-value head

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Rows of a decoding block: what the registers hold.
template <class T>
std::int64_t decode_rows(std::int64_t rows) {
  if constexpr (sizeof(acc_t<T>) == 8) return rows == 1 ? 1 : 2;
  return rows == 1 ? 1 : rows <= 4 ? 4 : 8;
}

// What cuDNN 9 takes for `heads` query heads: the score gradients in bf16, in tiles of 64 x 128; where heads
// share keys, the gradients of every head's keys and values; o . do of each query.
std::int64_t fused_bytes(const Problem& problem, std::int64_t heads) {
  const std::int64_t scores = ceil_div(problem.queries, 64) * 64 * (ceil_div(problem.keys, 128) * 128);
  const std::int64_t shared = problem.heads > problem.groups ? 4 * problem.keys * problem.head_dim : 0;
  return heads * (2 * scores + shared + 4 * problem.queries) + 256;
}

// The same without an order of summation: dq in f32 in place of the score gradients.
std::int64_t unordered_bytes(const Problem& problem) {
  const std::int64_t shared = problem.heads > problem.groups ? 4 * problem.keys * problem.head_dim : 0;
  return problem.batch * problem.heads *
             (4 * problem.queries * problem.head_dim + shared + 4 * problem.queries) +
         256;
}

// The largest divisor of `count` whose workspace is within the bound; at least 1.
template <class Bytes>
std::int64_t divisor_within(std::int64_t count, const Bytes& bytes) {
  for (std::int64_t pieces = 1; pieces < count; ++pieces) {
    if (count % pieces == 0 && bytes(count / pieces) <= kMostFusedBytes) return count / pieces;
  }
  return 1;
}

template <class T>
bool aligned_strides(const View<const T>& x) {
  for (int d = 0; d < 3; ++d) {
    if (x.dim(d) != 1 && (x.strides[d] <= 0 || x.strides[d] % 8 != 0)) return false;
  }
  return true;
}

}  // namespace

template <class T>
ForwardCut forward_cut(const Problem& problem) {
  ForwardCut cut;
  const KeyRange span = problem.span();
  const std::int64_t keys = std::max<std::int64_t>(1, span.end - span.begin);
  cut.decode = problem.queries <= kDecodeQueries;
  std::int64_t wanted = 0, least = 0;
  if (cut.decode) {
    cut.rows = decode_rows<T>(problem.rows());
    wanted = ceil_div(kDecodeBlocks, problem.batch * problem.groups * ceil_div(problem.rows(), cut.rows));
    least = kLeastDecodeKeys;
  } else {
    cut.rows = tile_rows(sizeof(acc_t<T>), problem.head_dim);
    wanted = ceil_div(kTileBlocks, problem.batch * problem.heads * ceil_div(problem.queries, cut.rows));
    least = kLeastTileKeys;
  }
  const std::int64_t parts = std::clamp<std::int64_t>(keys / least, 1, wanted);
  cut.part_keys = ceil_div(keys, parts);
  cut.parts = ceil_div(keys, cut.part_keys);
  if (cut.parts > 1) {
    cut.bytes = problem.batch * problem.heads * problem.queries * cut.parts * (problem.head_dim + 2) *
                static_cast<std::int64_t>(sizeof(acc_t<T>));
  }
  return cut;
}

template <class T>
bool fused_fits(const Problem& problem, std::initializer_list<View<const T>> operands) {
  if constexpr (!std::is_same_v<T, bf16>) return false;
  const bool head_dim =
      problem.head_dim == 64 || problem.head_dim == 96 || problem.head_dim == 128 || problem.head_dim == 256;
  const bool square = problem.queries == problem.keys && problem.options.q_offset == 0;
  const std::int64_t least = std::min(problem.queries, problem.keys);
  if (!head_dim || !(square || !problem.options.causal) || least < kLeastFusedQueries || problem.batch == 0)
    return false;
  return std::all_of(operands.begin(), operands.end(), aligned_strides<T>);
}

bool comes_again(const Problem& problem) {
  const std::int64_t queries = problem.queries;
  return queries >= kLongQueries || (queries >= kLeastRoundQueries && queries % 64 == 0);
}

FusedCut fused_backward_cut(const Problem& problem) {
  const std::int64_t share = problem.heads / problem.groups;
  FusedCut cut;
  if (!problem.options.deterministic) return {problem.batch, problem.groups, unordered_bytes(problem)};
  const auto of_batch = [&](std::int64_t n) { return fused_bytes(problem, n * problem.heads); };
  const auto of_groups = [&](std::int64_t n) { return fused_bytes(problem, n * share); };
  if (of_groups(1) > kMostFusedHeadBytes) return cut;
  cut.batch = divisor_within(problem.batch, of_batch);
  const bool whole = of_batch(cut.batch) <= kMostFusedBytes;
  cut.groups = whole ? problem.groups : divisor_within(problem.groups, of_groups);
  cut.bytes = fused_bytes(problem, cut.batch * cut.groups * share);
  return cut;
}

template <class T>
std::int64_t forward_scratch(const Problem& problem, bool fused) {
  const bool empty = problem.batch * problem.heads * problem.queries == 0;
  return fused || empty ? 0 : forward_cut<T>(problem).bytes;
}

template <class T>
std::int64_t backward_scratch(const Problem& problem, bool fused) {
  const std::int64_t own = problem.batch * problem.heads * problem.queries *
                           static_cast<std::int64_t>(sizeof(acc_t<T>));  // o . do
  return fused ? std::max(own, fused_backward_cut(problem).bytes) : own;
}

template ForwardCut forward_cut<float>(const Problem&);
template ForwardCut forward_cut<double>(const Problem&);
template ForwardCut forward_cut<bf16>(const Problem&);
template bool fused_fits(const Problem&, std::initializer_list<View<const float>>);
template bool fused_fits(const Problem&, std::initializer_list<View<const double>>);
template bool fused_fits(const Problem&, std::initializer_list<View<const bf16>>);
template std::int64_t forward_scratch<float>(const Problem&, bool);
template std::int64_t forward_scratch<double>(const Problem&, bool);
template std::int64_t forward_scratch<bf16>(const Problem&, bool);
template std::int64_t backward_scratch<float>(const Problem&, bool);
template std::int64_t backward_scratch<double>(const Problem&, bool);
template std::int64_t backward_scratch<bf16>(const Problem&, bool);

}  // namespace ridge::kernels::attention_detail
