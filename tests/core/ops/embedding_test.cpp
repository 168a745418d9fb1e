#include "core/ops/embedding.h"

#include "tests/core/ops/jacobian.h"

namespace ridge {
namespace {

using test::check_vjp;
using test::random_tensor;

TEST(EmbeddingVjp, RepeatedIdsAddUp) {
  const Tensor ids =
      Tensor::from(std::vector<std::int32_t>{3, 0, 3, 6, 3, 1}, {2, 3}).on(test::test_device());
  check_vjp([&](auto& in) { return ops::embedding(in[0], ids); }, {random_tensor({7, 5}, 1)});
}

TEST(Embedding, IdOutsideTheTableIsTheUsersError) {
  const Tensor ids = Tensor::from(std::vector<std::int32_t>{0, 7}, {2}).on(test::test_device());
  try {
    ops::embedding(random_tensor({7, 5}, 1), ids);
    test::wait_for_device();
    FAIL();
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find("7"), std::string::npos);
  }
}

}  // namespace
}  // namespace ridge
