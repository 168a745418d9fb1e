// A model for reading that ranks share: each has its pieces of every layer.
#pragma once

#include <memory>

#include "core/models/llama.h"
#include "launch/decoder_model.h"
#include "launch/model_options.h"
#include "parallel/groups.h"

namespace ridge {

struct RankModel {
  std::unique_ptr<parallel::Groups> groups;  // outlives the model
  std::unique_ptr<models::Llama> model;
};

/// Over all ranks, which load it together with its adapter. UserErrors: another number of ranks than `tp`,
/// one that cannot share the model.
RankModel load_over_ranks(const ModelOptions& options, std::int64_t tp, const Context& context);

/// The random weights of decoder_model, cut the same way. UserErrors: as both.
RankModel random_over_ranks(const DecoderOptions& options, std::int64_t tp, Device device,
                            const Context& context);

}  // namespace ridge
