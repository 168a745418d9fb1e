// Loads, stores and atomic operations: global addresses are the program's own.
#include <fmt/format.h>
#include <algorithm>

#include "tests/emulated_gpu/ops.h"

namespace ridge::emulated {
namespace {

enum class Space { generic, shared };

std::byte* global_at(std::uint64_t address, std::size_t bytes) {
  if (address < 4096) throw std::runtime_error(fmt::format("address {:#x} is none", address));
  if (address % bytes != 0)
    throw std::runtime_error(fmt::format("address {:#x} is not a multiple of {} bytes", address, bytes));
  return reinterpret_cast<std::byte*>(address);
}

template <Space kSpace>
std::byte* place(Warp& w, const Instruction& i, int lane, std::size_t bytes) {
  if constexpr (kSpace == Space::shared) {
    const auto address = w.get<std::uint64_t>(i.from[0], lane) + static_cast<std::uint64_t>(i.offset);
    return w.block.shared_at(address & 0xFFFFFFFFu, bytes);
  } else {
    return global_at(w.get<std::uint64_t>(i.from[0], lane) + static_cast<std::uint64_t>(i.offset), bytes);
  }
}

// Smaller than a register: signed ones widen with their sign.
template <class T>
using Wide = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;

template <class T, Space kSpace>
void load(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    const std::byte* from = place<kSpace>(w, i, l, sizeof(T) * i.to.size());
    for (std::size_t k = 0; k < i.to.size(); ++k) {
      T value;
      std::memcpy(&value, from + k * sizeof(T), sizeof(T));
      w.set(i.to[k], l, static_cast<Wide<T>>(value));
    }
  });
}
template <class T, Space kSpace>
void store(Warp& w, const Instruction& i, Mask mask) {
  each(mask, [&](int l) {
    std::byte* to = place<kSpace>(w, i, l, sizeof(T) * (i.from.size() - 1));
    for (std::size_t k = 1; k < i.from.size(); ++k) {
      const T value = w.get<T>(i.from[k], l);
      std::memcpy(to + (k - 1) * sizeof(T), &value, sizeof(T));
    }
  });
}

template <class T, class F>
void modify(Warp& w, const Instruction& i, Mask mask, bool shared, const F& f) {
  each(mask, [&](int l) {
    std::byte* at =
        shared ? place<Space::shared>(w, i, l, sizeof(T)) : place<Space::generic>(w, i, l, sizeof(T));
    T old;
    std::memcpy(&old, at, sizeof(T));
    const T value = f(old, w.get<T>(i.from[1], l), i.from.size() > 2 ? w.get<T>(i.from[2], l) : T{});
    std::memcpy(at, &value, sizeof(T));
    if (!i.to.empty()) w.set<T>(i.to[0], l, old);
  });
}
template <class T, auto kOp>
Handler atomic(bool shared) {
  if (shared) return [](Warp& w, const Instruction& i, Mask m) { modify<T>(w, i, m, true, kOp); };
  return [](Warp& w, const Instruction& i, Mask m) { modify<T>(w, i, m, false, kOp); };
}
template <class T>
Handler atomic_of(const Opcode& op, bool shared) {
  if (op.has("add")) return atomic<T, [](T a, T b, T) { return static_cast<T>(a + b); }>(shared);
  if (op.has("min")) return atomic<T, [](T a, T b, T) { return std::min(a, b); }>(shared);
  if (op.has("max")) return atomic<T, [](T a, T b, T) { return std::max(a, b); }>(shared);
  if (op.has("exch")) return atomic<T, [](T, T b, T) { return b; }>(shared);
  if constexpr (std::is_integral_v<T>) {
    if (op.has("cas")) return atomic<T, [](T a, T b, T c) { return a == b ? c : a; }>(shared);
    if (op.has("or")) return atomic<T, [](T a, T b, T) { return static_cast<T>(a | b); }>(shared);
    if (op.has("and")) return atomic<T, [](T a, T b, T) { return static_cast<T>(a & b); }>(shared);
    if (op.has("inc"))
      return atomic<T, [](T a, T b, T) { return a >= b ? T{0} : static_cast<T>(a + 1); }>(shared);
  }
  return nullptr;
}

// Floats move as bits.
std::string_view bits_of(const std::string& type) {
  if (type == "f32") return "b32";
  return type == "f64" ? "b64" : std::string_view(type);
}

}  // namespace

bool choose_memory(const Opcode& op, Instruction& i) {
  const bool shared = op.has("shared") || op.has("shared::cta") || op.has("shared::cluster");
  if (op.name == "ld") {
    i.run = for_integer(bits_of(op.type()), [&]<class T>() -> Handler {
      return shared ? load<T, Space::shared> : load<T, Space::generic>;
    });
  } else if (op.name == "st") {
    i.run = for_integer(bits_of(op.type()), [&]<class T>() -> Handler {
      return shared ? store<T, Space::shared> : store<T, Space::generic>;
    });
  } else if (op.name == "atom" || op.name == "red") {
    const auto make = [&]<class T>() { return atomic_of<T>(op, shared); };
    i.run = for_integer(op.type(), make);
    if (i.run == nullptr) i.run = for_float(op.type(), make);
  }
  return i.run != nullptr;
}

}  // namespace ridge::emulated
