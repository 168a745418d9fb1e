#include "parallel/mpi_internal.h"

#include <mpi.h>

#include <string_view>

#include "core/base/error.h"

namespace ridge::parallel {
namespace {

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return MPI_FLOAT;
    case DType::f64:
      return MPI_DOUBLE;
    case DType::bf16:
    case DType::f16:
      return MPI_UINT16_T;
    case DType::i32:
      return MPI_INT32_T;
    case DType::i64:
      return MPI_INT64_T;
    case DType::u8:
      return MPI_UINT8_T;
    case DType::i8:
      return MPI_INT8_T;
  }
  fail("MPI carries no {}", name_of(dtype));
}

}  // namespace

void check_mpi(int code, const char* call, std::source_location where) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("{} failed at {}:{}: {}", call, where.file_name(), where.line(),
       std::string_view(text, static_cast<std::size_t>(length)));
}

int mpi_type_handle(DType dtype) { return MPI_Type_c2f(mpi_type(dtype)); }

}  // namespace ridge::parallel
