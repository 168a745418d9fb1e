#include "core/text/pretokenizer_split.h"

namespace ridge {
namespace {

// Joins consecutive ranges by the behaviour and passes finished ones on.
class Joiner {
 public:
  Joiner(Piece piece, SplitBehavior behavior, const PieceSink& sink)
      : piece_(piece), behavior_(behavior), sink_(sink) {}

  void take(std::size_t begin, std::size_t end, bool is_match) {
    if (behavior_ == SplitBehavior::kRemoved && is_match) return;
    if (!joins(is_match)) {
      finish();
      begin_ = begin;
    }
    end_ = end;
    last_match_ = is_match;
    any_ = true;
  }

  void finish() {
    if (any_ && end_ > begin_)
      sink_({piece_.text.substr(begin_, end_ - begin_), piece_.at_start && begin_ == 0});
    any_ = false;
  }

 private:
  // Whether the next range belongs to the one that is open.
  bool joins(bool is_match) const {
    if (!any_) return false;
    switch (behavior_) {
      case SplitBehavior::kMergedWithPrevious:
        return is_match && !last_match_;
      case SplitBehavior::kMergedWithNext:
        return !is_match && last_match_;
      case SplitBehavior::kContiguous:
        return is_match == last_match_;
      default:
        return false;
    }
  }

  Piece piece_;
  SplitBehavior behavior_;
  const PieceSink& sink_;
  std::size_t begin_ = 0, end_ = 0;
  bool last_match_ = false, any_ = false;
};

class Split final : public PreTokenizer {
 public:
  Split(std::unique_ptr<Matcher> pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  void split(Piece piece, const PieceSink& sink) const override {
    Joiner joiner(piece, behavior_, sink);
    pattern_->scan(piece.text, [&](std::size_t begin, std::size_t end, bool is_match) {
      joiner.take(begin, end, is_match != invert_);
    });
    joiner.finish();
  }

 private:
  std::unique_ptr<Matcher> pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

}  // namespace

std::unique_ptr<PreTokenizer> make_split(std::unique_ptr<Matcher> pattern, SplitBehavior behavior,
                                         bool invert) {
  return std::make_unique<Split>(std::move(pattern), behavior, invert);
}

}  // namespace ridge
