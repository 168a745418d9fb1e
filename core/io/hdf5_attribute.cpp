// Attributes of HDF5 objects: 64-bit integers, doubles, UTF-8 strings.
#include <hdf5.h>

#include <algorithm>

#include "core/io/hdf5_internal.h"
#include "core/io/quote.h"

namespace ridge {
namespace {

constexpr std::size_t kMaxStringBytes = std::size_t{16} << 20;

using Impl = Hdf5File::Impl;

Hdf5Handle string_type(std::size_t size) {
  Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  const bool ok = H5Tset_size(type.get(), size) >= 0 && H5Tset_strpad(type.get(), H5T_STR_NULLPAD) >= 0 &&
                  H5Tset_cset(type.get(), H5T_CSET_UTF8) >= 0;
  check(ok, "HDF5 makes a string type");
  return type;
}

void set(const Impl& file, const std::string& object, const std::string& name, hid_t type,
         const void* value) {
  const Hdf5Handle owner = file.open_object(object);
  if (H5Aexists(owner.get(), name.c_str()) > 0) H5Adelete(owner.get(), name.c_str());
  const Hdf5Handle space = hdf5_space({});
  const Hdf5Handle attribute(
      H5Acreate2(owner.get(), name.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (attribute.get() < 0 || H5Awrite(attribute.get(), type, value) < 0) {
    file.fail("cannot set attribute {} of {}", shown(name), shown(object));
  }
}

// An attribute of one value with its type.
struct Attribute {
  Hdf5Handle handle, type;
};

Attribute open_attribute(const Impl& file, const std::string& object, const std::string& name,
                         H5T_class_t wanted, std::string_view wanted_name) {
  const Hdf5Handle owner = file.open_object(object);
  if (H5Aexists(owner.get(), name.c_str()) <= 0)
    file.fail("{} has no attribute {}", shown(object), shown(name));
  Attribute attribute{{H5Aopen(owner.get(), name.c_str(), H5P_DEFAULT), H5Aclose}, {}};
  if (attribute.handle.get() < 0) file.fail("cannot open attribute {} of {}", shown(name), shown(object));
  attribute.type = {H5Aget_type(attribute.handle.get()), H5Tclose};
  const Hdf5Handle space(H5Aget_space(attribute.handle.get()), H5Sclose);
  const bool one = H5Sget_simple_extent_npoints(space.get()) == 1;
  if (!one || H5Tget_class(attribute.type.get()) != wanted) {
    file.fail("attribute {} of {} is not one {}", shown(name), shown(object), wanted_name);
  }
  return attribute;
}

void read(const Impl& file, const Attribute& attribute, hid_t type, void* value, const std::string& name) {
  if (H5Aread(attribute.handle.get(), type, value) < 0) file.fail("cannot read attribute {}", shown(name));
}

std::string read_variable_string(const Impl& file, const Attribute& attribute, const std::string& name) {
  char* text = nullptr;
  read(file, attribute, attribute.type.get(), &text, name);
  const std::string value = text == nullptr ? "" : text;
  H5free_memory(text);
  return value;
}

std::string read_fixed_string(const Impl& file, const Attribute& attribute, const std::string& name) {
  const std::size_t size = H5Tget_size(attribute.type.get());
  if (size > kMaxStringBytes)
    file.fail("attribute {} has {} bytes, at most {} are read", shown(name), size, kMaxStringBytes);
  std::string text(size, '\0');
  read(file, attribute, attribute.type.get(), text.data(), name);
  const bool padded = H5Tget_strpad(attribute.type.get()) != H5T_STR_NULLTERM;
  text.resize(padded ? text.find_last_not_of('\0') + 1 : std::min(text.find('\0'), size));
  return text;
}

}  // namespace

void Hdf5File::set_attribute(const std::string& object, const std::string& name, std::int64_t value) {
  const auto lock = lock_hdf5();
  set(*impl_, object, name, H5T_STD_I64LE, &value);
}

void Hdf5File::set_attribute(const std::string& object, const std::string& name, double value) {
  const auto lock = lock_hdf5();
  set(*impl_, object, name, H5T_IEEE_F64LE, &value);
}

void Hdf5File::set_attribute(const std::string& object, const std::string& name, std::string_view value) {
  const auto lock = lock_hdf5();
  std::string bytes(value);
  if (bytes.empty()) bytes.push_back('\0');  // a type of no bytes does not exist
  set(*impl_, object, name, string_type(bytes.size()).get(), bytes.data());
}

bool Hdf5File::has_attribute(const std::string& object, const std::string& name) const {
  const auto lock = lock_hdf5();
  const Hdf5Handle owner = impl_->open_object(object);
  return H5Aexists(owner.get(), name.c_str()) > 0;
}

std::int64_t Hdf5File::int_attribute(const std::string& object, const std::string& name) const {
  const auto lock = lock_hdf5();
  const Attribute attribute = open_attribute(*impl_, object, name, H5T_INTEGER, "whole number");
  std::int64_t value = 0;
  read(*impl_, attribute, H5T_NATIVE_INT64, &value, name);
  return value;
}

double Hdf5File::double_attribute(const std::string& object, const std::string& name) const {
  const auto lock = lock_hdf5();
  const Attribute attribute = open_attribute(*impl_, object, name, H5T_FLOAT, "floating-point number");
  double value = 0;
  read(*impl_, attribute, H5T_NATIVE_DOUBLE, &value, name);
  return value;
}

std::string Hdf5File::string_attribute(const std::string& object, const std::string& name) const {
  const auto lock = lock_hdf5();
  const Attribute attribute = open_attribute(*impl_, object, name, H5T_STRING, "string");
  const bool variable = H5Tis_variable_str(attribute.type.get()) > 0;
  return variable ? read_variable_string(*impl_, attribute, name)
                  : read_fixed_string(*impl_, attribute, name);
}

}  // namespace ridge
