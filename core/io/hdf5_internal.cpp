#include "core/io/hdf5_internal.h"

#include <hdf5.h>

#include <algorithm>
#include <array>
#include <optional>
#include <type_traits>

#include "core/io/quote.h"
#include "core/io/slab.h"

namespace ridge {

static_assert(std::is_same_v<hid_t, Hdf5Id>);

namespace {

constexpr hsize_t kAlignFrom = 64 << 10, kAlignment = 4 << 10;  // bytes: large objects start at a page

using Reason = std::array<char, 4096>;  // it may hold a path

// A 16-bit IEEE-like type: sign on top, then exponent, then mantissa.
Hdf5Handle small_float(std::size_t exponent_bits, std::size_t bias) {
  Hdf5Handle type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
  const std::size_t mantissa_bits = 15 - exponent_bits;
  const bool ok = H5Tset_fields(type.get(), 15, mantissa_bits, exponent_bits, 0, mantissa_bits) >= 0 &&
                  H5Tset_size(type.get(), 2) >= 0 && H5Tset_ebias(type.get(), bias) >= 0;
  check(ok, "HDF5 makes 16-bit float types");
  return type;
}

std::optional<DType> dtype_of_file_type(hid_t type) {
  for (const DType dtype :
       {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i32, DType::i64, DType::u8, DType::i8}) {
    if (H5Tequal(type, hdf5_type(dtype).get()) > 0) return dtype;
  }
  return {};
}

Hdf5Handle link_properties() {
  Hdf5Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  check(H5Pset_char_encoding(links.get(), H5T_CSET_UTF8) >= 0, "HDF5 takes UTF-8 names");
  return links;
}

extern "C" herr_t keep_first_reason(unsigned, const H5E_error2_t* error, void* text) {
  auto& reason = *static_cast<Reason*>(text);
  if (reason[0] == '\0' && error->desc != nullptr) {
    std::size_t i = 0;
    for (; i + 1 < reason.size() && error->desc[i] != '\0'; ++i) reason[i] = error->desc[i];
    reason[i] = '\0';
  }
  return 0;
}

std::mutex& hdf5_mutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

std::unique_lock<std::mutex> lock_hdf5() {
  std::unique_lock<std::mutex> lock(hdf5_mutex());
  // At exit the library would write again what a full disk refused, and crash. Every handle is closed anyway.
  [[maybe_unused]] static const herr_t no_exit_handler = H5dont_atexit();
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  H5PLset_loading_state(0);  // a file must not make us load a filter plugin
  return lock;
}

std::string hdf5_reason() {
  Reason text{};
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first_reason, &text);
  H5Eclear2(H5E_DEFAULT);
  std::string reason = text.data();
  constexpr std::string_view kSystem = "error message = '";  // after it the system's own words
  if (const std::size_t at = reason.find(kSystem); at != std::string::npos) {
    reason.erase(0, at + kSystem.size());
    reason.resize(std::min(reason.find('\''), reason.size()));
  }
  std::ranges::replace_if(
      reason, [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  return reason;
}

void Hdf5File::Impl::fail_with_reason(const std::string& what) const {
  const std::string reason = hdf5_reason();
  fail_user("HDF5 file '{}': {}{}{}", path, what, reason.empty() ? "" : ": ", reason);
}

Hdf5Handle hdf5_access_properties() {
  Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  const bool ok = H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_LATEST) >= 0 &&
                  H5Pset_alignment(access.get(), kAlignFrom, kAlignment) >= 0;
  check(ok, "HDF5 takes file access properties");
  return access;
}

Hdf5Handle hdf5_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return {H5Tcopy(H5T_IEEE_F32LE), H5Tclose};
    case DType::f64:
      return {H5Tcopy(H5T_IEEE_F64LE), H5Tclose};
    case DType::bf16:
      return small_float(8, 127);
    case DType::f16:
      return small_float(5, 15);
    case DType::i32:
      return {H5Tcopy(H5T_STD_I32LE), H5Tclose};
    case DType::i64:
      return {H5Tcopy(H5T_STD_I64LE), H5Tclose};
    case DType::u8:
      return {H5Tcopy(H5T_STD_U8LE), H5Tclose};
    case DType::i8:
      return {H5Tcopy(H5T_STD_I8LE), H5Tclose};
  }
  fail("dtype {} has no HDF5 type", static_cast<int>(dtype));
}

Hdf5Handle hdf5_space(std::span<const std::int64_t> dims) {
  if (dims.empty()) return {H5Screate(H5S_SCALAR), H5Sclose};
  const std::vector<hsize_t> sizes(dims.begin(), dims.end());
  Hdf5Handle space(H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr), H5Sclose);
  if (space.get() < 0) fail("HDF5 has no dataspace of dims {}: {}", dims_text(dims), hdf5_reason());
  return space;
}

