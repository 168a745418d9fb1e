// Kernels one by one, beside the limits of the machine.
#pragma once

#include <cstdint>

namespace ridge {

class Context;

struct KernelBenchOptions {
  std::int64_t rows = 32768;  // tokens
  std::int64_t runs = 10;     // batches of ten launches
};

/// Times the kernels of a training step in bf16, on random data of the sizes of a 1B model, and prints
/// achieved bandwidth beside that of a copy.
void bench_kernels(const KernelBenchOptions& options, Context& context);

}  // namespace ridge
