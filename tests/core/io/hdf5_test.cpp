#include "core/io/hdf5.h"

#include <gtest/gtest.h>

#include <thread>

#include "core/io/slab.h"
#include "tests/core/io/io_test_util.h"

namespace ridge {
namespace {

using test::expect_contains;
using test::message_of;
using test::TemporaryFolder;
using Bytes = std::vector<std::byte>;

constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16,
                             DType::i32, DType::i64, DType::u8,   DType::i8};

std::size_t byte_count(DType dtype, const Extents& dims) {
  return static_cast<std::size_t>(*element_count(dims)) * size_of(dtype);
}

Bytes read(const Hdf5File& file, const std::string& name, DType dtype, const Extents& dims) {
  Bytes out(byte_count(dtype, dims));
  file.read_dataset(name, dtype, dims, out);
  return out;
}

Bytes read_box(const Hdf5File& file, const std::string& name, DType dtype, const Extents& at,
               const Extents& extent) {
  Bytes out(byte_count(dtype, extent));
  file.read_slab(name, dtype, at, extent, out);
  return out;
}

// The box of a 2-D row-major array, by hand.
Bytes box_of(const Bytes& all, std::size_t width, std::size_t item, const Extents& at,
             const Extents& extent) {
  Bytes out;
  for (std::int64_t r = at[0]; r < at[0] + extent[0]; ++r) {
    const auto begin =
        all.begin() + static_cast<std::ptrdiff_t>(
                          (static_cast<std::size_t>(r) * width + static_cast<std::size_t>(at[1])) * item);
    out.insert(out.end(), begin,
               begin + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(extent[1]) * item));
  }
  return out;
}

TEST(Hdf5, EveryDtypeComesBackBitForBit) {
  TemporaryFolder folder;
  std::mt19937 rng(1);
  const std::vector<Extents> kShapes = {{}, {1}, {0}, {7}, {3, 5}, {4, 0, 2}, {2, 3, 1, 5}};
  std::vector<Bytes> data;
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    for (const DType dtype : kDTypes) {
      for (const Extents& dims : kShapes) {
        data.push_back(test::random_bytes(byte_count(dtype, dims), rng));  // NaNs of every kind among them
        file.write_dataset(fmt::format("/{}/d{}.w", name_of(dtype), data.size()), dtype, dims, data.back());
      }
    }
    file.close();
  }
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  std::size_t i = 0;
  for (const DType dtype : kDTypes) {
    for (const Extents& dims : kShapes) {
      const std::string name = fmt::format("/{}/d{}.w", name_of(dtype), i + 1);
      EXPECT_EQ(file.info(name).dtype, dtype);
      EXPECT_EQ(file.info(name).dims, dims);
      EXPECT_EQ(read(file, name, dtype, dims), data[i++]) << name;
    }
  }
}

TEST(Hdf5, SlabsAndRowsAreTheRightParts) {
  TemporaryFolder folder;
  std::mt19937 rng(2);
  const Bytes all = test::random_bytes(13 * 17 * 2, rng);
  Hdf5File file = Hdf5File::create(folder / "a.h5");
  file.create_dataset("w", DType::bf16, Extents{13, 17});
  file.write_slab("w", DType::bf16, Extents{0, 0}, Extents{13, 9}, box_of(all, 17, 2, {0, 0}, {13, 9}));
  file.write_slab("w", DType::bf16, Extents{0, 9}, Extents{13, 8}, box_of(all, 17, 2, {0, 9}, {13, 8}));
  EXPECT_EQ(read(file, "w", DType::bf16, {13, 17}), all);
  EXPECT_EQ(read_box(file, "w", DType::bf16, {3, 5}, {7, 11}), box_of(all, 17, 2, {3, 5}, {7, 11}));
  EXPECT_TRUE(read_box(file, "w", DType::bf16, {13, 0}, {0, 17}).empty());
  Bytes rows(4 * 17 * 2);
  file.read_rows("w", DType::bf16, 9, 4, rows);
  EXPECT_EQ(rows, box_of(all, 17, 2, {9, 0}, {4, 17}));
}

