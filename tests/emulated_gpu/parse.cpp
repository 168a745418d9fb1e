// PTX text to programs (PTX ISA 9.0, the part that nvcc writes for kernels without calls).
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "tests/emulated_gpu/scanner.h"

namespace ridge::emulated {
namespace {

unsigned bytes_of(std::string_view type) {
  if (type == ".pred") return 1;
  const std::size_t digit = type.find_first_of("0123456789");
  unsigned bits = 0;
  std::from_chars(type.data() + digit, type.data() + type.size(), bits);
  return bits / 8;
}

struct Declared {
  std::string name;
  unsigned align = 1, bytes = 0;
  bool unsized = false;
};

// ".shared .align 16 .b8 name[64]", after its space; a parameter's likewise.
Declared declared(Scanner& scan) {
  Declared d;
  unsigned element = 1;
  for (std::string word = scan.word();; word = scan.word()) {
    if (word == ".align") {
      d.align = static_cast<unsigned>(scan.integer());
    } else if (word == ".ptr" || word == ".global" || word == ".visible") {
      continue;
    } else if (word.starts_with('.')) {
      element = bytes_of(word);
      d.align = std::max(d.align, element);
    } else {
      d.name = word;
      break;
    }
  }
  d.bytes = element;
  while (scan.take('[')) {
    if (scan.take(']')) {
      d.unsized = true;
    } else {
      d.bytes *= static_cast<unsigned>(scan.integer());
      scan.expect(']');
    }
  }
  return d;
}

unsigned place(unsigned& end, const Declared& d) {
  const unsigned at = (end + d.align - 1) / d.align * d.align;
  end = at + d.bytes;
  return at;
}

}  // namespace

/// The body of one kernel.
class Parser {
 public:
  Parser(Module& module, std::string_view text) : module_(module), scan_(text) {
    for (const auto& [name, bytes] : module.shared_) {
      if (bytes == 0) symbols_[name] = {Preset::Kind::dynamic_shared, 0};
    }
  }
  Program parse() {
    heading();
    scopes_.push_back({next_scope_++, {}});
    while (!scopes_.empty()) statement();
    for (auto& [at, label, chain] : jumps_) program_.code[at].target = find_label(label, chain);
    Instruction end;
    end.flow = Flow::leave;
    end.text = "the end";
    program_.code.push_back(end);
    return std::move(program_);
  }

 private:
  struct Scope {
    int id;
    std::map<std::string, std::uint32_t> registers;  // by name, or by prefix and '<'
  };
  struct Symbol {
    Preset::Kind kind;
    std::uint64_t offset;
  };
  struct Jump {
    std::size_t at;
    std::string label;
    std::vector<int> chain;
  };

  // "name(.param ..., ...) .maxntid 256 ... {"
  void heading() {
    scan_.word();
    if (scan_.take('(')) {
      while (!scan_.take(')')) {
        if (scan_.word() != ".param") scan_.fail("a parameter");
        const Declared d = declared(scan_);
        const unsigned at = place(program_.parameter_bytes, d);
        symbols_[d.name] = {Preset::Kind::parameter, at};
        program_.parameter_offsets.push_back(at);
        program_.parameter_sizes.push_back(d.bytes);
        scan_.take(',');
      }
    }
    while (!scan_.take('{')) {
      const std::string word = scan_.word();
      if (word != ".reqnctapercluster") continue;
      unsigned* sizes[] = {&program_.cluster.x, &program_.cluster.y, &program_.cluster.z};
      for (unsigned* size : sizes) {
        *size = static_cast<unsigned>(scan_.integer());
        if (!scan_.take(',')) break;
      }
    }
  }

  void statement() {
    if (scan_.take('}')) return scopes_.pop_back();
    if (scan_.take('{')) return scopes_.push_back({next_scope_++, {}});
    if (scan_.take(';')) return;
    scan_.begin_statement();
    if (scan_.next() == '@') return guarded();
    const std::string word = scan_.word();
    if (word.starts_with('.')) return directive(word);
    if (scan_.take(':')) {
      labels_[{scopes_.back().id, word}] = static_cast<std::uint32_t>(program_.code.size());
      return;
    }
    instruction(word, Instruction());
  }

  void guarded() {
    Instruction i;
    scan_.expect('@');
    i.guard_negated = scan_.take('!');
    i.guard = find_register(scan_.word());
    instruction(scan_.word(), std::move(i));
  }

  void directive(const std::string& word) {
    if (word == ".reg") return registers();
    if (word == ".shared" || word == ".local") {
      const bool shared = word == ".shared";
      const Declared d = declared(scan_);
      const unsigned at = place(shared ? program_.static_shared_bytes : program_.local_bytes, d);
      symbols_[d.name] = {shared ? Preset::Kind::shared : Preset::Kind::local, at};
      return scan_.expect(';');
    }
    if (word == ".loc") return scan_.skip_line();
    scan_.skip_past(';');  // .pragma
  }

