// Tensor cores' products, and matrices of 8 by 8 as a warp holds them. g = lane / 4, q = lane % 4.
#include <cmath>

#include "tests/emulated_gpu/floats.h"
#include "tests/emulated_gpu/ops.h"

namespace ridge::emulated {
namespace {

constexpr int kRows = 16, kColumns = 8;

// The operands of mma.m16n8, in whole: `kEach` elements of `kBits` in a register.
template <class T, int kDepth>
struct Operands {
  T a[kRows][kDepth], b[kDepth][kColumns];
};

// a: rows g and g + 8 by turns, then the second half of the depth; b: column g.
template <class T, int kDepth, auto kElement>
Operands<T, kDepth> operands(Warp& w, const Instruction& i) {
  constexpr int kEach = kDepth / 8;  // elements of a register
  Operands<T, kDepth> o;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int e = 0; e < kEach; ++e) {
        const int k = half * kDepth / 2 + q * kEach + e;
        for (int low = 0; low < 2; ++low)
          o.a[g + 8 * low][k] =
              kElement(w.get<std::uint32_t>(i.from[static_cast<std::size_t>(2 * half + low)], lane), e);
        o.b[k][g] = kElement(w.get<std::uint32_t>(i.from[static_cast<std::size_t>(4 + half)], lane), e);
      }
    }
  }
  return o;
}

template <class T, class Sum, int kDepth, auto kElement>
void multiply(Warp& w, const Instruction& i, Mask mask) {
  if (mask != kAll) throw std::runtime_error("a product of tensor cores without the whole warp");
  const auto o = operands<T, kDepth, kElement>(w, i);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (std::size_t e = 0; e < 4; ++e) {
      const int row = lane / 4 + (e < 2 ? 0 : 8), column = lane % 4 * 2 + static_cast<int>(e % 2);
      auto sum = w.get<Sum>(i.from[6 + e], lane);
      for (int k = 0; k < kDepth; ++k)
        sum += static_cast<Sum>(o.a[row][k]) * static_cast<Sum>(o.b[k][column]);
      w.set(i.to[e], lane, sum);
    }
  }
}

std::uint16_t half_of(std::uint32_t word, int e) { return static_cast<std::uint16_t>(word >> (16 * e)); }
constexpr auto kBf16 = [](std::uint32_t word, int e) { return from_bf16(half_of(word, e)); };
constexpr auto kF16 = [](std::uint32_t word, int e) { return from_f16(half_of(word, e)); };
constexpr auto kSigned = [](std::uint32_t word, int e) { return static_cast<std::int8_t>(word >> (8 * e)); };

std::uint32_t pair_of(const std::uint16_t (&m)[8][8], int row, int column, bool across) {
  const std::uint32_t low = across ? m[column][row] : m[row][column];
  const std::uint32_t high = across ? m[column + 1][row] : m[row][column + 1];
  return high << 16 | low;
}

// Lanes 8 k .. say where the rows of matrix k lie.
void load_matrices(Warp& w, const Instruction& i, Mask) {
  for (std::size_t k = 0; k < i.to.size(); ++k) {
    std::uint16_t m[8][8];
    for (int row = 0; row < 8; ++row) {
      const auto at = w.get<std::uint32_t>(i.from[0], static_cast<int>(8 * k) + row) +
                      static_cast<std::uint32_t>(i.offset);
      std::memcpy(m[row], w.block.shared_at(at, sizeof(m[row])), sizeof(m[row]));
    }
    for (int lane = 0; lane < kLanes; ++lane)
      w.set(i.to[k], lane, pair_of(m, lane / 4, lane % 4 * 2, i.table != 0));
  }
}
void move_matrix(Warp& w, const Instruction& i, Mask) {
  std::uint16_t m[8][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto word = w.get<std::uint32_t>(i.from[0], lane);
    for (int e = 0; e < 2; ++e) m[lane / 4][lane % 4 * 2 + e] = half_of(word, e);
  }
  for (int lane = 0; lane < kLanes; ++lane) w.set(i.to[0], lane, pair_of(m, lane / 4, lane % 4 * 2, true));
}

Handler product(const Opcode& op) {
  const std::string whole = op.whole();
  const auto ends = [&](std::string_view with) { return whole.ends_with(with); };
  if (ends("m16n8k16.row.col.f32.bf16.bf16.f32")) return multiply<float, float, 16, kBf16>;
  if (ends("m16n8k16.row.col.f32.f16.f16.f32")) return multiply<float, float, 16, kF16>;
  if (ends("m16n8k32.row.col.s32.s8.s8.s32")) return multiply<std::int8_t, std::int32_t, 32, kSigned>;
  return nullptr;
}

}  // namespace

bool choose_tensor(const Opcode& op, Instruction& i) {
  i.flow = Flow::together;
  if (op.name == "mma") return (i.run = product(op)) != nullptr;
  i.table = op.has("trans") ? 1 : 0;
  if (op.name == "ldmatrix" && op.has("m8n8")) return i.run = load_matrices, true;
  if (op.name == "movmatrix") return i.run = move_matrix, true;
  i.flow = Flow::next;
  return false;
}

void choose_handler(const Opcode& opcode, Instruction& instruction) {
  for (const auto choose : {choose_tensor, choose_together, choose_copy, choose_memory, choose_convert,
                            choose_float, choose_integer}) {
    if (choose(opcode, instruction)) return;
    instruction.run = nullptr;
    instruction.flow = Flow::next;
  }
  throw std::runtime_error("PTX: " + opcode.whole() + " is not emulated");
}

}  // namespace ridge::emulated
