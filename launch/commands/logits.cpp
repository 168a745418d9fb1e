#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/autograd.h"
#include "core/io/file.h"
#include "core/io/json_depth.h"
#include "core/io/safetensors.h"
#include "launch/context.h"
#include "launch/evaluate.h"
#include "launch/model_options.h"

namespace ridge {
namespace {

constexpr std::size_t kMaxIdsBytes = std::size_t{256} << 20;

struct Options {
  ModelOptions model;
  std::string ids;
  std::string out;
};

// [[...], ...], all rows of one length.
std::vector<std::vector<std::int32_t>> read_ids(const std::string& path) {
  const std::string text = read_text_file(path, kMaxIdsBytes);
  check_json_depth(text, path);
  const auto json = nlohmann::json::parse(text, nullptr, false);
  require(json.is_array() && !json.empty(), "{}: not a JSON list of lists of ids", path);
  std::vector<std::vector<std::int32_t>> rows;
  for (const auto& row : json) {
    require(row.is_array() && !row.empty(), "{}: row {} is not a list of ids", path, rows.size());
    std::vector<std::int32_t> ids;
    for (const auto& id : row) {
      const bool fits = id.is_number_integer() && id.get<std::int64_t>() >= 0 &&
                        id.get<std::int64_t>() < (std::int64_t{1} << 31);
      require(fits, "{}: row {} holds {}, not an id", path, rows.size(), id.dump());
      ids.push_back(id.get<std::int32_t>());
    }
    require(rows.empty() || ids.size() == rows.front().size(),
            "{}: row {} has {} ids, row 0 has {}: rows must be of one length", path, rows.size(), ids.size(),
            rows.empty() ? 0 : rows.front().size());
    rows.push_back(std::move(ids));
  }
  return rows;
}

// They are written all the same: whoever looks for a fault needs them.
void note_not_finite(const Tensor& logits_BTV, models::Llama& model, const Context& context) {
  const std::span<const float> values = logits_BTV.span<float>();
  const auto bad = std::find_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
  if (bad == values.end()) return;
  const std::int64_t row = (bad - values.begin()) / logits_BTV.dim(2);
  context.note(fmt::format("logits hold {} from row {}, position {} on: {}", *bad, row / logits_BTV.dim(1),
                           row % logits_BTV.dim(1), why_not_finite(model)));
}

void run(const Options& options, Context& context) {
  const auto rows = read_ids(options.ids);
  const auto model = load(options.model, context);
  for (const auto& row : rows) check_ids(row, model->config(), options.ids);
  if (!context.is_root()) return;
  const autograd::NoGradScope no_grad;
  const auto B = static_cast<std::int64_t>(rows.size()), T = static_cast<std::int64_t>(rows.front().size());
  const std::int64_t V = model->config().vocab_size;
  const Tensor logits = Tensor::empty({B, T, V}, DType::f32);
  for (std::int64_t b = 0; b < B; ++b) {
    const Tensor ids = Tensor::from(rows[static_cast<std::size_t>(b)], {1, T});
    logits.sliced(0, b, b + 1).copy_from(model->logits(ids));
  }
  note_not_finite(logits, *model, context);
  const std::vector<TensorEntry> entries{make_tensor_entry(
      "logits", DType::f32, {B, T, V},
      {static_cast<const std::byte*>(logits.data()), static_cast<std::size_t>(logits.bytes())})};
  write_safetensors(options.out, entries);
  context.emit({{"out", options.out}, {"shape", std::vector<std::int64_t>{B, T, V}}},
               fmt::format("{}: logits [{}, {}, {}]\n", options.out, B, T, V));
}

}  // namespace

void add_logits(const Command& app, Context& context) {
  auto options = std::make_shared<Options>();
  const Command command = app.add("logits", "Logits of given ids, as safetensors");
  add_model_options(command, options->model, "f32");
  command.required("--ids", options->ids, "JSON file: [[ids], ...]");
  command.required("--out", options->out, "safetensors file to write");
  command.run([options, &context] { run(*options, context); });
}

}  // namespace ridge
