#include <gtest/gtest.h>

#include <string>

#include "gpu/host/call_plan.h"

namespace jaxcoll::cuda {
namespace {

CallSpec Spec(std::string collective, std::string algorithm = "direct") {
  CallSpec spec;
  spec.collective = std::move(collective);
  spec.algorithm = std::move(algorithm);
  spec.reduce_op = "sum";
  spec.group_size = 4;
  return spec;
}

CallShape Shape(int64_t in, int64_t out, DType dtype = DType::kFloat32) {
  return {{{dtype, {in}}}, {{dtype, {out}}}};
}

std::string Refusal(const CallSpec& spec, const CallShape& shape) {
  const StatusOr<CallPlan> plan = CallPlan::Create(spec, shape, 32);
  return plan.ok() ? "" : plan.status().message();
}

TEST(CudaCallPlan, RefusesWhatTheKernelsDoNotServe) {
  EXPECT_NE(Refusal(Spec("all_reduce", "ring"), Shape(8, 8)).find("'ring'"), std::string::npos);
  EXPECT_NE(Refusal(Spec("all_gather"), Shape(8, 31)).find("31"), std::string::npos);
  EXPECT_NE(Refusal(Spec("reduce_scatter"), Shape(9, 2)).find("9"), std::string::npos);
  EXPECT_NE(Refusal(Spec("all_reduce"), Shape(8, 8, DType::kBool)).find("bool"), std::string::npos);
  CallSpec many = Spec("all_reduce");
  many.group_size = kMaxRanks + 1;
  EXPECT_NE(Refusal(many, Shape(8, 8)).find("17 GPUs"), std::string::npos);
  CallSpec permute = Spec("permute");
  permute.permutation = {0, 4};
  EXPECT_NE(Refusal(permute, Shape(8, 8)).find("rank 4"), std::string::npos);
}

TEST(CudaCallPlan, FingerprintsTellCallsApart) {
  const auto fingerprint = [](const CallSpec& spec, const CallShape& shape) {
    return CallPlan::Create(spec, shape, 32)->fingerprint;
  };
  const uint32_t sum = fingerprint(Spec("all_reduce"), Shape(8, 8));
  EXPECT_EQ(sum, fingerprint(Spec("all_reduce"), Shape(8, 8)));
  EXPECT_NE(sum, 0u);
  EXPECT_NE(sum, fingerprint(Spec("all_reduce", "direct2"), Shape(8, 8)));
  EXPECT_NE(sum, fingerprint(Spec("all_reduce"), Shape(9, 9)));
  EXPECT_NE(sum, fingerprint(Spec("all_reduce"), Shape(8, 8, DType::kInt32)));
  CallSpec product = Spec("all_reduce");
  product.reduce_op = "prod";
  EXPECT_NE(sum, fingerprint(product, Shape(8, 8)));
}

TEST(CudaCallPlan, BlocksFollowTheSizeUpToTheLimit) {
  EXPECT_EQ(CallPlan::Create(Spec("all_reduce"), Shape(1, 1), 32)->blocks, 1);
  EXPECT_EQ(CallPlan::Create(Spec("all_reduce"), Shape(1 << 24, 1 << 24), 32)->blocks, 32);
  EXPECT_EQ(CallPlan::Create(Spec("all_reduce"), Shape(1 << 24, 1 << 24), 1000)->blocks,
            kMaxBlocks);
}

TEST(CudaCallPlan, SlotsFitWhatThereIs) {
  for (const char* collective : {"all_reduce", "reduce_scatter", "all_gather", "all_to_all"}) {
    for (const int64_t elements : {4, 4096, 1 << 22}) {
      const bool splits = collective != std::string("all_reduce") && collective[0] != 'a';
      const CallShape shape =
          collective == std::string("all_gather")   ? Shape(elements, 4 * elements)
          : collective == std::string("all_to_all") ? Shape(4 * elements, 4 * elements)
          : splits                                  ? Shape(4 * elements, elements)
                                                    : Shape(elements, elements);
      const CallPlan plan = *CallPlan::Create(Spec(collective), shape, 32);
      for (const uint64_t available : {uint64_t{1} << 20, uint64_t{8} << 20}) {
        const int64_t bytes = plan.SlotBytes(available);
        ASSERT_GT(bytes, 0) << collective;
        EXPECT_EQ(bytes % kAlignment, 0);
        EXPECT_LE(plan.StagingBytes(bytes), available);
      }
      EXPECT_EQ(plan.SlotBytes(100), 0);
    }
  }
}

TEST(CudaCallPlan, ManyVectorsAreSeveralLaunches) {
  CallShape shape;
  for (int v = 0; v < kMaxVectors + 5; ++v) {
    shape.inputs.push_back({DType::kFloat32, {v + 1}});
    shape.outputs.push_back({DType::kFloat32, {v + 1}});
  }
  const CallPlan plan = *CallPlan::Create(Spec("all_reduce"), shape, 32);
  ASSERT_EQ(plan.launches(), 2);
  std::vector<const void*> inputs(shape.inputs.size(), reinterpret_cast<const void*>(0x100));
  std::vector<void*> outputs(shape.inputs.size(), reinterpret_cast<void*>(0x200));
  EXPECT_EQ(plan.Bind(0, 0, inputs.data(), outputs.data())->vector_count, kMaxVectors);
  const StatusOr<Call> second = plan.Bind(3, 1, inputs.data(), outputs.data());
  EXPECT_EQ(second->vector_count, 5);
  EXPECT_EQ(second->rank, 3);
  EXPECT_EQ(second->vectors[4].elements, kMaxVectors + 5);
  inputs[kMaxVectors] = reinterpret_cast<const void*>(0x104);
  EXPECT_FALSE(plan.Bind(0, 1, inputs.data(), outputs.data()).ok());
}

}  // namespace
}  // namespace jaxcoll::cuda
