// The house rules that a machine can check, each a function from sources to a list of what breaks it.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace ridge::house {

/// Path from the root, with '/': text of the file.
using Tree = std::map<std::string, std::string>;
/// One line each: file, line where known, what is wrong.
using Findings = std::vector<std::string>;

/// Sources, scripts and pages below `root`, in the folders of the house.
Tree read_tree(const std::string& root);

/// The text with comments, strings and characters blanked; lines stay where they are.
std::string code_only(std::string_view text);

/// Each folder includes only lower floors, and files of its own room.
Findings floor_findings(const Tree& tree);
/// No file includes itself by way of others.
Findings circle_findings(const Tree& tree);
/// Heavy headers (JSON, HDF5, YAML, Protobuf, MPI, PCRE2) stay out of headers.
Findings heavy_header_findings(const Tree& tree);
/// At most 600 lines a source.
Findings length_findings(const Tree& tree);
/// Headers begin with a comment line and have `#pragma once`.
Findings opening_findings(const Tree& tree);
/// No environment is read outside launch/ and core/base/env.*; nothing ends the process.
Findings forbidden_call_findings(const Tree& tree);
/// No path of the machine on which a file was written.
Findings private_path_findings(const Tree& tree);

struct Function {
  std::string file;
  int line;        // of its opening brace, from 1
  int lines;       // opening to closing brace
  bool is_device;  // __global__ or __device__
};
/// Function definitions of one clang-formatted source, outermost ones only: a lambda belongs to its function.
std::vector<Function> functions_of(const std::string& file, std::string_view text);
/// Host functions have at most 60 lines, device functions 120.
Findings function_length_findings(const Tree& tree);

}  // namespace ridge::house
