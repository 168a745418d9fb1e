// A kernel's PTX as instructions for a warp: what parse.cpp makes and warp.cpp runs.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tests/emulated_gpu/machine.h"

namespace ridge::emulated {

class Warp;
struct Instruction;
using Mask = std::uint32_t;  // a bit a lane

/// What an instruction does to the lanes of `mask`.
using Handler = void (*)(Warp& warp, const Instruction& instruction, Mask mask);

enum class Flow : std::uint8_t {
  next,
  branch,
  leave,          // the thread ends
  together,       // needs all lanes of a mask at once
  block_barrier,  // bar.sync and its like
  cluster_wait,
};

inline constexpr std::uint32_t kNoRegister = ~std::uint32_t{0};

struct Instruction {
  Handler run = nullptr;
  Flow flow = Flow::next;
  std::uint32_t guard = kNoRegister;  // a predicate
  bool guard_negated = false;
  std::vector<std::uint32_t> to, from;  // registers; immediates are registers that hold them
  std::int64_t offset = 0;              // of its address
  std::uint32_t target = 0;             // of a branch
  std::uint32_t mask_at = kNoRegister;  // together: the register of the mask; none: all lanes
  int count = 1;                        // of a vector; bytes of a copy
  std::uint32_t table = 0;              // lop3's, and other small constants
  bool negated_from = false;            // the last predicate of `from`
  std::string text;                     // for messages
};

struct Opcode {
  std::string name;                // "ld"
  std::vector<std::string> parts;  // "global", "v4", "f32"
  bool has(std::string_view part) const;
  const std::string& type() const;  // the last part
  std::string whole() const;
};

/// A register that has its value before the kernel begins.
struct Preset {
  std::uint32_t at;
  enum class Kind { value, special, parameter, shared, dynamic_shared, local, global } kind;
  std::uint64_t value = 0;  // or an offset
  std::string name = {};
};

struct Program {
  std::vector<Instruction> code;
  std::uint32_t registers = 0;
  std::vector<Preset> presets;
  std::vector<unsigned> parameter_offsets, parameter_sizes;
  unsigned parameter_bytes = 0, static_shared_bytes = 0, local_bytes = 0;
  Size3 cluster;  // as the source fixes it
};

struct Variable {
  std::vector<std::byte> bytes;
};

/// The PTX of one translation unit. Kernels are parsed when they are first asked for.
class Module {
 public:
  explicit Module(std::string ptx);
  bool has(const std::string& kernel) const { return bodies_.contains(kernel); }
  Program& program(const std::string& kernel);
  void* address_of(const std::string& variable);

 private:
  friend class Parser;
  struct Body {
    std::size_t begin, end;
  };
  std::string text_;
  std::map<std::string, Body> bodies_;
  std::map<std::string, Program> programs_;
  std::map<std::string, Variable> variables_;
  std::map<std::string, unsigned> shared_;  // static arrays of the whole unit, bytes
};

/// What runs it, and sets its flow; throws where there is none.
void choose_handler(const Opcode& opcode, Instruction& instruction);

}  // namespace ridge::emulated
