#include "launch/reply_text.h"

#include <algorithm>
#include <string_view>

#include "core/base/error.h"

namespace ridge {
namespace {

// Bytes at the end of `text` that a stop string may begin with.
std::size_t begun(std::string_view text, std::string_view stop) {
  for (std::size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n) {
    if (text.ends_with(stop.substr(0, n))) return n;
  }
  return 0;
}

}  // namespace

ReplyText::ReplyText(const Tokenizer& tokenizer, std::vector<std::string> stops,
                     std::span<const std::int32_t> after)
    : stream_(tokenizer), stops_(std::move(stops)) {
  stream_.follow(after);
  for (const std::string& stop : stops_)
    require(!stop.empty(), "--stop: an empty string would end every text");
}

std::string ReplyText::take(const std::string& more, bool last) {
  if (stopped_) return "";
  held_ += more;
  std::size_t end = held_.size(), keep = 0;
  for (const std::string& stop : stops_) {
    const std::size_t at = held_.find(stop);
    if (at != std::string::npos) {
      stopped_ = true;
      end = std::min(end, at);
    }
    keep = std::max(keep, begun(held_, stop));
  }
  if (!stopped_ && !last) end -= keep;
  const std::string out = held_.substr(0, end);
  held_.erase(0, end);
  shown_ += out;
  return out;
}

std::string ReplyText::push(std::int32_t id) { return take(stream_.push(id), false); }

std::string ReplyText::flush() { return take(stream_.flush(), true); }

}  // namespace ridge
