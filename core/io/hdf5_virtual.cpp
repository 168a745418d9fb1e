// Virtual datasets: one logical array over the files of many ranks.
#include <hdf5.h>

#include <algorithm>
#include <filesystem>

#include "core/io/file.h"
#include "core/io/hdf5_internal.h"
#include "core/io/quote.h"
#include "core/io/slab.h"

namespace ridge {
namespace {

using Extent = std::span<const std::int64_t>;
using Impl = Hdf5File::Impl;

bool is_plain_name(const std::string& name) {
  return !name.empty() && name.find('/') == std::string::npos && name != "." && name != "..";
}

std::string text_of(const VirtualPiece& piece) {
  return fmt::format("{} at {} from {}", dims_text(piece.extent), dims_text(piece.offset), shown(piece.file));
}

std::vector<VirtualPiece> non_empty(std::span<const VirtualPiece> pieces) {
  std::vector<VirtualPiece> kept(pieces.begin(), pieces.end());
  std::erase_if(kept, [](const VirtualPiece& piece) { return element_count(piece.extent) == 0; });
  return kept;
}

// With every piece inside and no two in one place, equal volumes leave no gap.
void check_tiling(const std::string& name, Extent dims, std::vector<VirtualPiece> pieces) {
  std::int64_t filled = 0;
  for (const VirtualPiece& piece : pieces) {
    if (!is_plain_name(piece.file))
      fail("virtual dataset {}: {} is not a plain file name", shown(name), shown(piece.file));
    if (!box_is_within(piece.offset, piece.extent, dims)) {
      fail("virtual dataset {} {}: piece {} is not in it", shown(name), dims_text(dims), text_of(piece));
    }
    filled += *element_count(piece.extent);
  }
  std::ranges::sort(pieces, {}, &VirtualPiece::offset);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const VirtualPiece& a = pieces[i];
    for (std::size_t j = i + 1; j < pieces.size(); ++j) {
      const VirtualPiece& b = pieces[j];
      if (b.offset[0] >= a.offset[0] + a.extent[0]) break;  // sorted: nothing behind starts earlier
      if (boxes_overlap(a.offset, a.extent, b.offset, b.extent)) {
        fail("virtual dataset {}: pieces {} and {} overlap", shown(name), text_of(a), text_of(b));
      }
    }
  }
  const std::int64_t total = element_count(dims).value_or(-1);
  if (filled != total)
    fail("virtual dataset {} {}: its pieces fill {} of {} elements", shown(name), dims_text(dims), filled,
         total);
}

void add_piece(const Hdf5Handle& properties, Extent dims, const VirtualPiece& piece) {
  const Hdf5Handle target = hdf5_space(dims), source = hdf5_space(piece.extent);
  const std::vector<hsize_t> start(piece.offset.begin(), piece.offset.end());
  const std::vector<hsize_t> size(piece.extent.begin(), piece.extent.end());
  const bool ok =
      H5Sselect_hyperslab(target.get(), H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr) >= 0 &&
      H5Pset_virtual(properties.get(), target.get(), piece.file.c_str(), piece.dataset.c_str(),
                     source.get()) >= 0;
  if (!ok) fail("HDF5 does not take the virtual piece {}: {}", text_of(piece), hdf5_reason());
}

// `get` is H5Pget_virtual_filename or H5Pget_virtual_dsetname.
template <class Get>
std::string mapping_text(const Hdf5Handle& properties, std::size_t i, Get get) {
  const ssize_t length = get(properties.get(), i, nullptr, 0);
  std::string text(length > 0 ? static_cast<std::size_t>(length) : 0, '\0');
  if (length > 0) get(properties.get(), i, text.data(), text.size() + 1);
  return text;
}

// The bounding box of what a mapping selects, as offset and extent.
VirtualPiece bounds_of(const Hdf5Handle& space) {
  const int ndim = H5Sget_simple_extent_ndims(space.get());
  std::vector<hsize_t> first(static_cast<std::size_t>(std::max(ndim, 0))), last(first.size());
  VirtualPiece box;
  if (H5Sget_select_bounds(space.get(), first.data(), last.data()) < 0) return box;
  box.offset.assign(first.begin(), first.end());
  for (std::size_t d = 0; d < first.size(); ++d)
    box.extent.push_back(static_cast<std::int64_t>(last[d] - first[d] + 1));
  return box;
}

// Reads the i-th mapping; offset and extent are those in the virtual dataset.
VirtualPiece mapping_of(const Hdf5Handle& properties, std::size_t i) {
  VirtualPiece piece = bounds_of({H5Pget_virtual_vspace(properties.get(), i), H5Sclose});
  piece.file = mapping_text(properties, i, H5Pget_virtual_filename);
  piece.dataset = mapping_text(properties, i, H5Pget_virtual_dsetname);
  return piece;
}

// The file of a piece, opened, and its dataset, held to what the mapping expects.
struct Source {
  Impl file;
  Hdf5Handle dataset;
};

Source open_source(const Impl& file, const std::string& name, const VirtualPiece& piece, DType dtype) {
  if (!is_plain_name(piece.file))
    file.fail("dataset {} refers to {}, not a file beside it", shown(name), shown(piece.file));
  Source source;
  Impl& other = source.file;
  other.path = (std::filesystem::path(file.path).parent_path() / piece.file).string();
  require(std::filesystem::exists(other.path), "HDF5 file '{}': dataset {} needs '{}', which is missing",
          file.path, shown(name), other.path);
  require(H5Fis_hdf5(other.path.c_str()) > 0, "'{}' is not an HDF5 file; dataset {} of '{}' needs it",
          other.path, shown(name), file.path);
  const Hdf5Handle access = hdf5_access_properties();
  other.file = {H5Fopen(other.path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose};
  if (other.file.get() < 0) other.fail("cannot open it");
  source.dataset = other.open_dataset(piece.dataset);
  const DatasetInfo info = other.info(source.dataset, piece.dataset);
  if (info.dtype != dtype || info.dims != piece.extent) {
    other.fail("dataset {} is {} {}, but '{}' expects {} {}", shown(piece.dataset), name_of(info.dtype),
               dims_text(info.dims), file.path, name_of(dtype), dims_text(piece.extent));
  }
  return source;
}

// The part of `what` that a piece holds, as offsets in the piece and in memory.
Hdf5Read common_part(const Hdf5Read& what, const VirtualPiece& piece) {
  Hdf5Read part{what.dtype, {}, {}, {}, what.out_dims};
  for (std::size_t d = 0; d < what.extent.size(); ++d) {
    const std::int64_t begin = std::max(what.offset[d], piece.offset[d]);
    const std::int64_t end = std::min(what.offset[d] + what.extent[d], piece.offset[d] + piece.extent[d]);
    part.offset.push_back(begin - piece.offset[d]);
    part.extent.push_back(end - begin);
    part.at.push_back(what.at[d] + begin - what.offset[d]);
  }
  return part;
}

}  // namespace

bool read_virtual_box(const Impl& file, const Hdf5Handle& dataset, const std::string& name,
                      const Hdf5Read& what, std::span<std::byte> out) {
  const Hdf5Handle properties(H5Dget_create_plist(dataset.get()), H5Pclose);
  if (H5Pget_layout(properties.get()) != H5D_VIRTUAL) return false;
  const DatasetInfo info = file.info(dataset, name);
  std::size_t count = 0;
  if (H5Pget_virtual_count(properties.get(), &count) < 0)
    file.fail("cannot read the mappings of {}", shown(name));
  std::int64_t missing = element_count(what.extent).value_or(0);
  for (std::size_t i = 0; i < count; ++i) {
    const VirtualPiece piece = mapping_of(properties, i);
    if (!box_is_within(piece.offset, piece.extent, info.dims))
      file.fail("dataset {} has a mapping outside of it", shown(name));
    if (!boxes_overlap(piece.offset, piece.extent, what.offset, what.extent)) continue;
    const Source source = open_source(file, name, piece, info.dtype);
    const Hdf5Read part = common_part(what, piece);
    read_hdf5_box(source.file, source.dataset, piece.dataset, part, out);
    missing -= *element_count(part.extent);
  }
  if (missing != 0)
    file.fail("dataset {}: its mappings do not cover {}", shown(name), dims_text(what.extent));
  return true;
}

void Hdf5File::create_virtual(const std::string& dataset, DType dtype, Extent dims,
                              std::span<const VirtualPiece> pieces) {
  const auto lock = lock_hdf5();
  const std::vector<VirtualPiece> kept = non_empty(pieces);
  check(!dims.empty(), "a virtual dataset has at least one dim");
  check_tiling(dataset, dims, kept);
  const Hdf5Handle properties = hdf5_dataset_properties();
  for (const VirtualPiece& piece : kept) add_piece(properties, dims, piece);
  impl_->create_dataset(dataset, dtype, hdf5_space(dims), properties);
}

}  // namespace ridge
