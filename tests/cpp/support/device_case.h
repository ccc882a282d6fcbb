// Calls of a schedule on simulated GPUs, and what the engine for CPUs makes of the same inputs.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/memory/local_plan.h"
#include "support/device_world.h"
#include "support/few.h"
#include "support/op_lists.h"
#include "support/schedules.h"

namespace jaxcoll::cuda {

// Numbers of every size, and every code where there are few.
inline void Fill(unsigned char* data, size_t count, DType dtype, std::mt19937& random) {
  const size_t item = ItemBytes(dtype);
  for (size_t i = 0; i < count * item; ++i) {
    data[i] = static_cast<unsigned char>(dtype == DType::kBool ? random() % 2 : random());
  }
  for (size_t i = 0; i < count && dtype == DType::kFloat32; i += 2) {
    const float value = static_cast<float>(random()) / static_cast<float>(1 << 20);
    std::memcpy(data + i * item, &value, item);
  }
}

// One call: its inputs, its outputs, and what they should be.
struct Case {
  Launches launch;
  std::vector<std::unique_ptr<DeviceMemory>> inputs, outputs, expected;  // [vector * ranks + rank]
  std::string name;

  std::string Wrong(const std::vector<bool>& ok) const {
    const size_t ranks = launch.calls.size();
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (ok[i % ranks] &&
          std::memcmp(outputs[i]->data(), expected[i]->data(), outputs[i]->bytes()) != 0) {
        return name + ": rank " + std::to_string(i % ranks) + ", vector " +
               std::to_string(i / ranks);
      }
    }
    return "";
  }
};

inline std::string Tell(const Cause& cause) { return Describe(cause, {}, "the call", 1); }

struct Values {
  std::vector<int64_t> block_elements;
  DType dtype = DType::kFloat32;
  ReduceOp op = ReduceOp::kSum;
  uint32_t seed = 1;
  Reach reach = Reach::kRegions;
};
inline constexpr Reach kReaches[] = {Reach::kRegions, Reach::kOperands};

// Fails the test and returns null if it cannot be made.
inline std::unique_ptr<Case> Make(const std::vector<OpList>& op_lists, Collective collective,
                                  const Values& values, int max_workers = 64,
                                  const RegionSize& region = kRegion) {
  auto result = std::make_unique<Case>();
  const size_t ranks = op_lists.size();
  auto packed = Pack(op_lists, AllRanks(ranks), max_workers, values.reach);
  EXPECT_TRUE(packed.ok()) << packed.status().message();
  if (!packed.ok()) return nullptr;
  result->launch.tables = std::move(*packed);
  auto local = Compile(op_lists, collective);
  EXPECT_TRUE(local.ok()) << local.status().message();
  if (!local.ok()) return nullptr;
  const LocalPlan plan(std::make_shared<LocalActions>(std::move(*local)), values.block_elements,
                       values.dtype, values.op);
  const auto call = PlanCall(result->launch.tables[0].header(), values.block_elements, values.dtype,
                             values.op, region);
  EXPECT_TRUE(call.ok()) << call.status().message();
  if (!call.ok()) return nullptr;
  result->launch.calls.assign(ranks, *call);

  std::mt19937 random(values.seed);
  RunBuffers buffers;
  for (size_t v = 0; v < values.block_elements.size(); ++v) {
    const size_t elements = values.block_elements[v];
    for (size_t rank = 0; rank < ranks; ++rank) {
      const size_t in = elements * op_lists[0].input_blocks;
      const size_t out = elements * op_lists[0].output_blocks * ItemBytes(values.dtype);
      result->inputs.push_back(std::make_unique<DeviceMemory>(in * ItemBytes(values.dtype)));
      Fill(result->inputs.back()->data(), in, values.dtype, random);
      result->outputs.push_back(std::make_unique<DeviceMemory>(out));
      std::memset(result->outputs.back()->data(), 0xa5, out);
      result->expected.push_back(std::make_unique<DeviceMemory>(out));
      buffers.inputs.push_back(reinterpret_cast<std::byte*>(result->inputs.back()->data()));
      buffers.outputs.push_back(reinterpret_cast<std::byte*>(result->expected.back()->data()));
      result->launch.calls[rank].vectors[v].input = result->inputs.back()->data();
      result->launch.calls[rank].vectors[v].output = result->outputs.back()->data();
    }
  }
  const DeviceMemory scratch(std::max<size_t>(plan.scratch_bytes(), 1));
  buffers.scratch = reinterpret_cast<std::byte*>(scratch.data());
  for (int level = 0; level < plan.LevelCount(); ++level) {
    for (int batch = 0; batch < plan.BatchCount(level); ++batch) {
      plan.RunBatch(level, batch, buffers);
    }
  }
  return result;
}

// Runs the cases one after the other in one region.
inline void ExpectRight(const std::vector<std::unique_ptr<Case>>& cases,
                        DeviceWorld::Options options = {}, const RegionSize& region = kRegion) {
  std::vector<Launches*> launches;
  for (const auto& one : cases) launches.push_back(&one->launch);
  const int ranks = static_cast<int>(cases[0]->launch.calls.size());
  DeviceWorld world(ranks, region);
  const std::vector<bool> ok = world.Run(launches, options);
  for (int rank = 0; rank < ranks; ++rank) {
    EXPECT_TRUE(ok[rank]) << cases[0]->name << ": " << Tell(world.cause(rank));
  }
  for (const auto& one : cases) EXPECT_EQ(one->Wrong(ok), "");
}

struct Draw {
  Collective collective;
  std::string algorithm;
};

inline std::vector<Draw> EveryAlgorithm() {
  std::vector<Draw> all;
  for (const Collective collective : kCollectives) {
    for (const std::string& algorithm : Algorithms(collective)) {
      all.push_back({collective, algorithm});
    }
  }
  return all;
}

// Gives every message and every local op a channel of its own choosing.
inline std::vector<OpList> Rechannel(std::vector<OpList> op_lists, int channels,
                                     std::mt19937& random) {
  using Key = std::tuple<int32_t, int32_t, int32_t, int32_t>;  // source, destination, old ids
  std::map<Key, std::pair<int32_t, int32_t>> renamed;
  std::map<std::tuple<int32_t, int32_t, int32_t>, int32_t> sequences;
  for (OpList& op_list : op_lists) {
    for (Op& op : op_list.ops) {
      if (op.peer < 0) {
        op.channel = static_cast<int32_t>(random() % channels);
        continue;
      }
      const bool sends = op.kind == OpKind::kSend;
      const int32_t from = sends ? op_list.rank : op.peer, to = sends ? op.peer : op_list.rank;
      auto [it, added] = renamed.try_emplace({from, to, op.channel, op.sequence});
      if (added) {
        const auto channel = static_cast<int32_t>(random() % channels);
        it->second = {channel, sequences[{from, to, channel}]++};
      }
      std::tie(op.channel, op.sequence) = it->second;
    }
  }
  return op_lists;
}

// JAXCOLL_TEST_SEEDS: more of them.
inline int Seeds(int count) {
  const char* wanted = std::getenv("JAXCOLL_TEST_SEEDS");
  return wanted != nullptr ? std::atoi(wanted) : Few(count);
}

}  // namespace jaxcoll::cuda