  void registers() {
    scan_.word();
    do {
      std::string name = scan_.word();
      std::uint32_t count = 1;
      if (scan_.take('<')) {
        count = static_cast<std::uint32_t>(scan_.integer());
        name += '<';
        scan_.expect('>');
      }
      scopes_.back().registers[name] = program_.registers;
      program_.registers += count;
    } while (scan_.take(','));
    scan_.expect(';');
  }

  std::optional<std::uint32_t> declared_register(const std::string& name) const {
    const std::size_t last = name.find_last_not_of("0123456789");
    const std::string prefix = name.substr(0, last + 1) + '<';
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto it = scope->registers.find(name); it != scope->registers.end()) return it->second;
      const auto it = scope->registers.find(prefix);
      if (it == scope->registers.end() || last + 1 == name.size()) continue;
      return it->second + static_cast<std::uint32_t>(std::stoul(name.substr(last + 1)));
    }
    return std::nullopt;
  }

  std::uint32_t preset(const Preset& wanted) {
    const auto key = std::make_tuple(static_cast<int>(wanted.kind), wanted.value, wanted.name);
    const auto [it, isnew] = preset_at_.try_emplace(key, program_.registers);
    if (isnew) {
      program_.presets.push_back(wanted);
      program_.presets.back().at = program_.registers++;
    }
    return it->second;
  }
  std::uint32_t constant(std::uint64_t value) { return preset({0, Preset::Kind::value, value, {}}); }

  std::uint32_t find_register(const std::string& name) {
    if (const auto at = declared_register(name)) return *at;
    if (name == "_") return program_.registers++;  // a result that nobody wants
    if (name == "WARP_SZ") return constant(kWarpSize);
    if (const auto it = symbols_.find(name); it != symbols_.end())
      return preset({0, it->second.kind, it->second.offset, {}});
    if (const auto it = module_.shared_.find(name);
        it != module_.shared_.end()) {  // of all its kernels that use it
      const unsigned at = place(program_.static_shared_bytes, {name, 16, it->second, false});
      symbols_[name] = {Preset::Kind::shared, at};
      return preset({0, Preset::Kind::shared, at, {}});
    }
    if (void* variable = module_.address_of(name)) return constant(reinterpret_cast<std::uint64_t>(variable));
    if (name.starts_with('%')) return preset({0, Preset::Kind::special, 0, name});
    scan_.fail("unknown name " + name);
  }

  std::uint32_t single(Instruction& i) {
    if (scan_.take('!')) i.negated_from = true;
    const char next = scan_.next();
    if (next == '-' || (next >= '0' && next <= '9')) return constant(scan_.number());
    return find_register(scan_.word());
  }

  // One operand, which may stand for several registers.
  void operand(Instruction& i, std::vector<std::uint32_t>& into) {
    if (scan_.take('{')) {
      do into.push_back(single(i));
      while (scan_.take(','));
      return scan_.expect('}');
    }
    if (scan_.take('[')) {
      const std::uint32_t base = single(i);
      const std::int64_t offset = scan_.take('+') ? scan_.integer() : 0;
      scan_.expect(']');
      // Of two addresses the second has its offset added when the first one's is the instruction's.
      if (offset != 0 && addresses_ > 0) scan_.fail("an offset of a second address");
      if (addresses_++ == 0) i.offset = offset;
      return into.push_back(base);
    }
    into.push_back(single(i));
    if (scan_.take('|')) into.push_back(single(i));
  }

  static bool has_result(const Opcode& op) {
    static const std::set<std::string> kNone{"st",     "red",      "bar",       "barrier", "cp",
                                             "membar", "fence",    "ret",       "exit",    "griddepcontrol",
                                             "trap",   "prefetch", "nanosleep", "brkpt",   "discard"};
    if (op.name == "bar" || op.name == "barrier") return op.has("red");
    if (op.name == "mbarrier") return !op.has("init") && !op.has("inval");
    return !kNone.contains(op.name);
  }

  void instruction(const std::string& word, Instruction i) {
    Opcode op;
    std::string part;
    for (const char c : word + '.') {
      if (c != '.') {
        part += c;
        continue;
      }
      if (op.name.empty()) {
        op.name = part;
      } else {
        op.parts.push_back(part);
      }
      part.clear();
    }
    if (op.name == "bra") {
      jump(i);
    } else {
      addresses_ = 0;
      bool result = has_result(op);
      if (!scan_.take(';')) {
        do {
          operand(i, result ? i.to : i.from);
          result = false;
        } while (scan_.take(','));
        scan_.expect(';');
      }
      choose_handler(op, i);
    }
    i.text = scan_.statement();
    program_.code.push_back(std::move(i));
  }

  void jump(Instruction& i) {
    i.flow = Flow::branch;
    Jump j{program_.code.size(), scan_.word(), {}};
    for (const Scope& scope : scopes_) j.chain.push_back(scope.id);
    jumps_.push_back(std::move(j));
    scan_.expect(';');
  }

  std::uint32_t find_label(const std::string& label, const std::vector<int>& chain) const {
    for (auto scope = chain.rbegin(); scope != chain.rend(); ++scope) {
      if (const auto it = labels_.find({*scope, label}); it != labels_.end()) return it->second;
    }
    throw std::runtime_error("no label " + label);
  }

  static constexpr std::uint64_t kWarpSize = 32;
  Module& module_;
  Scanner scan_;
  Program program_;
  std::vector<Scope> scopes_;
  int next_scope_ = 0, addresses_ = 0;
  std::map<std::string, Symbol> symbols_;
  std::map<std::pair<int, std::string>, std::uint32_t> labels_;
  std::vector<Jump> jumps_;
  std::map<std::tuple<int, std::uint64_t, std::string>, std::uint32_t> preset_at_;
};

