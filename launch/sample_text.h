// Simple English that the program makes itself: for machines without data and without a network.
#pragma once

#include <cstdint>
#include <string>

namespace ridge {

enum class SampleKind : std::uint8_t {
  tales,  // short tales of children, animals and places
  notes   // dry notes about weather, goods and ships, in the manner of a log
};

/// About `bytes` of text, whole paragraphs; the same for the same kind and seed on every machine.
std::string sample_text(SampleKind kind, std::int64_t bytes, std::uint64_t seed);

}  // namespace ridge
