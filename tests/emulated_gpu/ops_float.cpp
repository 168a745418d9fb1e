// f32 and f64; pairs of bf16. Approximate instructions are exact here but for one rounding.
#include <cfenv>
#include <cmath>

#include "tests/emulated_gpu/floats.h"
#include "tests/emulated_gpu/ops.h"

namespace ridge::emulated {
namespace {

// A NaN is the lesser of two that are not both NaN.
template <class T>
constexpr auto kMin = [](T a, T b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) ? b : a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
};
template <class T>
constexpr auto kMax = [](T a, T b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) ? b : a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
};

// Rounded to -inf: the exact product and sum of f32 have at most one rounding in extended precision.
void fma_down(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const auto a = w.get<float>(i.from[0], l), b = w.get<float>(i.from[1], l), c = w.get<float>(i.from[2], l);
    const long double exact = static_cast<long double>(a) * b + static_cast<long double>(c);
    auto out = static_cast<float>(exact);
    if (static_cast<long double>(out) > exact) out = std::nextafter(out, -INFINITY);
    w.set(i.to[0], l, out);
  });
}

template <class T>
Handler arithmetic(const Opcode& op) {
  const std::string& n = op.name;
  if (op.has("rp") || op.has("rz") || (op.has("rm") && n != "fma")) return nullptr;
  if (n == "add") return binary<T, T, [](T a, T b) { return a + b; }>;
  if (n == "sub") return binary<T, T, [](T a, T b) { return a - b; }>;
  if (n == "mul") return binary<T, T, [](T a, T b) { return a * b; }>;
  if (n == "div") return binary<T, T, [](T a, T b) { return a / b; }>;
  if (n == "fma" || n == "mad") {
    if (op.has("rm")) return std::is_same_v<T, float> ? fma_down : nullptr;
    return ternary<T, T, [](T a, T b, T c) { return std::fma(a, b, c); }>;
  }
  if (n == "min") return op.has("NaN") ? nullptr : binary<T, T, kMin<T>>;
  if (n == "max") return op.has("NaN") ? nullptr : binary<T, T, kMax<T>>;
  if (n == "neg") return unary<T, T, [](T a) { return -a; }>;
  if (n == "abs") return unary<T, T, [](T a) { return std::fabs(a); }>;
  if (n == "sqrt") return unary<T, T, [](T a) { return std::sqrt(a); }>;
  if (n == "rsqrt")
    return unary<T, T, [](T a) { return static_cast<T>(1 / std::sqrt(static_cast<double>(a))); }>;
  if (n == "rcp") return unary<T, T, [](T a) { return 1 / a; }>;
  if (n == "ex2") return unary<T, T, [](T a) { return std::exp2(a); }>;
  if (n == "lg2") return unary<T, T, [](T a) { return std::log2(a); }>;
  if (n == "sin") return unary<T, T, [](T a) { return std::sin(a); }>;
  if (n == "cos") return unary<T, T, [](T a) { return std::cos(a); }>;
  if (n == "tanh") return unary<T, T, [](T a) { return std::tanh(a); }>;
  if (n == "copysign") return binary<T, T, [](T sign, T size) { return std::copysign(size, sign); }>;
  return nullptr;
}

template <auto kOp>
void of_pairs(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    std::uint32_t words[3] = {};
    for (std::size_t k = 0; k < i.from.size(); ++k) words[k] = w.get<std::uint32_t>(i.from[k], l);
    std::uint32_t out = 0;
    for (int half = 0; half < 2; ++half) {
      const auto part = [&](int k) { return from_bf16(static_cast<std::uint16_t>(words[k] >> (16 * half))); };
      out |= std::uint32_t{to_bf16(kOp(part(0), part(1), part(2)))} << (16 * half);
    }
    w.set(i.to[0], l, out);
  });
}

Handler pairs(const std::string& n) {
  if (n == "add") return of_pairs<[](float a, float b, float) { return a + b; }>;
  if (n == "sub") return of_pairs<[](float a, float b, float) { return a - b; }>;
  if (n == "mul") return of_pairs<[](float a, float b, float) { return a * b; }>;
  if (n == "fma") return of_pairs<[](float a, float b, float c) { return std::fma(a, b, c); }>;
  if (n == "max") return of_pairs<[](float a, float b, float) { return kMax<float>(a, b); }>;
  if (n == "min") return of_pairs<[](float a, float b, float) { return kMin<float>(a, b); }>;
  if (n == "neg") return of_pairs<[](float a, float, float) { return -a; }>;
  return nullptr;
}

