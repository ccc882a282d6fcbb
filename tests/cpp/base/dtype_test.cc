#include "base/dtype.h"

#include <gtest/gtest.h>

namespace jaxcoll {
namespace {

TEST(DTypeTest, EveryNameParsesBack) {
  for (int i = 0; i < kDTypeCount; ++i) {
    const DType dtype = static_cast<DType>(i);
    EXPECT_EQ(ParseDType(Name(dtype)), dtype);
  }
  for (int i = 0; i < kReduceOpCount; ++i) {
    const ReduceOp op = static_cast<ReduceOp>(i);
    EXPECT_EQ(ParseReduceOp(Name(op)), op);
  }
  EXPECT_EQ(ParseDType("float7"), std::nullopt);
  EXPECT_EQ(ParseReduceOp("mean"), std::nullopt);
}

TEST(DTypeTest, SizesAreThoseOfTheNames) {
  EXPECT_EQ(ItemBytes(DType::kBool), 1u);
  EXPECT_EQ(ItemBytes(DType::kFloat8E8M0Fnu), 1u);
  EXPECT_EQ(ItemBytes(DType::kBFloat16), 2u);
  EXPECT_EQ(ItemBytes(DType::kUint64), 8u);
  EXPECT_EQ(ItemBytes(DType::kComplex128), 16u);
}

TEST(DTypeTest, OpsWithoutAMeaningAreNotSupported) {
  EXPECT_FALSE(Supports(DType::kBool, ReduceOp::kSum));
  EXPECT_TRUE(Supports(DType::kBool, ReduceOp::kXor));
  EXPECT_FALSE(Supports(DType::kComplex64, ReduceOp::kMax));
  EXPECT_TRUE(Supports(DType::kComplex64, ReduceOp::kProd));
  EXPECT_FALSE(Supports(DType::kFloat32, ReduceOp::kAnd));
  EXPECT_TRUE(Supports(DType::kInt8, ReduceOp::kAnd));
}

}  // namespace
}  // namespace jaxcoll
