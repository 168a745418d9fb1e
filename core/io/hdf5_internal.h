// What the parts of Hdf5File share; not for use outside core/io/hdf5*.cpp.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "core/io/hdf5.h"

namespace ridge {

using Hdf5Id = std::int64_t;  // hid_t, without its header

/// Held around every use of the library, which is not thread-safe; also keeps it from printing errors.
std::unique_lock<std::mutex> lock_hdf5();

/// An HDF5 identifier with the function that closes it.
class Hdf5Handle {
 public:
  using Close = int (*)(Hdf5Id);
  Hdf5Handle() = default;
  Hdf5Handle(Hdf5Id id, Close close) : id_(id), close_(close) {}
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Hdf5Handle() { close(); }
  Hdf5Id get() const { return id_; }
  /// True unless the library reports a failure, which leaves nothing more to close.
  bool close() {
    const Hdf5Id id = std::exchange(id_, -1);
    return id < 0 || close_(id) >= 0;
  }

 private:
  Hdf5Id id_ = -1;
  Close close_ = nullptr;
};

struct Hdf5File::Impl {
  std::string path;
  Hdf5Handle file;

  /// A UserError "HDF5 file '<path>': <what>: <the library's reason>".
  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    fail_with_reason(fmt::vformat(format, fmt::make_format_args(args...)));
  }
  [[noreturn]] void fail_with_reason(const std::string& what) const;

  Hdf5Handle open_dataset(const std::string& dataset) const;
  Hdf5Handle open_object(const std::string& object) const;
  /// Type and dims; UserError when the type is none of ours or the dataspace is null.
  DatasetInfo info(const Hdf5Handle& dataset, const std::string& name) const;
  Hdf5Handle create_group(const std::string& group) const;
  void create_groups_above(const std::string& object) const;
  Hdf5Handle create_dataset(const std::string& name, DType dtype, const Hdf5Handle& space,
                            const Hdf5Handle& properties) const;
  bool has_link(const std::string& object) const;
};

/// The library's innermost reason for the last failure, on one line. Any other call of the library clears it,
/// the closing of a handle included.
std::string hdf5_reason();

/// File access: no locks (network file systems lack them), newest layouts, large objects at page starts.
Hdf5Handle hdf5_access_properties();
Hdf5Handle hdf5_type(DType dtype);
/// A dataspace of these dims; no dims make a scalar.
Hdf5Handle hdf5_space(std::span<const std::int64_t> dims);
Hdf5Handle hdf5_space_of(const Hdf5Handle& dataset);
/// The space with the box selected, which must lie in it.
Hdf5Handle hdf5_box(Hdf5Handle space, std::span<const std::int64_t> offset,
                    std::span<const std::int64_t> extent);
/// Creation properties without fill values and time stamps: the same content makes the same bytes.
Hdf5Handle hdf5_dataset_properties();

/// A box of a dataset with the place in memory that it goes to: `at` in a row-major array of dims `out_dims`.
struct Hdf5Read {
  DType dtype;
  std::vector<std::int64_t> offset, extent;  // in the file
  std::vector<std::int64_t> at, out_dims;    // in memory
};

void read_hdf5_box(const Hdf5File::Impl& file, const Hdf5Handle& dataset, const std::string& name,
                   const Hdf5Read& what, std::span<std::byte> out);

/// If the dataset is virtual, reads the box from the files that hold it and returns true. UserError when one
/// of them is missing or does not fit. The library itself would put zeros there and say nothing, also when
/// the process has too many files open.
bool read_virtual_box(const Hdf5File::Impl& file, const Hdf5Handle& dataset, const std::string& name,
                      const Hdf5Read& what, std::span<std::byte> out);

}  // namespace ridge
