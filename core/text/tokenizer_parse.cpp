// A whole tokenizer.json to the state of a Tokenizer.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/text/tokenizer_state.h"

namespace ridge {
namespace {

std::size_t growth_limit(std::size_t bytes) { return 64 * bytes + 4096; }

AddedToken parse_added(const JsonNode& node) {
  AddedToken token;
  token.content = node.text("content");
  token.id = static_cast<std::int32_t>(node.integer("id", 0, std::numeric_limits<std::int32_t>::max() - 1));
  token.single_word = node.flag("single_word", false);
  token.lstrip = node.flag("lstrip", false);
  token.rstrip = node.flag("rstrip", false);
  token.special = node.flag("special", false);
  token.normalized = node.flag("normalized", !token.special);
  return token;
}

// The id is that of the content in the vocabulary, or one that no other token has.
void check_id(const JsonNode& node, const AddedToken& token, const TokenizerState& state) {
  const Vocabulary& vocabulary = state.bpe.vocabulary();
  const std::int32_t known = vocabulary.find(token.content);
  if (known != Vocabulary::kNone && known != token.id) {
    node.fail(
        fmt::format("{} has id {} here and {} in model.vocab", in_quotes(token.content), token.id, known));
  }
  if (known == Vocabulary::kNone && vocabulary.contains(token.id)) {
    node.fail(fmt::format("{} has id {}, which model.vocab gives to {}", in_quotes(token.content), token.id,
                          in_quotes(vocabulary.token(token.id))));
  }
  const auto same_id = state.added.find(token.id);
  if (same_id != state.added.end() && same_id->second.content != token.content) {
    node.fail(fmt::format("{} has id {}, which {} has too", in_quotes(token.content), token.id,
                          in_quotes(same_id->second.content)));
  }
  const auto same_content = state.added_ids.find(token.content);
  if (same_content != state.added_ids.end() && same_content->second != token.id) {
    node.fail(fmt::format("{} has ids {} and {}", in_quotes(token.content), same_content->second, token.id));
  }
}

void add_tokens(const JsonNode& root, TokenizerState& state, std::size_t file_bytes) {
  if (!root.has("added_tokens")) return;
  // Ids index an array: beyond the vocabulary there is room for holes, but not without end.
  const std::size_t ids = state.bpe.vocabulary().size(), most = std::max(ids, file_bytes) + 65536;
  for (const JsonNode& node : root.items("added_tokens")) {
    const AddedToken token = parse_added(node);
    if (token.content.empty()) continue;
    if (static_cast<std::size_t>(token.id) > most) {
      node.fail(fmt::format("id {} of {} is too high; the vocabulary has {} ids", token.id,
                            in_quotes(token.content), ids));
    }
    check_id(node, token, state);
    state.added[token.id] = token;
    state.added_ids[token.content] = token.id;
  }
}

void index_added(TokenizerState& state) {
  std::vector<AddedToken*> tokens;
  for (auto& [id, token] : state.added) tokens.push_back(&token);
  std::sort(tokens.begin(), tokens.end(), [](const auto* a, const auto* b) { return a->id < b->id; });
  for (AddedToken* token : tokens) {
    Segment segment{token->content, true, growth_limit(token->content.size())};
    if (token->normalized && state.normalizer) state.normalizer->apply(segment);
    token->spelling = segment.text;
    (token->normalized ? state.normalized_added : state.raw_added).add(*token, token->spelling);
  }
}

void index_ids(TokenizerState& state) {
  const Vocabulary& vocabulary = state.bpe.vocabulary();
  std::size_t size = vocabulary.size();
  for (const auto& [id, token] : state.added) size = std::max(size, static_cast<std::size_t>(id) + 1);
  state.entries.resize(size);
  for (std::int32_t id = 0; static_cast<std::size_t>(id) < vocabulary.size(); ++id) {
    if (vocabulary.contains(id))
      state.entries[static_cast<std::size_t>(id)] = {vocabulary.token(id), true, false};
  }
  for (const auto& [id, token] : state.added) {
    state.entries[static_cast<std::size_t>(id)] = {token.spelling, true, token.special};
  }
}

void check_postprocessor(const JsonNode& root, const TokenizerState& state) {
  const auto known = [&state](std::int32_t id) {
    return static_cast<std::size_t>(id) < state.entries.size() &&
           state.entries[static_cast<std::size_t>(id)].known;
  };
  if (const auto unknown = state.postprocessors.first_unknown(known)) {
    root.at("post_processor").fail(fmt::format("inserts id {}, which no token has", *unknown));
  }
}

}  // namespace

std::shared_ptr<TokenizerState> parse_tokenizer(std::string_view json, std::string_view source) {
  const nlohmann::json document = parse_json(json, source);
  const JsonNode root(document, source);
  auto state = std::make_shared<TokenizerState>(parse_bpe(root.at("model"), json.size()));
  state->source = source;
  if (root.has("normalizer")) state->normalizer = make_normalizer(root.at("normalizer"));
  if (root.has("pre_tokenizer")) state->pretokenizers = PreTokenizers(root.at("pre_tokenizer"));
  if (root.has("post_processor")) state->postprocessors = PostProcessors(root.at("post_processor"));
  if (root.has("decoder")) state->decoder = Decoder(root.at("decoder"));
  add_tokens(root, *state, json.size());
  index_added(*state);
  index_ids(*state);
  check_postprocessor(root, *state);
  state->bytes_to_model = state->pretokenizers.ends_in_byte_level() && state->bpe.has_byte_alphabet();
  if (state->pretokenizers.ends_in_byte_level() && !state->bytes_to_model)
    state->pretokenizers.map_bytes_here();
  return state;
}

}  // namespace ridge