TEST(Hdf5, SameContentMakesTheSameFile) {
  TemporaryFolder folder;
  const std::vector<float> data{1, 2, 3};
  for (const char* name : {"a.h5", "b.h5"}) {
    Hdf5File file = Hdf5File::create(folder / name);
    file.write_dataset("g/w", DType::f32, Extents{3}, test::bytes_of(data));
    file.set_attribute("g", "step", std::int64_t{5});
    file.close();
    if (name[0] == 'a') std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // another second
  }
  EXPECT_TRUE(test::read_text(folder / "a.h5") == test::read_text(folder / "b.h5"));
}

TEST(Hdf5, AttributesComeBack) {
  TemporaryFolder folder;
  const std::string long_text(100'000, 'x');
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.create_group("/state/rng");
    file.set_attribute("/", "step", std::int64_t{-(std::int64_t{1} << 62)});
    file.set_attribute("/state/rng", "lr", 0.1);
    file.set_attribute("/", "text", "old");
    file.set_attribute("/", "text", "d\u00e9j\u00e0\nvu");
    file.set_attribute("/", "empty", "");
    file.set_attribute("/", "long", long_text);
  }
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  EXPECT_EQ(file.int_attribute("/", "step"), -(std::int64_t{1} << 62));
  EXPECT_EQ(file.double_attribute("/state/rng", "lr"), 0.1);
  EXPECT_EQ(file.string_attribute("/", "text"), "d\u00e9j\u00e0\nvu");
  EXPECT_EQ(file.string_attribute("/", "empty"), "");
  EXPECT_EQ(file.string_attribute("/", "long"), long_text);
  EXPECT_TRUE(file.has_attribute("/", "step"));
  EXPECT_FALSE(file.has_attribute("/", "stop"));
  expect_contains(message_of([&] { file.int_attribute("/", "stop"); }), "'/' has no attribute 'stop'");
  expect_contains(message_of([&] { file.int_attribute("/", "text"); }),
                  "'text' of '/' is not one whole number");
  expect_contains(message_of([&] { file.double_attribute("/", "step"); }),
                  "is not one floating-point number");
  expect_contains(message_of([&] { file.string_attribute("/", "step"); }), "is not one string");
  expect_contains(message_of([&] { file.string_attribute("/none", "step"); }), "there is no object '/none'");
}

TEST(Hdf5, ListsAndFindsNames) {
  TemporaryFolder folder;
  Hdf5File file = Hdf5File::create(folder / "a.h5");
  file.create_group("params");
  file.create_dataset("params/z.weight", DType::f32, Extents{1});
  file.create_dataset("params/a.bias", DType::f32, Extents{1});
  file.create_group("\u00e9");
  EXPECT_EQ(file.names(), (std::vector<std::string>{"params", "\u00e9"}));
  EXPECT_EQ(file.names("/params"), (std::vector<std::string>{"a.bias", "z.weight"}));
  EXPECT_TRUE(file.exists("/") && file.exists("params") && file.exists("/params/a.bias"));
  EXPECT_FALSE(file.exists("params/a") || file.exists("none/a") || file.exists("params/a.bias/x"));
  expect_contains(message_of([&] { file.names("none"); }), "there is no group 'none'");
  expect_contains(message_of([&] { file.names("params/a.bias"); }), "'params/a.bias' is not a group");
  expect_contains(message_of([&] { file.create_group("params"); }), "cannot create group 'params'");
}

