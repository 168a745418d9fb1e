// Datasets of HDF5 files: written, read and appended to in slices below 2 GiB.
#include <hdf5.h>

#include <algorithm>

#include "core/io/hdf5_internal.h"
#include "core/io/quote.h"
#include "core/io/slab.h"

namespace ridge {
namespace {

constexpr std::int64_t kSliceBytes = std::int64_t{1} << 30;

using Extent = std::span<const std::int64_t>;
using Impl = Hdf5File::Impl;

std::size_t bytes_of(DType dtype, Extent extent) {
  const auto count = element_count(extent);
  check(count.has_value(), "the extent of an HDF5 box has a size");
  return static_cast<std::size_t>(*count) * size_of(dtype);
}

void check_bytes(const std::string& name, DType dtype, Extent extent, std::size_t bytes) {
  const std::size_t wanted = bytes_of(dtype, extent);
  if (bytes != wanted) {
    fail("dataset {}: {} bytes given for {} {}, which has {}", shown(name), bytes, name_of(dtype),
         dims_text(extent), wanted);
  }
}

void check_type(const Impl& file, const std::string& name, const DatasetInfo& info, DType wanted) {
  if (info.dtype != wanted) {
    file.fail("dataset {} holds {}, wanted {}", shown(name), name_of(info.dtype), name_of(wanted));
  }
}

void check_box(const Impl& file, const std::string& name, const DatasetInfo& info, Extent offset,
               Extent extent) {
  if (!box_is_within(offset, extent, info.dims)) {
    file.fail("dataset {} has dims {}: a box of {} at {} is not in it", shown(name), dims_text(info.dims),
              dims_text(extent), dims_text(offset));
  }
}

std::vector<std::int64_t> sum(Extent a, Extent b) {
  std::vector<std::int64_t> c(a.begin(), a.end());
  for (std::size_t d = 0; d < c.size(); ++d) c[d] += b[d];
  return c;
}

std::vector<std::int64_t> copy(Extent dims) { return {dims.begin(), dims.end()}; }

void write_box(const Impl& file, const Hdf5Handle& dataset, const std::string& name, DType dtype,
               Extent offset, Extent extent, std::span<const std::byte> data) {
  const Hdf5Handle type = hdf5_type(dtype);
  const auto size = static_cast<std::int64_t>(size_of(dtype));
  for (const SlabSlice& slice : slices_of(extent, kSliceBytes / size)) {
    const Hdf5Handle memory = hdf5_space(slice.extent);
    const Hdf5Handle box = hdf5_box(hdf5_space_of(dataset), sum(offset, slice.offset), slice.extent);
    const std::byte* from = data.data() + slice.first * size;
    if (H5Dwrite(dataset.get(), type.get(), memory.get(), box.get(), H5P_DEFAULT, from) < 0) {
      file.fail("cannot write dataset {}", shown(name));
    }
  }
}

void read_box(const Impl& file, const Hdf5Handle& dataset, const std::string& name, DType dtype,
              Extent offset, Extent extent, std::span<std::byte> out) {
  const Hdf5Read what{dtype, copy(offset), copy(extent), Extents(extent.size()), copy(extent)};
  if (!read_virtual_box(file, dataset, name, what, out)) read_hdf5_box(file, dataset, name, what, out);
}

}  // namespace

void read_hdf5_box(const Impl& file, const Hdf5Handle& dataset, const std::string& name, const Hdf5Read& what,
                   std::span<std::byte> out) {
  const Hdf5Handle type = hdf5_type(what.dtype);
  const auto size = static_cast<std::int64_t>(size_of(what.dtype));
  for (const SlabSlice& slice : slices_of(what.extent, kSliceBytes / size)) {
    const Hdf5Handle memory = hdf5_box(hdf5_space(what.out_dims), sum(what.at, slice.offset), slice.extent);
    const Hdf5Handle box = hdf5_box(hdf5_space_of(dataset), sum(what.offset, slice.offset), slice.extent);
    if (H5Dread(dataset.get(), type.get(), memory.get(), box.get(), H5P_DEFAULT, out.data()) < 0) {
      file.fail("cannot read dataset {}", shown(name));
    }
  }
}

void Hdf5File::create_dataset(const std::string& dataset, DType dtype, Extent dims) {
  const auto lock = lock_hdf5();
  check(element_count(dims).has_value(), "the dims of a new dataset have a size");
  impl_->create_dataset(dataset, dtype, hdf5_space(dims), hdf5_dataset_properties());
}

void Hdf5File::write_dataset(const std::string& dataset, DType dtype, Extent dims,
                             std::span<const std::byte> data) {
  const auto lock = lock_hdf5();
  check_bytes(dataset, dtype, dims, data.size());
  const Hdf5Handle made = impl_->create_dataset(dataset, dtype, hdf5_space(dims), hdf5_dataset_properties());
  const std::vector<std::int64_t> origin(dims.size());
  write_box(*impl_, made, dataset, dtype, origin, dims, data);
}

std::uint64_t Hdf5File::reserve_dataset(const std::string& dataset, DType dtype, Extent dims) {
  const auto lock = lock_hdf5();
  check(element_count(dims).value_or(0) > 0, "room for at least one element");
  const Hdf5Handle properties = hdf5_dataset_properties();
  check(H5Pset_alloc_time(properties.get(), H5D_ALLOC_TIME_EARLY) >= 0, "HDF5 takes early allocation");
  const Hdf5Handle made = impl_->create_dataset(dataset, dtype, hdf5_space(dims), properties);
  const haddr_t place = H5Dget_offset(made.get());
  if (place == HADDR_UNDEF) impl_->fail("cannot make room for dataset {}", shown(dataset));
  return place;
}

void Hdf5File::write_slab(const std::string& dataset, DType dtype, Extent offset, Extent extent,
                          std::span<const std::byte> data) {
  const auto lock = lock_hdf5();
  check_bytes(dataset, dtype, extent, data.size());
  const Hdf5Handle opened = impl_->open_dataset(dataset);
  const DatasetInfo info = impl_->info(opened, dataset);
  check_type(*impl_, dataset, info, dtype);
  check_box(*impl_, dataset, info, offset, extent);
  write_box(*impl_, opened, dataset, dtype, offset, extent, data);
}

DatasetInfo Hdf5File::info(const std::string& dataset) const {
  const auto lock = lock_hdf5();
  return impl_->info(impl_->open_dataset(dataset), dataset);
}

void Hdf5File::read_dataset(const std::string& dataset, DType dtype, Extent dims,
                            std::span<std::byte> out) const {
  const auto lock = lock_hdf5();
  check_bytes(dataset, dtype, dims, out.size());
  const Hdf5Handle opened = impl_->open_dataset(dataset);
  const DatasetInfo info = impl_->info(opened, dataset);
  if (info.dtype != dtype || !std::ranges::equal(info.dims, dims)) {
    impl_->fail("dataset {} is {} {}, wanted {} {}", shown(dataset), name_of(info.dtype),
                dims_text(info.dims), name_of(dtype), dims_text(dims));
  }
  const std::vector<std::int64_t> origin(dims.size());
  read_box(*impl_, opened, dataset, dtype, origin, dims, out);
}

void Hdf5File::read_slab(const std::string& dataset, DType dtype, Extent offset, Extent extent,
                         std::span<std::byte> out) const {
  const auto lock = lock_hdf5();
  check_bytes(dataset, dtype, extent, out.size());
  const Hdf5Handle opened = impl_->open_dataset(dataset);
  const DatasetInfo info = impl_->info(opened, dataset);
  check_type(*impl_, dataset, info, dtype);
  check_box(*impl_, dataset, info, offset, extent);
  read_box(*impl_, opened, dataset, dtype, offset, extent, out);
}

void Hdf5File::read_rows(const std::string& dataset, DType dtype, std::int64_t first, std::int64_t count,
                         std::span<std::byte> out) const {
  std::vector<std::int64_t> extent = info(dataset).dims;
  require(!extent.empty(), "HDF5 file '{}': dataset {} is a scalar and has no rows", path(), shown(dataset));
  std::vector<std::int64_t> offset(extent.size());
  offset[0] = first;
  extent[0] = count;
  read_slab(dataset, dtype, offset, extent, out);
}

void Hdf5File::create_growing(const std::string& dataset, DType dtype, std::int64_t chunk) {
  const auto lock = lock_hdf5();
  const auto chunk_size = static_cast<hsize_t>(chunk);
  const hsize_t none = 0, unlimited = H5S_UNLIMITED;
  const Hdf5Handle properties = hdf5_dataset_properties();
  H5Pset_fill_time(properties.get(), H5D_FILL_TIME_IFSET);
  check(H5Pset_chunk(properties.get(), 1, &chunk_size) >= 0, "HDF5 takes a chunk of at least 1 element");
  const Hdf5Handle space(H5Screate_simple(1, &none, &unlimited), H5Sclose);
  impl_->create_dataset(dataset, dtype, space, properties);
}

void Hdf5File::append(const std::string& dataset, DType dtype, std::span<const std::byte> data) {
  const auto lock = lock_hdf5();
  check(data.size() % size_of(dtype) == 0, "appended bytes are whole elements");
  const Hdf5Handle opened = impl_->open_dataset(dataset);
  const DatasetInfo info = impl_->info(opened, dataset);
  check_type(*impl_, dataset, info, dtype);
  if (info.dims.size() != 1)
    impl_->fail("dataset {} has dims {}, which cannot grow", shown(dataset), dims_text(info.dims));
  const auto count = static_cast<std::int64_t>(data.size() / size_of(dtype));
  const auto grown = static_cast<hsize_t>(info.dims[0] + count);
  if (H5Dset_extent(opened.get(), &grown) < 0) impl_->fail("cannot make dataset {} longer", shown(dataset));
  write_box(*impl_, opened, dataset, dtype, info.dims, Extent(&count, 1), data);
}

}  // namespace ridge
