// Each house rule, shown to find what breaks it and to pass what keeps it.
#include "tests/house/rules.h"

#include <gtest/gtest.h>

namespace ridge::house {
namespace {

std::string include(const std::string& path) { return "#include \"" + path + "\"\n"; }

// Findings of one file that includes one other.
Findings floors(const std::string& from, const std::string& to) {
  return floor_findings({{from, include(to)}, {to, ""}});
}

TEST(HouseRules, FloorsLookDownOnly) {
  EXPECT_TRUE(floors("kernels/a.cpp", "core/base/b.h").empty());
  EXPECT_TRUE(floors("core/ops/a.cpp", "kernels/b.h").empty());
  EXPECT_TRUE(floors("core/ops/a.cpp", "core/tensor.h").empty());
  EXPECT_TRUE(floors("core/text/a.cpp", "core/io/b.h").empty());
  EXPECT_TRUE(floors("optim/a.cpp", "optim/b.h").empty());
  EXPECT_TRUE(floors("launch/a.cpp", "inference/b.h").empty());
  EXPECT_TRUE(floors("tests/a.cpp", "launch/b.h").empty());
  const std::pair<const char*, const char*> broken[] = {
      {"core/base/a.h", "kernels/b.h"}, {"kernels/a.cu", "core/tensor.h"},  {"core/nn/a.h", "parallel/b.h"},
      {"optim/a.h", "parallel/b.h"},    {"lora/a.cpp", "optim/b.h"},        {"quant/a.h", "inference/b.h"},
      {"parallel/a.h", "launch/b.h"},   {"core/io/a.cpp", "core/text/b.h"}, {"launch/a.h", "tests/b.h"}};
  for (const auto& [from, to] : broken) {
    const Findings found = floors(from, to);
    ASSERT_EQ(found.size(), 1u) << from << " -> " << to;
    EXPECT_EQ(found[0], std::string(from) + ":1: includes \"" + to + "\", which does not stand below it");
  }
}

TEST(HouseRules, IncludesAreWrittenFromTheRoot) {
  EXPECT_EQ(floor_findings({{"core/a.cpp", "\n" + include("tensor.h")}, {"core/tensor.h", ""}}),
            Findings{"core/a.cpp:2: \"tensor.h\" is not a path from the root"});
  EXPECT_TRUE(floor_findings({{"launch/a.cpp", include("launch/b.pb.h")}, {"launch/b.proto", ""}}).empty());
}

TEST(HouseRules, CirclesAreFound) {
  const Tree line{{"a.h", include("b.h") + include("c.h")}, {"b.h", include("c.h")}, {"c.h", ""}};
  EXPECT_TRUE(circle_findings(line).empty());
  const Tree circle{{"a.h", include("b.h")}, {"b.h", include("c.h")}, {"c.h", include("b.h")}};
  EXPECT_EQ(circle_findings(circle), Findings{"b.h -> c.h -> b.h"});
  EXPECT_EQ(circle_findings({{"a.h", include("a.h")}}), Findings{"a.h -> a.h"});
}

TEST(HouseRules, HeavyHeadersAreFound) {
  EXPECT_EQ(heavy_header_findings({{"core/a.h", "#include <nlohmann/json.hpp>\n"}}).size(), 1u);
  EXPECT_EQ(heavy_header_findings({{"launch/a.h", include("launch/b.pb.h")}}).size(), 1u);
  EXPECT_EQ(heavy_header_findings({{"parallel/a.h", "#include <vector>\n#include <mpi.h>\n"}}).size(), 1u);
  EXPECT_TRUE(heavy_header_findings({{"core/a.cpp", "#include <nlohmann/json.hpp>\n"}}).empty());
  EXPECT_TRUE(
      heavy_header_findings({{"core/a.h", "#include <vector>\n#include <nlohmann/json_fwd.hpp>\n"}}).empty());
}

TEST(HouseRules, LongFilesAndBareHeadersAreFound) {
  EXPECT_TRUE(length_findings({{"a.py", std::string(600, '\n')}}).empty());
  EXPECT_EQ(length_findings({{"a.py", std::string(601, '\n')}}), Findings{"a.py: 601 lines, at most 600"});
  EXPECT_TRUE(opening_findings({{"a.h", "// What it is.\n#pragma once\n"}}).empty());
  EXPECT_EQ(opening_findings({{"a.h", "int a;\n"}}).size(), 2u);
}

TEST(HouseRules, ForbiddenCallsAreFound) {
  const auto findings = [](const std::string& file, const std::string& text) {
    return forbidden_call_findings({{file, text}}).size();
  };
  for (const char* call : {"std::getenv(\"A\");", "exit(1);", "std::abort();", "::_exit(2);", "::abort();",
                           "  std::terminate();"}) {
    EXPECT_EQ(findings("core/a.cpp", call), 1u) << call;
  }
  for (const char* fine :
       {"// exit(1)", "\"abort()\"", "MPI_Abort(comm, 1);", "on_exit(1);", "communicator.abort();",
        "communicator->abort();", "void A::abort() {}", "void abort() override;", "getenvelope();"}) {
    EXPECT_EQ(findings("core/a.cpp", fine), 0u) << fine;
  }
  EXPECT_EQ(findings("launch/a.cpp", "std::getenv(\"A\");"), 0u);
  EXPECT_EQ(findings("core/base/env.cpp", "std::getenv(\"A\");"), 0u);
  EXPECT_EQ(findings("launch/a.cpp", "exit(1);"), 1u);
}

TEST(HouseRules, PathsOfOneMachineAreFound) {
  EXPECT_EQ(private_path_findings({{"a.cpp",
                                    "open(\"/ho"
                                    "me/ann/x\")"}})
                .size(),
            1u);
  EXPECT_TRUE(private_path_findings({{"a.cpp", "open(\"/tmp/x\")"}}).empty());
}

TEST(HouseRules, CodeIsWhatIsLeft) {
  EXPECT_EQ(code_only("a // b\nc /* d\n */ e"), "a     \nc     \n    e");
  EXPECT_EQ(code_only("f(\"{\\\"\", '{', 1'000)"), "f(     ,    , 1'000)");
  EXPECT_EQ(code_only("R\"x({\n\")x\"; {"), "     \n    ; {");
}

std::vector<int> lengths(const std::string& text) {
  std::vector<int> out;
  for (const Function& f : functions_of("a.cpp", text)) out.push_back(f.lines);
  return out;
}

TEST(HouseRules, FunctionsAreMeasured) {
  EXPECT_EQ(lengths("int f(int a) {\n  return a;\n}\n"), std::vector<int>{3});
  EXPECT_EQ(lengths("namespace a {\nnamespace {\nint f() { return 1; }\nint g() {\n}\n}  // namespace\n}\n"),
            (std::vector<int>{1, 2}));
  EXPECT_EQ(
      lengths("struct A {\n  A(int a = 3) : a_{a}, b_{2} {\n    x();\n  }\n  int f() const {\n  }\n};\n"),
      (std::vector<int>{3, 2}));
  EXPECT_EQ(lengths("void f() {\n  const auto g = [](int a) {\n    if (a) {\n    }\n  };\n}\n"),
            std::vector<int>{6});
  EXPECT_EQ(
      lengths(
          "const int kA[] = {\n1, f(2), {3}};\nstd::map<int, int> m{\n{1, 2}};\nenum class E {\na,\n};\n"),
      std::vector<int>{});
  EXPECT_EQ(lengths("#define M(a) \\\n  {\nbool operator==(A a, A b) {\n}\n"), std::vector<int>{2});
  EXPECT_EQ(lengths("template <class T>\nstruct A {\n  static T f(T a) {\n\n  }\n};\n"), std::vector<int>{3});
}

TEST(HouseRules, LongFunctionsAreFound) {
  const auto body = [](int lines) {
    return "() {\n" + std::string(static_cast<std::size_t>(lines - 2), '\n') + "  g();}\n";
  };
  EXPECT_TRUE(function_length_findings({{"core/a.cpp", "void f" + body(60)}}).empty());
  EXPECT_EQ(function_length_findings({{"core/a.cpp", "\nvoid f" + body(61)}}),
            Findings{"core/a.cpp:2: a function of 61 lines, at most 60"});
  EXPECT_TRUE(function_length_findings({{"kernels/a.cu", "__global__ void f" + body(120)}}).empty());
  EXPECT_EQ(function_length_findings({{"kernels/a.cu", "__global__ void f" + body(121)}}).size(), 1u);
}

}  // namespace
}  // namespace ridge::house