TEST(Hdf5, AppendedElementsComeBack) {
  TemporaryFolder folder;
  std::mt19937 rng(4);
  std::vector<std::int32_t> all;
  Hdf5File file = Hdf5File::create(folder / "a.h5");
  file.create_growing("tokens", DType::i32, 64);
  for (int round = 0; round < 30; ++round) {
    std::vector<std::int32_t> part(rng() % 100);
    for (std::int32_t& x : part) x = static_cast<std::int32_t>(rng());
    file.append("tokens", DType::i32, test::bytes_of(part));
    all.insert(all.end(), part.begin(), part.end());
  }
  file.close();
  file = Hdf5File::open(folder / "a.h5", Hdf5File::Access::read_write);
  file.append("tokens", DType::i32, test::bytes_of(all));
  all.insert(all.end(), all.begin(), all.end());
  const auto n = static_cast<std::int64_t>(all.size());
  const Bytes wanted(test::bytes_of(all).begin(), test::bytes_of(all).end());
  EXPECT_EQ(read(file, "tokens", DType::i32, {n}), wanted);
  expect_contains(message_of([&] { file.append("tokens", DType::i64, {}); }),
                  "'tokens' holds i32, wanted i64");
  file.create_dataset("fixed", DType::i32, Extents{2});
  expect_contains(message_of([&] { file.append("fixed", DType::i32, test::bytes_of(all)); }),
                  "cannot make dataset 'fixed' longer");
  file.create_dataset("flat", DType::i32, Extents{2, 2});
  expect_contains(message_of([&] { file.append("flat", DType::i32, test::bytes_of(all)); }),
                  "dims [2, 2], which cannot grow");
}

TEST(Hdf5, DisagreementsAreNamed) {
  TemporaryFolder folder;
  const std::vector<float> data(6, 1.0f);
  Hdf5File file = Hdf5File::create(folder / "a.h5");
  file.write_dataset("w", DType::f32, Extents{2, 3}, test::bytes_of(data));
  Bytes out(24);
  const auto says = [&](auto f, std::string_view part) {
    const std::string message = message_of(f);
    expect_contains(message, "HDF5 file '" + (folder / "a.h5") + "'");
    expect_contains(message, part);
  };
  says(
      [&] {
        file.read_dataset("w", DType::f32, Extents{3, 2}, out);
      },
      "'w' is f32 [2, 3], wanted f32 [3, 2]");
  says(
      [&] {
        file.read_dataset("w", DType::i32, Extents{2, 3}, out);
      },
      "'w' is f32 [2, 3], wanted i32 [2, 3]");
  says(
      [&] {
        file.read_slab("w", DType::f32, Extents{1, 0}, Extents{2, 3}, out);
      },
      "dims [2, 3]: a box of [2, 3] at [1, 0] is not in it");
  says([&] { file.read_rows("w", DType::f32, 1, 2, out); }, "is not in it");
  says([&] { file.write_slab("w", DType::f32, Extents{0, 1}, Extents{2, 3}, out); }, "is not in it");
  says([&] { file.read_dataset("v", DType::f32, Extents{2, 3}, out); }, "there is no dataset 'v'");
  says([&] { file.write_dataset("w", DType::f32, Extents{2, 3}, out); }, "cannot create dataset 'w'");
  file.create_group("g");
  says([&] { file.info("g"); }, "cannot open dataset 'g'");
  expect_contains(message_of<Error>([&] {
                    file.read_dataset("w", DType::f32, Extents{2, 3}, std::span(out).first(20));
                  }),
                  "20 bytes given for f32 [2, 3], which has 24");
  expect_contains(message_of<Error>([&] { file.write_dataset("x", DType::f32, Extents{2}, out); }),
                  "24 bytes given");
}

TEST(Hdf5, FilesThatAreNotHdf5AreNamed) {
  TemporaryFolder folder;
  const std::string missing = message_of([&] { Hdf5File::open(folder / "none.h5"); });
  expect_contains(missing, "cannot open '" + (folder / "none.h5") + "': No such file or directory");
  test::write_text(folder / "text.h5", "hello, I am no HDF5 file");
  expect_contains(message_of([&] { Hdf5File::open(folder / "text.h5"); }), "text.h5' is not an HDF5 file");
  test::write_text(folder / "empty.h5", "");
  expect_contains(message_of([&] { Hdf5File::open(folder / "empty.h5"); }), "is not an HDF5 file");
  expect_contains(message_of([&] { Hdf5File::create(folder / "no/a.h5"); }), "No such file or directory");
  expect_contains(message_of([&] { Hdf5File::create(folder.path()); }), "Is a directory");
}

