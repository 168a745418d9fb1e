// TensorBoard event files: https://www.tensorflow.org/tensorboard (TFRecord framing, Event protobufs).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/io/file.h"

namespace ridge {

/// One TFRecord: length, masked CRC-32C of the length, payload, masked CRC-32C of the payload.
std::string tensorboard_record(std::string_view payload);

/// The CRC-32C that a TFRecord stores: rotated right by 15, plus 0xa282ead8.
std::uint32_t masked_crc32c(std::span<const std::byte> bytes);

/// Appends scalars to a new event file in a folder. A restarted run opens another file in the same folder,
/// and TensorBoard joins them. Buffered: on disk after flush(), every few seconds, and at the end.
class EventWriter {
 public:
  /// Creates the folder where needed; UserError when that or the file fails.
  explicit EventWriter(const std::string& folder);
  EventWriter(EventWriter&&) = default;
  ~EventWriter();

  /// `tag` like "train/loss"; steps count from the start of the run. UserError when the disk is full.
  void scalar(std::string_view tag, std::int64_t step, double value);
  void flush();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  FileDescriptor fd_;
  std::string buffer_;
  std::chrono::steady_clock::time_point flushed_;
};

}  // namespace ridge