constexpr std::string_view kCompares[] = {"eq", "ne",  "lt",  "le",  "gt",  "ge",  "lo",  "ls",  "hi",
                                          "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};

template <class T, std::size_t kIndex>
bool compares(T a, T b) {
  constexpr std::string_view kHow = kCompares[kIndex];
  bool nan = false;
  if constexpr (std::is_floating_point_v<T>) nan = std::isnan(a) || std::isnan(b);
  if constexpr (kHow == "eq") return !nan && a == b;
  if constexpr (kHow == "ne") return !nan && a != b;
  if constexpr (kHow == "lt" || kHow == "lo") return a < b;
  if constexpr (kHow == "le" || kHow == "ls") return a <= b;
  if constexpr (kHow == "gt" || kHow == "hi") return a > b;
  if constexpr (kHow == "ge" || kHow == "hs") return a >= b;
  if constexpr (kHow == "equ") return nan || a == b;
  if constexpr (kHow == "neu") return nan || a != b;
  if constexpr (kHow == "ltu") return nan || a < b;
  if constexpr (kHow == "leu") return nan || a <= b;
  if constexpr (kHow == "gtu") return nan || a > b;
  if constexpr (kHow == "geu") return nan || a >= b;
  if constexpr (kHow == "num") return !nan;
  return nan;
}

enum class Join : std::uint32_t { none, both, either, one };

// p|q = compare(a, b), joined with a third operand as `table` says.
template <class T, std::size_t kIndex>
void set_predicate(Warp& w, const Instruction& i, Mask mask) {
  const auto join = static_cast<Join>(i.table);
  each(mask, [&](int l) {
    const bool holds = compares<T, kIndex>(w.get<T>(i.from[0], l), w.get<T>(i.from[1], l));
    const auto joined = [&](bool value) {
      if (join == Join::none) return value;
      const bool c = ((w.get<std::uint8_t>(i.from[2], l) & 1) != 0) != i.negated_from;
      return join == Join::both ? value && c : (join == Join::either ? value || c : value != c);
    };
    w.set<std::uint8_t>(i.to[0], l, joined(holds) ? 1 : 0);
    if (i.to.size() > 1) w.set<std::uint8_t>(i.to[1], l, joined(!holds) ? 1 : 0);
  });
}

template <class T, std::size_t... kIndices>
Handler comparison(const std::string& how, std::index_sequence<kIndices...>) {
  Handler found = nullptr;
  ((kCompares[kIndices] == how ? void(found = set_predicate<T, kIndices>) : void()), ...);
  return found;
}

bool choose_compare(const Opcode& op, Instruction& i) {
  i.table =
      static_cast<std::uint32_t>(op.has("and") ? Join::both : (op.has("or") ? Join::either : Join::one));
  if (i.from.size() < 3) i.table = static_cast<std::uint32_t>(Join::none);
  const auto make = [&]<class T>() {
    return comparison<T>(op.parts.front(), std::make_index_sequence<std::size(kCompares)>());
  };
  i.run = for_integer(op.type(), make);
  if (i.run == nullptr) i.run = for_float(op.type(), make);
  return i.run != nullptr;
}

void select(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const bool first = (w.get<std::uint8_t>(i.from[2], l) & 1) != 0;
    w.set(i.to[0], l, w.get<std::uint64_t>(i.from[first ? 0 : 1], l));
  });
}

}  // namespace

bool choose_float(const Opcode& op, Instruction& i) {
  if (op.name == "setp") return choose_compare(op, i);
  if (op.name == "selp") return i.run = select, true;
  if (op.type() == "bf16x2") return (i.run = pairs(op.name)) != nullptr;
  i.run = for_float(op.type(), [&]<class T>() { return arithmetic<T>(op); });
  return i.run != nullptr;
}

}  // namespace ridge::emulated
