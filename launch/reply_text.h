// The text of a reply as its tokens come, which ends before the first of some strings.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/text/tokenizer.h"

namespace ridge {

class ReplyText {
 public:
  /// Of what follows the ids `after`; `stops` must not be empty strings.
  ReplyText(const Tokenizer& tokenizer, std::vector<std::string> stops,
            std::span<const std::int32_t> after = {});

  /// What is sure to be shown now: whole characters that begin no stop string. Nothing after one was found.
  std::string push(std::int32_t id);
  /// The rest, where none was found.
  std::string flush();
  /// Whether a stop string came.
  bool stopped() const { return stopped_; }
  /// All that was given out.
  const std::string& text() const { return shown_; }

 private:
  std::string take(const std::string& more, bool last);

  DecodeStream stream_;
  std::vector<std::string> stops_;
  std::string shown_;
  std::string held_;  // the beginning of a stop string, perhaps
  bool stopped_ = false;
};

}  // namespace ridge
