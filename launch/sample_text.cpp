#include "launch/sample_text.h"

#include <initializer_list>
#include <span>
#include <string_view>

#include "core/base/random.h"

namespace ridge {
namespace {

using Words = std::span<const std::string_view>;

// Every capital letter begins a name: what a tokenizer and an embedding learn here carries over to other
// texts.
constexpr std::string_view kNames[] = {"Anna", "Ben",   "Clara", "Dora", "Eva",  "Felix", "Gina",
                                       "Hugo", "Ida",   "Jack",  "Kurt", "Lena", "Mia",   "Nora",
                                       "Otto", "Paul",  "Quinn", "Ruth", "Sam",  "Tom",   "Una",
                                       "Vera", "Wanda", "Xenia", "Yves", "Zoe"};
constexpr std::string_view kAnimals[] = {"cat",   "dog",  "bird",  "fox",  "rabbit",
                                         "horse", "frog", "mouse", "duck", "bear"};
constexpr std::string_view kPlaces[] = {"the garden", "the forest", "the river",  "the old house",
                                        "the school", "the hill",   "the market", "the lake"};
constexpr std::string_view kThings[] = {"a red ball",    "a small boat", "a blue hat",  "a sweet apple",
                                        "a shiny stone", "a warm coat",  "a long rope", "a little book"};
constexpr std::string_view kMoods[] = {"happy", "sad", "tired", "proud", "afraid", "kind", "brave", "hungry"};
constexpr std::string_view kActs[] = {"ran",    "walked", "looked",  "sang",
                                      "waited", "played", "laughed", "listened"};

constexpr std::string_view kShips[] = {"Aurora",    "Hope", "Meridian", "Swallow",
                                       "Endeavour", "Juno", "Petrel",   "Vesta"};
constexpr std::string_view kPorts[] = {"Hamburg", "Lisbon", "Bergen", "Genoa",
                                       "Cork",    "Riga",   "Malta",  "Boston"};
constexpr std::string_view kGoods[] = {"timber", "salt", "copper", "wool",
                                       "grain",  "coal", "paper",  "olive oil"};
constexpr std::string_view kWinds[] = {"north", "south", "east", "west", "north east", "south west"};
constexpr std::string_view kSkies[] = {"clear", "overcast", "foggy", "rainy", "stormy", "fair"};
constexpr std::string_view kMonths[] = {"January", "March",     "April",   "June",
                                        "August",  "September", "October", "December"};

class Dice {
 public:
  explicit Dice(RandomKey key) : key_(key) {}
  std::uint32_t below(std::uint32_t bound) { return philox(key_, next_++)[0] % bound; }
  std::string pick(Words words) {
    return std::string(words[below(static_cast<std::uint32_t>(words.size()))]);
  }

 private:
  RandomKey key_;
  std::uint64_t next_ = 0;
};

// Pieces in a braced list are made from left to right; operands of + in whatever order a compiler likes, and
// with them the dice.
std::string joined(std::initializer_list<std::string> pieces) {
  std::string text;
  for (const std::string& piece : pieces) text += piece;
  return text;
}

std::string tale_sentence(Dice& dice, const std::string& name, const std::string& animal) {
  switch (dice.below(7)) {
    case 0:
      return joined({name, " ", dice.pick(kActs), " to ", dice.pick(kPlaces), "."});
    case 1:
      return joined({name, " found ", dice.pick(kThings), " near ", dice.pick(kPlaces), "."});
    case 2:
      return joined({"The ", animal, " was very ", dice.pick(kMoods), "."});
    case 3:
      return joined({"\"I am ", dice.pick(kMoods), ",\" said ", name, "."});
    case 4:
      return joined({"The ", animal, " ", dice.pick(kActs), " and ", name, " ", dice.pick(kActs), " too."});
    case 5:
      return joined({name, " gave the ", animal, " ", dice.pick(kThings), "."});
    default:
      return joined({"They ", dice.pick(kActs), " in ", dice.pick(kPlaces), " all day."});
  }
}

std::string tale(Dice& dice) {
  const std::string name = dice.pick(kNames), animal = dice.pick(kAnimals);
  std::string text = joined({"Once upon a time there was a child named ", name, " who had a ", animal, "."});
  const std::uint32_t sentences = 4 + dice.below(5);
  for (std::uint32_t i = 0; i < sentences; ++i) text += joined({" ", tale_sentence(dice, name, animal)});
  return joined(
      {text, " In the end ", name, " and the ", animal, " went home and were ", dice.pick(kMoods), ".\n\n"});
}

std::string note_sentence(Dice& dice, const std::string& ship) {
  switch (dice.below(5)) {
    case 0:
      return joined({"Wind ", dice.pick(kWinds), " , force ", std::to_string(1 + dice.below(9)), " , sky ",
                     dice.pick(kSkies), " ."});
    case 1:
      return joined({"The ", ship, " carried ", std::to_string(10 + 10 * dice.below(40)), " tons of ",
                     dice.pick(kGoods), " ."});
    case 2:
      return joined({"Price of ", dice.pick(kGoods), " at ", dice.pick(kPorts), " : ",
                     std::to_string(2 + dice.below(90)), " per ton ."});
    case 3:
      return joined({"Arrived at ", dice.pick(kPorts), " on ", std::to_string(1 + dice.below(28)), " ",
                     dice.pick(kMonths), " ."});
    default:
      return joined({"Crew of ", std::to_string(8 + dice.below(30)), " , no losses ."});
  }
}

std::string note(Dice& dice) {
  const std::string ship = dice.pick(kShips);
  std::string text = joined({" = ", ship, " , ", std::to_string(1801 + dice.below(99)), " = \n\n"});
  text += joined({"The ", ship, " sailed from ", dice.pick(kPorts), " to ", dice.pick(kPorts), " ."});
  const std::uint32_t sentences = 3 + dice.below(5);
  for (std::uint32_t i = 0; i < sentences; ++i) text += joined({" ", note_sentence(dice, ship)});
  return joined({text, "\n\n"});
}

}  // namespace

std::string sample_text(SampleKind kind, std::int64_t bytes, std::uint64_t seed) {
  Dice dice({seed, static_cast<std::uint64_t>(kind)});
  std::string text;
  while (static_cast<std::int64_t>(text.size()) < bytes)
    text += kind == SampleKind::tales ? tale(dice) : note(dice);
  return text;
}

}  // namespace ridge
