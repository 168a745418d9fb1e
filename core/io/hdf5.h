// HDF5 files: groups, attributes, datasets of our dtypes, growing datasets, virtual datasets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"

namespace ridge {

struct DatasetInfo {
  DType dtype;
  std::vector<std::int64_t> dims;
};

/// A box of a virtual dataset and the whole dataset of another file that fills it.
struct VirtualPiece {
  std::string file;                  ///< plain name of a file in the same folder as the virtual one
  std::string dataset;               ///< its dims must equal `extent`
  std::vector<std::int64_t> offset;  ///< of the box in the virtual dataset; as many dims as it has
  std::vector<std::int64_t> extent;
};

/// One open HDF5 file. Paths are like "/group/dataset"; missing groups on the way are created. bf16 and f16
/// are stored as 16-bit floats of their own layout, which any HDF5 tool reads. Calls from several threads
/// wait for each other, since the library is not thread-safe. Every failure is a UserError that names file
/// and object; a caller's wrong byte count is an Error.
class Hdf5File {
 public:
  enum class Access { read, read_write };

  /// An empty file; an older one of that name is lost. Write under a temporary name, close(),
  /// sync_and_rename().
  static Hdf5File create(const std::string& path);
  static Hdf5File open(const std::string& path, Access access = Access::read);
  Hdf5File(Hdf5File&&) noexcept;
  Hdf5File& operator=(Hdf5File&&) noexcept;
  ~Hdf5File();
  /// Writes what is buffered and closes; a full disk shows here at the latest.
  void close();
  const std::string& path() const;

  void create_group(const std::string& group);
  bool exists(const std::string& object) const;
  /// Names directly in a group, sorted.
  std::vector<std::string> names(const std::string& group = "/") const;

  /// Attributes of a group or dataset; setting one again replaces it.
  void set_attribute(const std::string& object, const std::string& name, std::int64_t value);
  void set_attribute(const std::string& object, const std::string& name, double value);
  void set_attribute(const std::string& object, const std::string& name, std::string_view value);
  bool has_attribute(const std::string& object, const std::string& name) const;
  std::int64_t int_attribute(const std::string& object, const std::string& name) const;
  double double_attribute(const std::string& object, const std::string& name) const;
  std::string string_attribute(const std::string& object, const std::string& name) const;

  /// Creates a dataset of fixed dims without data, or with all of it.
  void create_dataset(const std::string& dataset, DType dtype, std::span<const std::int64_t> dims);
  void write_dataset(const std::string& dataset, DType dtype, std::span<const std::int64_t> dims,
                     std::span<const std::byte> data);
  /// Makes room for a dataset whose bytes the caller writes himself, after close() and past this library: the
  /// place of its first byte in the file. At least one element.
  std::uint64_t reserve_dataset(const std::string& dataset, DType dtype, std::span<const std::int64_t> dims);
  /// Writes the box `extent` at `offset`, row-major; both have as many dims as the dataset.
  void write_slab(const std::string& dataset, DType dtype, std::span<const std::int64_t> offset,
                  std::span<const std::int64_t> extent, std::span<const std::byte> data);

  DatasetInfo info(const std::string& dataset) const;
  /// Reads a whole dataset, which must have exactly this dtype and these dims.
  void read_dataset(const std::string& dataset, DType dtype, std::span<const std::int64_t> dims,
                    std::span<std::byte> out) const;
  /// Reads a box; of a virtual dataset only after checking that the files under that box are there and fit.
  void read_slab(const std::string& dataset, DType dtype, std::span<const std::int64_t> offset,
                 std::span<const std::int64_t> extent, std::span<std::byte> out) const;
  /// Rows `first .. first + count - 1` of dim 0.
  void read_rows(const std::string& dataset, DType dtype, std::int64_t first, std::int64_t count,
                 std::span<std::byte> out) const;

  /// A 1-D dataset of no elements that append() makes longer, stored in chunks of `chunk` elements.
  void create_growing(const std::string& dataset, DType dtype, std::int64_t chunk);
  void append(const std::string& dataset, DType dtype, std::span<const std::byte> data);

  /// A dataset whose data lie in other files. The pieces must tile `dims`: no gap, no overlap; empty ones are
  /// left out.
  void create_virtual(const std::string& dataset, DType dtype, std::span<const std::int64_t> dims,
                      std::span<const VirtualPiece> pieces);

  struct Impl;

 private:
  explicit Hdf5File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ridge
