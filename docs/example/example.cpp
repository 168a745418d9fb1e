// Loads a Hugging Face folder and prints the ids that follow 1, 2, 3: example FOLDER.
#include <fmt/core.h>

#include "core/models/weights.h"
#include "inference/generate.h"

int main(int argc, char** argv) {
  const auto loaded =
      ridge::models::load_model(argc > 1 ? argv[1] : ".", ridge::DType::f32, ridge::models::LoadMode::read);
  ridge::inference::GenerateOptions options;
  options.max_new_tokens = 8;
  const std::vector<std::int32_t> prompt{1, 2, 3};
  for (const auto id : ridge::inference::generate(*loaded.model, prompt, options).ids) fmt::print("{} ", id);
  fmt::print("\n");
}
