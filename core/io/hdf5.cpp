#include "core/io/hdf5.h"

#include <fcntl.h>
#include <hdf5.h>

#include <algorithm>
#include <cerrno>

#include "core/io/file.h"
#include "core/io/hdf5_internal.h"
#include "core/io/quote.h"

namespace ridge {
namespace {

// Without this the root group would carry the time of its creation.
Hdf5Handle creation_properties() {
  Hdf5Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  check(H5Pset_obj_track_times(creation.get(), false) >= 0, "HDF5 takes file creation properties");
  return creation;
}

// The system's own words for a path that cannot be opened are clearer than the library's.
void check_path(const std::string& path, int flags) {
  const FileDescriptor fd(::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, 0666));
  require(fd.get() >= 0, "cannot open '{}': {}", path, errno_text(errno));
}

}  // namespace

Hdf5File::Hdf5File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Hdf5File::Hdf5File(Hdf5File&&) noexcept = default;

Hdf5File& Hdf5File::operator=(Hdf5File&& other) noexcept {
  std::swap(impl_, other.impl_);
  return *this;
}

Hdf5File::~Hdf5File() {
  if (!impl_) return;
  const auto lock = lock_hdf5();
  impl_.reset();
}

Hdf5File Hdf5File::create(const std::string& path) {
  check_path(path, O_RDWR | O_CREAT);
  const auto lock = lock_hdf5();
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->file = {
      H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation_properties().get(), hdf5_access_properties().get()),
      H5Fclose};
  if (impl->file.get() < 0) impl->fail("cannot create it");
  return Hdf5File(std::move(impl));
}

Hdf5File Hdf5File::open(const std::string& path, Access access) {
  const bool write = access == Access::read_write;
  check_path(path, write ? O_RDWR : O_RDONLY);
  const auto lock = lock_hdf5();
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  require(H5Fis_hdf5(path.c_str()) > 0, "'{}' is not an HDF5 file", path);
  const Hdf5Handle properties = hdf5_access_properties();
  impl->file = {H5Fopen(path.c_str(), write ? H5F_ACC_RDWR : H5F_ACC_RDONLY, properties.get()), H5Fclose};
  if (impl->file.get() < 0) impl->fail("cannot open it");
  return Hdf5File(std::move(impl));
}

void Hdf5File::close() {
  const auto lock = lock_hdf5();
  const bool flushed = H5Fflush(impl_->file.get(), H5F_SCOPE_GLOBAL) >= 0;
  if (!flushed) impl_->fail("cannot write it");
  if (!impl_->file.close()) impl_->fail("cannot close it");
}

const std::string& Hdf5File::path() const { return impl_->path; }

void Hdf5File::create_group(const std::string& group) {
  const auto lock = lock_hdf5();
  impl_->create_groups_above(group);
  const Hdf5Handle made = impl_->create_group(group);
}

bool Hdf5File::exists(const std::string& object) const {
  const auto lock = lock_hdf5();
  return impl_->has_link(object);
}

std::vector<std::string> Hdf5File::names(const std::string& group) const {
  const auto lock = lock_hdf5();
  if (!impl_->has_link(group)) impl_->fail("there is no group {}", shown(group));
  const Hdf5Handle handle(H5Gopen2(impl_->file.get(), group.c_str(), H5P_DEFAULT), H5Gclose);
  if (handle.get() < 0) impl_->fail("{} is not a group", shown(group));
  std::vector<std::string> names;
  for (hsize_t i = 0;; ++i) {
    const auto get_name = [&](char* text, std::size_t size) {
      return H5Lget_name_by_idx(handle.get(), ".", H5_INDEX_NAME, H5_ITER_INC, i, text, size, H5P_DEFAULT);
    };
    const ssize_t length = get_name(nullptr, 0);
    if (length < 0) break;  // no i-th link
    std::string name(static_cast<std::size_t>(length), '\0');
    get_name(name.data(), name.size() + 1);
    names.push_back(std::move(name));
  }
  H5Eclear2(H5E_DEFAULT);
  std::ranges::sort(names);
  return names;
}

}  // namespace ridge
