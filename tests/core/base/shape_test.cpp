#include "core/base/shape.h"

#include <gtest/gtest.h>

#include <limits>

#include "core/base/view.h"

namespace ridge {
namespace {

TEST(Dims, AreAValue) {
  Dims d{2, 3, 4};
  EXPECT_EQ(d.ndim(), 3);
  EXPECT_EQ(d[0], 2);
  EXPECT_EQ(d[-1], 4);
  EXPECT_EQ(d[-3], 2);
  const Dims copy = d;
  d[1] = 9;
  EXPECT_EQ(copy[1], 3);
  EXPECT_FALSE(d == copy);
  d.push_back(5);
  EXPECT_EQ(d, (Dims{2, 9, 4, 5}));
  EXPECT_FALSE((Dims{2, 3}) == (Dims{2, 3, 1}));
  EXPECT_EQ(Dims{}, Dims{});
}

TEST(Dims, OutsideIsAnError) {
  Dims d{2, 3};
  EXPECT_THROW(d[2], Error);
  EXPECT_THROW(d[-3], Error);
  EXPECT_THROW(Dims{}[0], Error);
  EXPECT_THROW((Dims{1, 2, 3, 4, 5, 6, 7}), Error);
  Dims six{1, 2, 3, 4, 5, 6};
  EXPECT_THROW(six.push_back(7), Error);
}

TEST(Shapes, NumberOfElements) {
  EXPECT_EQ(numel({}), 1);
  EXPECT_EQ(numel({3, 0, 5}), 0);
  EXPECT_EQ(numel({3, 4, 5}), 60);
  EXPECT_THROW(numel({3, -1}), Error);
  const std::int64_t half = std::int64_t{1} << 32;
  EXPECT_THROW(numel({half, half}), Error);
  EXPECT_EQ(numel({half, half / 4}), std::int64_t{1} << 62);
}

TEST(Shapes, StridesAreRowMajor) {
  EXPECT_EQ(contiguous_strides({2, 3, 4}), (Strides{12, 4, 1}));
  EXPECT_EQ(contiguous_strides({}), Strides{});
}

TEST(Shapes, Text) {
  EXPECT_EQ(to_string(Shape{}), "[]");
  EXPECT_EQ(to_string(Shape{2, -1, 30}), "[2, -1, 30]");
}

TEST(Shapes, BroadcastAsNumPy) {
  EXPECT_EQ(broadcast({2, 3}, {3}), (Shape{2, 3}));
  EXPECT_EQ(broadcast({2, 1, 4}, {5, 1}), (Shape{2, 5, 4}));
  EXPECT_EQ(broadcast({}, {2}), Shape{2});
  EXPECT_EQ(broadcast({0}, {1}), Shape{0});
  EXPECT_EQ(broadcast({1, 1}, {1}), (Shape{1, 1}));
  try {
    broadcast({2, 3}, {4, 3});
    FAIL();
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("[2, 3]"), std::string::npos);
    EXPECT_NE(message.find("[4, 3]"), std::string::npos);
  }
  EXPECT_THROW(broadcast({0}, {2}), Error);
}

TEST(Views, IndexAndContiguity) {
  int data[24];
  for (int i = 0; i < 24; ++i) data[i] = i;
  const View<int> v(data, {2, 3, 4});
  EXPECT_EQ(v(1, 2, 3), 23);
  EXPECT_EQ(v(1, 0, 2), 14);
  EXPECT_TRUE(v.contiguous());
  EXPECT_TRUE(v.rows_dense());
  EXPECT_EQ(v.bytes(), 96);
  const View<const int> t(data, {4, 3, 2}, {1, 4, 12});
  EXPECT_EQ(t(3, 2, 1), 23);
  EXPECT_FALSE(t.contiguous());
  EXPECT_FALSE(t.rows_dense());
  EXPECT_TRUE(
      View<int>(data, {1, 4}, {77, 1}).contiguous());  // the stride of an extent of one does not matter
  EXPECT_TRUE(View<int>(data, {4, 1}, {1, 77}).rows_dense());
  EXPECT_FALSE(View<int>(data, {2, 4}, {5, 1}).contiguous());
  const View<const int> readable = v;
  EXPECT_EQ(readable.data, v.data);
}

}  // namespace
}  // namespace ridge
