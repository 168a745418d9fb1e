#include "core/tensor.h"

#include <gtest/gtest.h>

#include <numeric>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "tests/test_device.h"

namespace ridge {
namespace {

Tensor counting(const Shape& shape) {
  std::vector<float> values(static_cast<std::size_t>(numel(shape)));
  std::iota(values.begin(), values.end(), 0.0f);
  return Tensor::from(values, shape);
}

template <class T = float>
std::vector<T> values_of(const Tensor& t) {
  const Tensor dense = t.as_contiguous().on(Device::cpu);
  const auto span = dense.span<T>();
  return {span.begin(), span.end()};
}

Device there() { return test::test_device(); }

TEST(Tensor, UndefinedUntilMade) {
  const Tensor t;
  EXPECT_FALSE(t.defined());
  EXPECT_THROW(t.data(), Error);
}

TEST(Tensor, MadeOfZerosAValueOrValues) {
  const Tensor z = Tensor::zeros({2, 3}, DType::i32, there());
  for (const std::int32_t x : values_of<std::int32_t>(z)) EXPECT_EQ(x, 0);
  const Tensor f = Tensor::full({5}, -2.5, DType::bf16, there());
  for (const bf16 x : values_of<bf16>(f)) EXPECT_EQ(static_cast<float>(x), -2.5f);
  const Tensor v = counting({2, 3});
  EXPECT_EQ(v.shape(), (Shape{2, 3}));
  EXPECT_EQ(v.strides(), (Strides{3, 1}));
  EXPECT_EQ(v.numel(), 6);
  EXPECT_EQ(v.bytes(), 24);
  EXPECT_EQ(v.dim(-1), 3);
  EXPECT_EQ(v.view<float>()(1, 2), 5);
  EXPECT_THROW(Tensor::from(std::vector<float>(5), {2, 3}), Error);
  EXPECT_EQ(Tensor::from(std::vector<std::int64_t>{7}, {}).item(), 7);
}

TEST(Tensor, ASizeThatOverflowsIsAnError) {
  const std::int64_t large = std::int64_t{1} << 31;
  EXPECT_THROW(Tensor::empty({large, large}, DType::f64, Device::meta), Error);
  EXPECT_THROW(Tensor::empty({large, large, large}, DType::u8, Device::meta), Error);
  EXPECT_THROW(Tensor::empty({-1}, DType::f32), Error);
}

TEST(Tensor, TypedAccessOfAnotherTypeIsAnError) {
  const Tensor t = counting({2, 3});
  EXPECT_THROW(t.view<double>(), Error);
  EXPECT_THROW(t.span<std::int32_t>(), Error);
  EXPECT_THROW(t.transposed(0, 1).span<float>(), Error);  // not contiguous
}

TEST(Tensor, ACopyOfTheValueSharesTheMemory) {
  const Tensor a = counting({4});
  const Tensor b = a;
  b.span<float>()[2] = 99;
  EXPECT_EQ(a.span<float>()[2], 99);
  EXPECT_EQ(a.storage(), b.storage());
}

TEST(Tensor, ViewsSeeTheSameMemory) {
  const Tensor t = counting({2, 3, 4});
  EXPECT_EQ(t.reshaped({6, 4}).view<float>()(5, 3), 23);
  EXPECT_EQ(t.reshaped({-1, 2}).shape(), (Shape{12, 2}));
  EXPECT_EQ(t.reshaped({24}).strides(), Strides{1});
  const Tensor turned = t.transposed(0, -1);
  EXPECT_EQ(turned.shape(), (Shape{4, 3, 2}));
  EXPECT_EQ(turned.view<float>()(3, 1, 1), 19);
  const Tensor part = t.sliced(1, 1, 3);
  EXPECT_EQ(part.shape(), (Shape{2, 2, 4}));
  EXPECT_EQ(values_of(part), (std::vector<float>{4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23}));
  EXPECT_EQ(values_of(part.sliced(2, 3, 4).transposed(0, 1)), (std::vector<float>{7, 19, 11, 23}));
  for (const Tensor& view : {t.reshaped({24}), turned, part}) EXPECT_EQ(view.storage(), t.storage());
}

TEST(Tensor, EmptyTensorsHaveViewsToo) {
  const Tensor t = Tensor::empty({0, 3}, DType::f32);
  EXPECT_EQ(t.numel(), 0);
  EXPECT_EQ(t.transposed(0, 1).shape(), (Shape{3, 0}));
  EXPECT_EQ(t.sliced(1, 1, 1).shape(), (Shape{0, 0}));
  EXPECT_EQ(t.reshaped({3, 0}).numel(), 0);
  EXPECT_EQ(counting({4}).sliced(0, 4, 4).numel(), 0);
}

TEST(Tensor, ViewsThatCannotBeAreErrors) {
  const Tensor t = counting({2, 6});
  EXPECT_THROW(t.reshaped({5, -1}), Error);
  EXPECT_THROW(t.reshaped({-1, -1}), Error);
  EXPECT_THROW(t.reshaped({13}), Error);
  EXPECT_THROW(t.transposed(0, 1).reshaped({12}), Error);
  EXPECT_THROW(t.sliced(1, 2, 7), Error);
  EXPECT_THROW(t.sliced(1, 3, 2), Error);
  EXPECT_THROW(t.sliced(1, -1, 2), Error);
  EXPECT_THROW(t.sliced(2, 0, 1), Error);
  EXPECT_THROW(t.transposed(0, 2), Error);
  EXPECT_THROW(t.expanded({2, 7}), Error);
  EXPECT_THROW(t.expanded({6}), Error);
}

TEST(Tensor, ExpandedRepeatsWithoutMemory) {
  const Tensor column = counting({3, 1});
  const Tensor wide = column.expanded({2, 3, 4});
  EXPECT_EQ(wide.strides(), (Strides{0, 1, 0}));
  EXPECT_EQ(wide.view<float>()(1, 2, 3), 2);
  const std::vector<float> want{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2};
  EXPECT_EQ(values_of(column.on(there()).expanded({2, 3, 4})), want);
  EXPECT_EQ(values_of(counting({}).expanded({3})), (std::vector<float>{0, 0, 0}));
}

TEST(Tensor, ContiguousOnlyWhereItIs) {
  const Tensor t = counting({3, 4});
  EXPECT_TRUE(t.contiguous());
  EXPECT_EQ(t.as_contiguous().data(), t.data());
  EXPECT_NE(t.contiguous_copy().data(), t.data());
  const Tensor turned = t.on(there()).transposed(0, 1);
  EXPECT_FALSE(turned.contiguous());
  EXPECT_EQ(values_of(turned), (std::vector<float>{0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11}));
  EXPECT_TRUE(t.sliced(0, 1, 2).contiguous());
}

TEST(Tensor, ConversionAmongAllTypes) {
  const DType all[] = {DType::f32, DType::f64, DType::bf16, DType::f16,
                       DType::i32, DType::i64, DType::u8,   DType::i8};
  const Tensor numbers = Tensor::from(std::vector<double>{0, 1, 5, 100, 127}, {5});  // every type has these
  for (const DType from : all) {
    for (const DType to : all) {
      const Tensor t = numbers.on(there()).to(from).to(to);
      EXPECT_EQ(t.dtype(), to);
      EXPECT_EQ(t.device(), there());
      EXPECT_EQ(values_of<double>(t.to(DType::f64)), values_of<double>(numbers))
          << name_of(from) << " to " << name_of(to);
    }
  }
  EXPECT_EQ(numbers.to(DType::f64).data(), numbers.data());  // nothing changes: nothing is copied
}

TEST(Tensor, CopyIntoAStridedViewOfAnotherType) {
  const Tensor to = Tensor::full({3, 4}, -1, DType::bf16, there());
  const std::vector<float> want{-1, 0, 3, -1, -1, 1, 4, -1, -1, 2, 5, -1};
  const Tensor from = counting({2, 3});
  for (const Tensor& source : {from, from.on(there())}) {  // of either device
    to.copy_from(Tensor::full({3, 4}, -1, DType::f32, there()));
    to.sliced(1, 1, 3).copy_from(source.transposed(0, 1));
    EXPECT_EQ(values_of(to.to(DType::f32)), want);
  }
  EXPECT_THROW(to.copy_from(counting({4, 3})), Error);
  EXPECT_THROW(to.copy_from(Tensor::empty({3, 4}, DType::bf16, Device::meta)), Error);
}

TEST(Tensor, OnAnotherDeviceAreTheSameElements) {
  const Tensor t = counting({3, 4});
  EXPECT_EQ(t.on(Device::cpu).data(), t.data());  // it is there already
  const Tensor moved = t.transposed(0, 1).on(there());
  EXPECT_EQ(moved.device(), there());
  EXPECT_EQ(moved.shape(), (Shape{4, 3}));
  const std::vector<float> want{0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11};
  EXPECT_EQ(values_of(moved), want);
  EXPECT_EQ(values_of(t.on(there()).transposed(0, 1).on(Device::cpu)), want);
  EXPECT_EQ(Tensor::empty({0, 3}, DType::f32).on(there()).on(Device::cpu).numel(), 0);
}

TEST(Tensor, ItemOfOneElementOfAnyType) {
  for (const DType dtype :
       {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i32, DType::i64, DType::i8})
    EXPECT_EQ(Tensor::full({1, 1}, -3, dtype, there()).item(), -3) << name_of(dtype);
  EXPECT_EQ(Tensor::full({}, 200, DType::u8, there()).item(), 200);
  EXPECT_EQ(counting({2, 3}).on(there()).sliced(0, 1, 2).sliced(1, 1, 2).item(), 4);
  EXPECT_THROW(counting({2}).item(), Error);
}

TEST(Tensor, PartsThatFollowOneAnotherAreJoined) {
  const Tensor whole = counting({6, 3}).on(there());
  const Tensor a = whole.sliced(0, 1, 2), b = whole.sliced(0, 2, 4), c = whole.sliced(0, 4, 6);
  const Tensor all = Tensor::joined({a, b, c});
  ASSERT_TRUE(all.defined());
  EXPECT_EQ(all.shape(), (Shape{5, 3}));
  EXPECT_EQ(all.data(), a.data());
  EXPECT_EQ(values_of(all), values_of(whole.sliced(0, 1, 6)));
  EXPECT_EQ(Tensor::joined({b}).shape(), b.shape());
  const Tensor flat = whole.reshaped({18});
  EXPECT_EQ(Tensor::joined({flat.sliced(0, 0, 2), flat.sliced(0, 2, 7)}).shape(), Shape{7});
}

TEST(Tensor, PartsThatDoNotFollowOneAnotherAreNot) {
  const Tensor whole = counting({6, 3}).on(there()), flat = whole.reshaped({18});
  const Tensor a = whole.sliced(0, 0, 2), b = whole.sliced(0, 2, 4), c = whole.sliced(0, 4, 6);
  const Tensor flat_b = flat.sliced(0, 6, 12);
  const std::vector<std::vector<Tensor>> cases = {{b, a},
                                                  {a, c},
                                                  {a, a},
                                                  {a, b.contiguous_copy()},
                                                  {a, Tensor()},
                                                  {Tensor(), a},
                                                  {a, flat_b},
                                                  {a, flat_b.reshaped({3, 2})},
                                                  {whole.sliced(1, 0, 1), whole.sliced(1, 1, 2)}};
  for (std::size_t i = 0; i < cases.size(); ++i)
    EXPECT_FALSE(Tensor::joined(cases[i]).defined()) << "case " << i;
}

TEST(Tensor, BorrowedMemoryLivesAsLongAsTheTensor) {
  auto owner = std::make_shared<std::vector<float>>(6, 4.0f);
  const std::weak_ptr<std::vector<float>> watch = owner;
  {
    const Tensor t = Tensor::borrow(owner->data(), {2, 3}, DType::f32, owner);
    owner.reset();
    EXPECT_FALSE(watch.expired());
    EXPECT_EQ(t.sliced(0, 1, 2).span<float>()[2], 4);
    EXPECT_TRUE(t.storage()->borrowed());
  }
  EXPECT_TRUE(watch.expired());
}

TEST(Tensor, MetaHasAShapeAndNoData) {
  const Tensor t = Tensor::zeros({1 << 20, 1 << 20}, DType::f32, Device::meta);
  EXPECT_EQ(t.data(), nullptr);
  EXPECT_EQ(t.transposed(0, 1).sliced(0, 5, 9).shape(), (Shape{4, 1 << 20}));
  EXPECT_EQ(t.to(DType::bf16).bytes(), std::int64_t{1} << 41);
  EXPECT_EQ(Tensor::full({2}, 3, DType::f32, Device::meta).device(), Device::meta);
  EXPECT_THROW(Tensor::empty({1}, DType::f32, Device::meta).item(), Error);
  EXPECT_THROW(t.span<float>(), Error);
}

TEST(Tensor, ViewsAndCopiesHaveNoHistory) {
  Tensor t = counting({2, 3});
  autograd::set_requires_grad(t, true);
  EXPECT_TRUE(t.requires_grad());
  EXPECT_TRUE(Tensor(t).requires_grad());
  for (const Tensor& view : {t.detached(), t.reshaped({6}), t.transposed(0, 1), t.sliced(0, 0, 1),
                             t.contiguous_copy(), t.to(DType::f64)})
    EXPECT_FALSE(view.requires_grad());
  autograd::set_requires_grad(t, false);
  EXPECT_FALSE(t.requires_grad());
}

}  // namespace
}  // namespace ridge
