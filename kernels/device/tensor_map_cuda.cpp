#include "kernels/device/tensor_map.h"

#include <cuda_runtime.h>

#include "core/base/cuda_check.h"
#include "core/base/error.h"

namespace ridge::kernels::device {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                            CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// From the driver at run time, for nothing is linked to it; null where it has none.
Encode encoder() {
  static const Encode kEncode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                                &result));
    return result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  return kEncode;
}

}  // namespace

bool has_tensor_maps() { return encoder() != nullptr; }

CUtensorMap byte_rows_map(const std::uint8_t* data, std::int64_t rows, std::int64_t row_bytes, int box_rows) {
  const Encode encode = encoder();
  if (encode == nullptr) fail("the driver has no cuTensorMapEncodeTiled: ask has_tensor_maps");
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(row_bytes), static_cast<cuuint64_t>(rows)};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[2] = {kByteBox, static_cast<cuuint32_t>(box_rows)}, step[2] = {1, 1};
  CUtensorMap map;
  const CUresult code = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<std::uint8_t*>(data), size,
                               stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                               CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS)
    fail("a tensor map of {} rows of {} bytes: error {}", rows, row_bytes, static_cast<int>(code));
  return map;
}

}  // namespace ridge::kernels::device
