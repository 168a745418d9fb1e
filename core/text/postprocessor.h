// The post-processors of tokenizer.json: special tokens around the ids of a text.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/text/tokenizer_json.h"

namespace ridge {

/// TemplateProcessing (its `single` template), ByteLevel (which changes no ids), Sequence, BertProcessing and
/// RobertaProcessing. Templates of a Sequence wrap one another in order.
class PostProcessors {
 public:
  PostProcessors() = default;
  explicit PostProcessors(const JsonNode& node);

  /// Without special tokens only the text's own ids are placed.
  std::vector<std::int32_t> apply(std::vector<std::int32_t> ids, bool add_special_tokens) const;

  /// A special token that some template inserts and that `known` refuses, if any.
  template <class Known>
  std::optional<std::int32_t> first_unknown(const Known& known) const {
    for (const Template& pattern : templates_) {
      for (const Part& part : pattern) {
        for (const std::int32_t id : part.ids) {
          if (!known(id)) return id;
        }
      }
    }
    return std::nullopt;
  }

 private:
  struct Part {
    bool is_text = false;
    std::vector<std::int32_t> ids;  // of a special token
  };
  using Template = std::vector<Part>;

  void add(const JsonNode& node, int depth);
  static Template parse_template(const JsonNode& node);
  static Template parse_bert(const JsonNode& node);

  std::vector<Template> templates_;
};

}  // namespace ridge
