#include "launch/evaluate.h"

#include <algorithm>
#include <cmath>

#include "core/autograd.h"

namespace ridge {
namespace {

constexpr std::int32_t kIgnored = -100;
constexpr std::size_t kBatchTokens = 4096;  // of one forward pass

// tokens[begin, end) with every target scored from position `first_scored` of the window on.
Window make_window(const std::vector<std::int32_t>& tokens, std::size_t begin, std::size_t end,
                   std::size_t first_scored) {
  Window w;
  w.ids.assign(tokens.begin() + static_cast<std::ptrdiff_t>(begin),
               tokens.begin() + static_cast<std::ptrdiff_t>(end - 1));
  w.targets.assign(tokens.begin() + static_cast<std::ptrdiff_t>(begin + 1),
                   tokens.begin() + static_cast<std::ptrdiff_t>(end));
  for (std::size_t t = 0; t < w.targets.size() && t + 1 < first_scored; ++t) w.targets[t] = kIgnored;
  return w;
}

std::vector<Window> consecutive(const std::vector<std::int32_t>& tokens, std::size_t n, bool keep_tail) {
  std::vector<Window> windows;
  for (std::size_t begin = 0; begin < tokens.size(); begin += n) {
    const std::size_t end = std::min(tokens.size(), begin + n);
    if (end - begin >= 2 && (keep_tail || end - begin == n))
      windows.push_back(make_window(tokens, begin, end, 0));
  }
  return windows;
}

std::vector<Window> strided(const std::vector<std::int32_t>& tokens, std::size_t n, std::size_t stride) {
  std::vector<Window> windows;
  std::size_t scored_to = 0;
  for (std::size_t begin = 0; begin + 1 < tokens.size(); begin += stride) {
    const std::size_t end = std::min(tokens.size(), begin + n);
    windows.push_back(make_window(tokens, begin, end, scored_to - begin));
    scored_to = end;
    if (end == tokens.size()) break;
  }
  return windows;
}

std::vector<Window> llama_cpp(const std::vector<std::int32_t>& tokens, std::size_t n, std::int32_t bos) {
  std::vector<Window> windows;
  for (std::size_t begin = 0; begin + n <= tokens.size(); begin += n) {
    Window w = make_window(tokens, begin, begin + n, n / 2 + 1);
    if (bos >= 0) w.ids.front() = bos;
    windows.push_back(std::move(w));
  }
  return windows;
}

// Windows first .. first + rows - 1, all of one length, as tensors [B, T].
std::pair<Tensor, Tensor> stack(const std::vector<Window>& windows, std::size_t first, std::size_t rows) {
  const auto length = static_cast<std::int64_t>(windows[first].ids.size());
  const Shape shape{static_cast<std::int64_t>(rows), length};
  const Tensor ids = Tensor::empty(shape, DType::i32), targets = Tensor::empty(shape, DType::i32);
  for (std::size_t row = 0; row < rows; ++row) {
    const Window& w = windows[first + row];
    std::copy(w.ids.begin(), w.ids.end(),
              ids.span<std::int32_t>().begin() + static_cast<std::int64_t>(row) * length);
    std::copy(w.targets.begin(), w.targets.end(),
              targets.span<std::int32_t>().begin() + static_cast<std::int64_t>(row) * length);
  }
  return {ids, targets};
}

double sum_of(const Tensor& losses) {
  double sum = 0;
  const Tensor wide = losses.to(DType::f64);
  for (const double loss : wide.span<double>()) sum += loss;
  return sum;
}

}  // namespace

Protocol parse_protocol(std::string_view name) {
  if (name == "windows") return Protocol::windows;
  if (name == "strided") return Protocol::strided;
  if (name == "gptq") return Protocol::gptq;
  if (name == "llama.cpp") return Protocol::llama_cpp;
  fail_user("--protocol '{}' is unknown: use windows, strided, gptq or llama.cpp", name);
}

std::vector<Window> cut_windows(const std::vector<std::int32_t>& tokens, Protocol protocol,
                                std::int64_t window, std::int64_t stride, std::int32_t bos) {
  require(window >= 2, "--window {} is too short: 2 tokens at least", window);
  require(stride >= 1 && stride <= window, "--stride {} is outside [1, window {}]", stride, window);
  const auto n = static_cast<std::size_t>(window);
  std::vector<Window> windows;
  switch (protocol) {
    case Protocol::windows:
      windows = consecutive(tokens, n, true);
      break;
    case Protocol::strided:
      windows = strided(tokens, n, static_cast<std::size_t>(stride));
      break;
    case Protocol::gptq:
      windows = consecutive(tokens, n, false);
      break;
    case Protocol::llama_cpp:
      windows = llama_cpp(tokens, n, bos);
      break;
  }
  require(!windows.empty(), "the text has {} tokens: too few for a window of {}", tokens.size(), window);
  return windows;
}

std::string why_not_finite(models::Llama& model) {
  for (const nn::Parameter& p : model.parameters()) {
    if (!is_floating(p.value->dtype())) continue;  // codes
    const Tensor host = p.value->detached().on(Device::cpu).to(DType::f32).as_contiguous();
    const std::span<const float> values = host.span<float>();
    const auto bad = std::find_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
    if (bad != values.end())
      return fmt::format("element {} of {} is {}: take weights that are finite", bad - values.begin(), p.name,
                         *bad);
  }
  return "all weights are finite, but the activations are not: try --dtype f32, and look for weights that "
         "are "
         "far too large";
}

Perplexity evaluate(models::Llama& model, const std::vector<Window>& windows, parallel::Communicator& ranks) {
  const autograd::NoGradScope no_grad;
  double sums[2] = {0, 0};  // nll, tokens
  int turn = 0;
  for (std::size_t first = 0; first < windows.size();) {
    const std::size_t length = windows[first].ids.size();
    const std::size_t most = std::max<std::size_t>(1, kBatchTokens / length);
    std::size_t rows = 1;
    while (rows < most && first + rows < windows.size() && windows[first + rows].ids.size() == length) ++rows;
    if (turn++ % ranks.size() == ranks.rank()) {
      const auto [ids, targets] = stack(windows, first, rows);
      sums[0] += sum_of(model.token_losses(ids, targets).on(Device::cpu));
      const auto scored = targets.span<std::int32_t>();
      sums[1] += static_cast<double>(
          std::count_if(scored.begin(), scored.end(), [](std::int32_t t) { return t != kIgnored; }));
    }
    first += rows;
  }
  ranks.all_reduce(std::span<double>(sums));
  const double nll = sums[0] / sums[1];
  const Perplexity result{nll, static_cast<std::int64_t>(sums[1]), std::exp(nll)};
  require(std::isfinite(nll), "the perplexity is {} (nll {}, {} tokens): {}", result.value, nll,
          result.tokens, std::isfinite(nll) ? "" : why_not_finite(model));
  require(std::isfinite(result.value),
          "the perplexity of nll {} ({} tokens) is beyond f64: the model knows "
          "nothing of this text",
          nll, result.tokens);
  return result;
}

}  // namespace ridge
