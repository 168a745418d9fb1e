// Any bytes give a tokenizer or a UserError; a tokenizer encodes any text and decodes its own ids.
// Input: a tokenizer.json, a line "%%", the text.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/text/tokenizer.h"
#include "core/text/utf8.h"

namespace {

void exercise(const ridge::Tokenizer& tokenizer, std::string_view text) {
  for (const bool special : {false, true}) {
    const std::vector<std::int32_t> ids = tokenizer.encode(text, special);
    const std::string decoded = tokenizer.decode(ids, special);
    ridge::check(ridge::utf8::is_valid(tokenizer.decode_utf8(ids, special)), "decode_utf8 gives UTF-8");
    ridge::DecodeStream stream(tokenizer, special);
    std::string streamed;
    for (const std::int32_t id : ids) streamed += stream.push(id);
    streamed += stream.flush();
    ridge::check(streamed == ridge::utf8::replace_invalid(decoded), "a stream gives what decode gives");
  }
  tokenizer.encode_ordinary(text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  constexpr std::string_view kCut = "\n%%\n";
  const std::size_t cut = input.find(kCut);
  const std::string_view text =
      cut == std::string_view::npos ? "The ridge \xF0\x9F\x98\x80\xFF ran." : input.substr(cut + kCut.size());
  try {
    exercise(ridge::Tokenizer::from_json(input.substr(0, cut), "fuzz.json"), text.substr(0, 512));
  } catch (const ridge::UserError&) {
    return 0;  // what a bad file gets
  }
  return 0;
}
