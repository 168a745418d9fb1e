#include "parallel/mpi_internal.h"

#include <string_view>

#include "core/base/error.h"

namespace ridge::parallel {
namespace {

template <class T, Reduce kOp>
void reduce_half(void* from, void* to, int* count, MPI_Datatype*) {
  const auto* other = static_cast<const T*>(from);
  auto* values = static_cast<T*>(to);
  for (int i = 0; i < *count; ++i) {
    const auto a = static_cast<float>(values[i]), b = static_cast<float>(other[i]);
    values[i] = T(kOp == Reduce::sum ? a + b : std::max(a, b));
  }
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

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return MPI_FLOAT;
    case DType::f64:
      return MPI_DOUBLE;
    case DType::bf16:  // reduced by operations of ours, as f16
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

MpiOperations::MpiOperations() {
  check_mpi(MPI_Op_create(reduce_half<bf16, Reduce::sum>, 1, &bf16_sum_), "MPI_Op_create");
  check_mpi(MPI_Op_create(reduce_half<bf16, Reduce::max>, 1, &bf16_max_), "MPI_Op_create");
  check_mpi(MPI_Op_create(reduce_half<f16, Reduce::sum>, 1, &f16_sum_), "MPI_Op_create");
  check_mpi(MPI_Op_create(reduce_half<f16, Reduce::max>, 1, &f16_max_), "MPI_Op_create");
}

MpiOperations::~MpiOperations() {
  for (MPI_Op* op : {&bf16_sum_, &bf16_max_, &f16_sum_, &f16_max_}) MPI_Op_free(op);
}

MPI_Op MpiOperations::of(DType dtype, Reduce op) const {
  if (dtype == DType::bf16) return op == Reduce::sum ? bf16_sum_ : bf16_max_;
  if (dtype == DType::f16) return op == Reduce::sum ? f16_sum_ : f16_max_;
  return op == Reduce::sum ? MPI_SUM : MPI_MAX;
}

}  // namespace ridge::parallel
