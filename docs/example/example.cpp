// Prints the element types, then the error that a wrong name gets.
#include <fmt/core.h>

#include "core/base/dtype.h"
#include "core/base/error.h"

int main() {
  for (const auto dtype : {ridge::DType::f32, ridge::DType::bf16, ridge::DType::i8}) {
    fmt::print("{}: {} bytes\n", ridge::name_of(dtype), ridge::size_of(dtype));
  }
  try {
    ridge::parse_dtype("float99");
  } catch (const ridge::UserError& error) {
    fmt::print("error: {}\n", error.what());
  }
}
