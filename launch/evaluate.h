// Perplexity of a text, by the protocols of the field.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/models/llama.h"
#include "parallel/communicator.h"

namespace ridge {

enum class Protocol : std::uint8_t {
  windows,  // consecutive windows; each predicts its tokens 2..N; the last, shorter one counts if it has two
            // tokens
  strided,  // Hugging Face's documentation: windows overlap, only the last `stride` tokens of each are scored
  gptq,     // as windows with the tail dropped; the mean of the windows' means
  llama_cpp  // chunks that begin with the beginning-of-text token; only the second half is scored
};

/// "windows", "strided", "gptq" or "llama.cpp".
Protocol parse_protocol(std::string_view name);

/// A piece of the text: ids and targets, -100 where a position is not scored.
struct Window {
  std::vector<std::int32_t> ids, targets;
};

/// Cuts tokens by a protocol. `bos` stands at the start of llama.cpp's chunks; -1: none.
std::vector<Window> cut_windows(const std::vector<std::int32_t>& tokens, Protocol protocol,
                                std::int64_t window, std::int64_t stride, std::int32_t bos);

struct Perplexity {
  double nll = 0;           // mean negative log-likelihood, nat/token
  std::int64_t tokens = 0;  // scored
  double value = 0;         // exp(nll)
};

/// What a user should look at where a model's answers are not finite: its first weight that is not, or that
/// all are.
std::string why_not_finite(models::Llama& model);

/// Scores the windows, shared among the ranks; every rank gets the result. A UserError where the perplexity
/// is NaN or infinite.
Perplexity evaluate(models::Llama& model, const std::vector<Window>& windows, parallel::Communicator& ranks);

}  // namespace ridge