Hdf5Handle hdf5_space_of(const Hdf5Handle& dataset) { return {H5Dget_space(dataset.get()), H5Sclose}; }

Hdf5Handle hdf5_box(Hdf5Handle space, std::span<const std::int64_t> offset,
                    std::span<const std::int64_t> extent) {
  if (extent.empty()) return space;
  const std::vector<hsize_t> start(offset.begin(), offset.end()), size(extent.begin(), extent.end());
  check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr) >= 0,
        "HDF5 selects a box that lies within the dataset");
  return space;
}

Hdf5Handle hdf5_dataset_properties() {
  Hdf5Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const bool ok = H5Pset_fill_time(properties.get(), H5D_FILL_TIME_NEVER) >= 0 &&
                  H5Pset_obj_track_times(properties.get(), false) >= 0;
  check(ok, "HDF5 takes dataset properties");
  return properties;
}

Hdf5Handle Hdf5File::Impl::open_object(const std::string& object) const {
  if (!has_link(object)) fail("there is no object {}", shown(object));
  Hdf5Handle handle(H5Oopen(file.get(), object.c_str(), H5P_DEFAULT), H5Oclose);
  if (handle.get() < 0) fail("cannot open {}", shown(object));
  return handle;
}

Hdf5Handle Hdf5File::Impl::open_dataset(const std::string& dataset) const {
  if (!has_link(dataset)) fail("there is no dataset {}", shown(dataset));
  Hdf5Handle handle(H5Dopen2(file.get(), dataset.c_str(), H5P_DEFAULT), H5Dclose);
  if (handle.get() < 0) fail("cannot open dataset {}", shown(dataset));
  return handle;
}

// H5Lexists needs every group on the way to exist, so each prefix is asked for.
bool Hdf5File::Impl::has_link(const std::string& object) const {
  if (object.find('\0') != std::string::npos) return false;
  for (std::size_t end = object.find_first_not_of('/'); end != std::string::npos && end < object.size();) {
    end = std::min(object.find('/', end), object.size());
    const htri_t exists = H5Lexists(file.get(), object.substr(0, end).c_str(), H5P_DEFAULT);
    if (exists <= 0) {
      H5Eclear2(H5E_DEFAULT);
      return false;
    }
    end = object.find_first_not_of('/', end);
  }
  return true;
}

DatasetInfo Hdf5File::Impl::info(const Hdf5Handle& dataset, const std::string& name) const {
  const Hdf5Handle type(H5Dget_type(dataset.get()), H5Tclose), space(H5Dget_space(dataset.get()), H5Sclose);
  const auto dtype = dtype_of_file_type(type.get());
  if (!dtype)
    fail("dataset {} holds a type that is none of f32, f64, bf16, f16, i32, i64, u8, i8", shown(name));
  const int ndim = H5Sget_simple_extent_ndims(space.get());
  if (ndim < 0 || H5Sget_simple_extent_type(space.get()) == H5S_NULL)
    fail("dataset {} has no dims", shown(name));
  std::vector<hsize_t> sizes(static_cast<std::size_t>(ndim));
  H5Sget_simple_extent_dims(space.get(), sizes.data(), nullptr);
  DatasetInfo info{*dtype, {sizes.begin(), sizes.end()}};
  if (!element_count(info.dims))
    fail("dataset {} has the dims {}, which overflow", shown(name), dims_text(info.dims));
  return info;
}

Hdf5Handle Hdf5File::Impl::create_group(const std::string& group) const {
  const Hdf5Handle links = link_properties(), properties(H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
  H5Pset_obj_track_times(properties.get(), false);
  Hdf5Handle made(H5Gcreate2(file.get(), group.c_str(), links.get(), properties.get(), H5P_DEFAULT),
                  H5Gclose);
  if (made.get() < 0) fail("cannot create group {}", shown(group));
  return made;
}

// The library would make them too, but with the time in each.
void Hdf5File::Impl::create_groups_above(const std::string& object) const {
  for (std::size_t end = object.find('/', 1); end != std::string::npos; end = object.find('/', end + 1)) {
    const std::string group = object.substr(0, end);
    if (!has_link(group)) create_group(group);
  }
}

Hdf5Handle Hdf5File::Impl::create_dataset(const std::string& name, DType dtype, const Hdf5Handle& space,
                                          const Hdf5Handle& properties) const {
  create_groups_above(name);
  const Hdf5Handle links = link_properties(), type = hdf5_type(dtype);
  Hdf5Handle dataset(H5Dcreate2(file.get(), name.c_str(), type.get(), space.get(), links.get(),
                                properties.get(), H5P_DEFAULT),
                     H5Dclose);
  if (dataset.get() < 0) fail("cannot create dataset {}", shown(name));
  return dataset;
}

}  // namespace ridge
