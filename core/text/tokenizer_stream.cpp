// Decoding token by token.
#include "core/text/tokenizer_state.h"
#include "core/text/utf8.h"

namespace ridge {

DecodeStream::DecodeStream(const Tokenizer& tokenizer, bool skip_special_tokens)
    : state_(tokenizer.state_),
      skip_special_(skip_special_tokens),
      prefix_left_(state_->decoder.prefix().most) {}

void DecodeStream::follow(std::span<const std::int32_t> ids) {
  for (const std::int32_t id : ids) {
    if (skip_special_ && state_->entry(id).special) continue;
    is_first_ = false;
    prefix_left_ = 0;
  }
}

std::string DecodeStream::push(std::int32_t id) {
  const auto& [token, known, special] = state_->entry(id);
  if (skip_special_ && special) return {};
  if (!state_->decoder.streams()) {
    ids_.push_back(id);
    return {};
  }
  held_ += state_->decoder.decode_one(std::string(token), is_first_);
  is_first_ = false;
  cut_prefix();
  const std::size_t ready = held_.size() - utf8::incomplete_tail(held_);
  std::string out = utf8::replace_invalid(std::string_view(held_).substr(0, ready));
  held_.erase(0, ready);
  return out;
}

void DecodeStream::cut_prefix() {
  if (prefix_left_ == 0) return;
  const std::string symbol = state_->decoder.prefix().symbol;
  for (; prefix_left_ > 0 && held_.starts_with(symbol); --prefix_left_) held_.erase(0, symbol.size());
  // A multi-byte symbol may still be on its way in bytes.
  if (!held_.empty() && !symbol.starts_with(held_)) prefix_left_ = 0;
}

std::string DecodeStream::flush() {
  std::string out = utf8::replace_invalid(held_);
  if (!ids_.empty()) {
    std::vector<std::string> tokens;
    for (const std::int32_t id : ids_) tokens.emplace_back(state_->entry(id).token);
    out = utf8::replace_invalid(state_->decoder.decode(std::move(tokens), BadBytes::kKeep));
  }
  is_first_ = true;
  prefix_left_ = state_->decoder.prefix().most;
  held_.clear();
  ids_.clear();
  return out;
}

}  // namespace ridge