TEST(Hdf5, ATruncatedFileIsAnErrorAtEveryLength) {
  TemporaryFolder folder;
  const std::vector<float> data(5'000, 1.0f);
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.write_dataset("g/w", DType::f32, Extents{5'000}, test::bytes_of(data));
  }
  const std::string whole = test::read_text(folder / "a.h5");
  for (std::size_t length = 0; length < whole.size(); length += 487) {
    test::write_text(folder / "cut.h5", std::string_view(whole).substr(0, length));
    const std::string message = message_of([&] { Hdf5File::open(folder / "cut.h5"); });
    expect_contains(message, "cut.h5'");
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
  expect_contains(message_of([&] { Hdf5File::open(folder / "cut.h5"); }), "truncated file");
}

TEST(Hdf5, ReadOnlyFilesAreNotWritten) {
  TemporaryFolder folder;
  Hdf5File::create(folder / "a.h5").close();
  Hdf5File file = Hdf5File::open(folder / "a.h5");
  expect_contains(message_of([&] { file.create_group("g"); }), "cannot create group 'g': ");
}

TEST(Hdf5, AFullDiskIsAnError) {
  TemporaryFolder folder;
  const std::vector<float> data(100'000, 1.0f);
  const std::string message = test::message_on_full_disk(50'000, [&] {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.write_dataset("w", DType::f32, Extents{100'000}, test::bytes_of(data));
    file.close();
  });
  expect_contains(message, "HDF5 file '" + (folder / "a.h5") + "'");
  expect_contains(message, "File too large");
}

TEST(Hdf5, WhatIsWrittenIntoReservedRoomIsRead) {
  TemporaryFolder folder;
  std::mt19937 rng(8);
  const std::vector<std::vector<std::int64_t>> shapes{{3, 5}, {1}, {40'000, 3}, {7, 1, 2}};
  std::vector<std::uint64_t> places;
  std::vector<Bytes> wanted;
  Hdf5File file = Hdf5File::create(folder / "a.h5");
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    places.push_back(file.reserve_dataset(fmt::format("/g/w{}", i), DType::f32, shapes[i]));
    wanted.push_back(test::random_bytes(static_cast<std::size_t>(*element_count(shapes[i])) * 4, rng));
  }
  file.close();
  std::fstream raw(folder / "a.h5", std::ios::in | std::ios::out | std::ios::binary);
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    EXPECT_LE(places[i] + wanted[i].size(), std::filesystem::file_size(folder / "a.h5")) << "room is there";
    raw.seekp(static_cast<std::streamoff>(places[i]));
    raw.write(reinterpret_cast<const char*>(wanted[i].data()),
              static_cast<std::streamsize>(wanted[i].size()));
  }
  raw.close();
  const Hdf5File again = Hdf5File::open(folder / "a.h5");
  for (std::size_t i = 0; i < shapes.size(); ++i)
    EXPECT_EQ(read(again, fmt::format("/g/w{}", i), DType::f32, shapes[i]), wanted[i]);
}

TEST(Hdf5, ThreadsTakeTurns) {
  TemporaryFolder folder;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      const std::vector<std::int64_t> data(1000, t);
      Hdf5File file = Hdf5File::create(folder / fmt::format("{}.h5", t));
      for (int i = 0; i < 20; ++i) {
        file.write_dataset(fmt::format("w{}", i), DType::i64, Extents{1000}, test::bytes_of(data));
        EXPECT_FALSE(file.exists("none"));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<std::int64_t> data(1000, 7);
  const Bytes wanted(test::bytes_of(data).begin(), test::bytes_of(data).end());
  EXPECT_EQ(read(Hdf5File::open(folder / "7.h5"), "w19", DType::i64, {1000}), wanted);
}

}  // namespace
}  // namespace ridge