bool Opcode::has(std::string_view part) const {
  return std::find(parts.begin(), parts.end(), part) != parts.end();
}
const std::string& Opcode::type() const { return parts.empty() ? name : parts.back(); }
std::string Opcode::whole() const {
  std::string text = name;
  for (const std::string& part : parts) text += '.' + part;
  return text;
}

namespace {

// ".global .align 4 .b8 name[3] = {1, 2, 3};" after its space.
void read_variable(Scanner& scan, std::map<std::string, Variable>& into) {
  const std::size_t begin = scan.position();
  const Declared d = declared(scan);
  unsigned element = 1;
  Scanner again(scan.text(), begin);
  for (std::string word = again.word(); word != d.name; word = again.word()) {
    if (word.starts_with('.') && word != ".align" && word != ".ptr") element = bytes_of(word);
  }
  Variable& v = into[d.name];
  v.bytes.assign(std::max(d.bytes, 1u), std::byte{0});
  if (scan.take('=')) {
    const bool list = scan.take('{');
    for (std::size_t at = 0; !scan.take('}'); at += element) {
      const std::uint64_t value = scan.number();
      std::copy_n(reinterpret_cast<const std::byte*>(&value), element,
                  v.bytes.begin() + static_cast<long>(at));
      scan.take(',');
      if (!list) break;
    }
  }
  scan.expect(';');
}

}  // namespace

Module::Module(std::string ptx) : text_(std::move(ptx)) {
  Scanner scan(text_);
  while (!scan.at_end()) {
    const std::string word = scan.word();
    if (word == ".version" || word == ".target" || word == ".address_size" || word == ".file") {
      scan.skip_line();
    } else if (word == ".entry" || word == ".func") {
      const std::size_t begin = scan.position();
      const std::string name = scan.word();
      scan.skip_body();
      if (word == ".entry") bodies_[name] = {begin, scan.position()};
    } else if (word == ".global" || word == ".const") {
      read_variable(scan, variables_);
    } else if (word == ".shared") {
      const Declared d = declared(scan);
      shared_[d.name] = d.unsized ? 0 : d.bytes;
      scan.expect(';');
    }
  }
}

Program& Module::program(const std::string& kernel) {
  const auto known = programs_.find(kernel);
  if (known != programs_.end()) return known->second;
  const auto body = bodies_.find(kernel);
  if (body == bodies_.end()) throw std::runtime_error("no kernel " + kernel);
  const std::string_view text(text_.data() + body->second.begin, body->second.end - body->second.begin);
  return programs_[kernel] = Parser(*this, text).parse();
}

void* Module::address_of(const std::string& variable) {
  const auto it = variables_.find(variable);
  return it == variables_.end() ? nullptr : it->second.bytes.data();
}

std::shared_ptr<Module> parse_module(std::string_view ptx) {
  return std::make_shared<Module>(std::string(ptx));
}
bool has_kernel(const Module& module, const std::string& name) { return module.has(name); }
unsigned static_shared_bytes(Module& module, const std::string& name) {
  return module.program(name).static_shared_bytes;
}
std::vector<unsigned> parameter_sizes(Module& module, const std::string& name) {
  return module.program(name).parameter_sizes;
}
void* address_of_variable(Module& module, const std::string& name) { return module.address_of(name); }

}  // namespace ridge::emulated
