// The draws from the seed: processes, groups, calls and their results.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "engine/memory/local_actions.h"
#include "engine/memory/local_plan.h"
#include "support/op_lists.h"
#include "support/reactor_world.h"
#include "support/schedules.h"

namespace jaxcoll {
namespace {

void StoreElement(DType dtype, float value, std::byte* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (dtype == DType::kFloat32) {
    std::memcpy(to, &bits, 4);
  } else {
    const auto high = static_cast<uint16_t>(bits >> 16);
    std::memcpy(to, &high, 2);
  }
}

float LoadElement(DType dtype, const std::byte* from) {
  uint32_t bits = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(&bits, from, 4);
  } else {
    uint16_t high;
    std::memcpy(&high, from, 2);
    bits = static_cast<uint32_t>(high) << 16;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace

ReactorWorld::ReactorWorld(uint64_t seed, Fault fault)
    : seed_(seed),
      random_(seed),
      net_(random_, static_cast<int>(Draw(random_, 0, 3) * Draw(random_, 0, 700))),
      fault_(fault) {}

void ReactorWorld::Build() {
  const auto process_count = static_cast<int>(Draw(random_, 2, 5));
  std::vector<int> owners;
  for (int p = 0; p < process_count; ++p) {
    for (int64_t i = Draw(random_, 1, 3); i > 0; --i) owners.push_back(p);
    processes_.emplace_back();
    processes_.back().index = p;
  }
  if (Chance(random_, 50)) std::shuffle(owners.begin(), owners.end(), random_);
  for (size_t d = 0; d < owners.size(); ++d) process_of_device_[100 + d] = owners[d];
  copying_ = static_cast<FakeNet::Copying>(Draw(random_, 0, 2));
  // From asking before every small message to hardly ever.
  if (Chance(random_, 40)) ahead_bytes_ = Draw(random_, 0, 1) * Draw(random_, 0, 4000) - 1;
  // Numbers of calls wrap around.
  if (Chance(random_, 30)) first_call_ = static_cast<uint32_t>(Draw(random_, -3, -1));

  const int64_t site_count = Draw(random_, 1, 4);
  while (static_cast<int64_t>(sites_.size()) < site_count) {
    Site site;
    if (!sites_.empty() && Chance(random_, 25)) {
      // The same operation again, from another instruction: its number is part of the operation.
      const Site& same = sites_.back();
      site.devices = same.devices;
      site.process_of_rank = same.process_of_rank;
      site.processes = same.processes;
      site.operation = same.operation + "'";
      site.description = same.description;
      site.collective = same.collective;
      site.spec = same.spec;
      site.dtype = same.dtype;
      site.exact = same.exact;
      site.block_elements = same.block_elements;
      site.op_lists = same.op_lists;
      site.largest_message = same.largest_message;
      site.ragged = same.ragged;
      site.plans = same.plans;
    } else if (!DrawSite(site)) {
      continue;
    }
    sites_.push_back(std::move(site));
  }
  // Every process makes the calls of a site in order, and mixes sites as it likes.
  std::vector<int> calls;
  for (size_t s = 0; s < sites_.size(); ++s) {
    for (int64_t i = Draw(random_, 1, 5); i > 0; --i) {
      calls.push_back(static_cast<int>(s));
      if (sites_[s].ragged) {
        ExtendRagged(sites_[s], true);
      } else {
        Extend(sites_[s]);
      }
    }
  }
  const bool shuffled = Chance(random_, 80);
  for (Process& process : processes_) {
    if (shuffled) std::shuffle(calls.begin(), calls.end(), random_);
    for (const int s : calls) {
      if (sites_[s].processes.count(process.index) != 0) process.order.push_back(s);
    }
    process.chains = Chance(random_, 30);
    // Equal operations are opened in the same order everywhere, others are not.
    std::map<std::string, std::vector<int>> equal;
    for (size_t s = 0; s < sites_.size(); ++s) {
      if (sites_[s].processes.count(process.index) == 0) continue;
      process.sites_to_open.push_back(static_cast<int>(s));
      equal[sites_[s].operation].push_back(static_cast<int>(s));
    }
    std::shuffle(process.sites_to_open.begin(), process.sites_to_open.end(), random_);
    std::map<std::string, size_t> used;
    for (int& s : process.sites_to_open) {
      const std::string& operation = sites_[s].operation;
      s = equal[operation][used[operation]++];
    }
  }
}

bool ReactorWorld::DrawSite(Site& site) {
  for (const auto& [device, process] : process_of_device_) site.devices.push_back(device);
  std::sort(site.devices.begin(), site.devices.end());
  if (!sites_.empty() && Chance(random_, 50)) {
    std::shuffle(site.devices.begin(), site.devices.end(), random_);
    site.devices.resize(Draw(random_, 2, static_cast<int64_t>(site.devices.size())));
  }
  for (const int64_t device : site.devices) {
    site.process_of_rank.push_back(process_of_device_.at(device));
    site.processes.insert(site.process_of_rank.back());
  }
  if (site.processes.size() < 2) return false;
  if (!Chance(random_, 15)) return DrawSchedule(site);
  DrawRagged(site);
  return true;
}

bool ReactorWorld::DrawSchedule(Site& site) {
  const auto ranks = static_cast<int32_t>(site.devices.size());
  site.collective = kCollectives[Draw(random_, 0, std::size(kCollectives) - 1)];
  const std::vector<std::string> algorithms = Algorithms(site.collective);
  ScheduleSpec& spec = site.spec;
  spec.collective = site.collective;
  spec.algorithm = algorithms[Draw(random_, 0, static_cast<int64_t>(algorithms.size()) - 1)];
  spec.world_size = ranks;
  spec.channels = Chance(random_, 25) ? static_cast<int32_t>(Draw(random_, 2, 3)) : 1;
  if (site.collective == Collective::kBroadcast || site.collective == Collective::kReduce) {
    spec.root = static_cast<int32_t>(Draw(random_, 0, ranks - 1));
  }
  const DimsKind dims = DimsKindOf(site.collective, spec.algorithm);
  if (dims == DimsKind::kNodes || (dims == DimsKind::kTorus && Chance(random_, 50))) {
    auto size = static_cast<int32_t>(Draw(random_, 1, ranks));
    while (ranks % size != 0) --size;
    spec.dims = {ranks / size, size};
  }
  if (site.collective == Collective::kPermute) {
    std::vector<int32_t> to(ranks);
    std::iota(to.begin(), to.end(), 0);
    std::shuffle(to.begin(), to.end(), random_);
    for (int32_t rank = 0; rank < ranks; ++rank) {
      if (!Chance(random_, 20)) spec.permutation.emplace_back(rank, to[rank]);
    }
  }
  for (int32_t rank = 0; rank < ranks; ++rank) {
    StatusOr<OpList> op_list = BuildSchedule(spec, rank);
    if (!op_list.ok()) return false;  // not for so many ranks
    for (const Op& op : op_list->ops) {
      if (op.kind != OpKind::kSend) continue;
      int32_t chunks = 0;
      for (const Interval& interval : op.sources[0].chunks) chunks += interval.count;
      site.largest_message = std::max(site.largest_message, chunks);
    }
    site.op_lists.push_back(std::move(*op_list));
  }
  site.dtype = Chance(random_, 70) ? DType::kFloat32 : DType::kBFloat16;
  site.exact = Chance(random_, 70);
  const int64_t vectors = Chance(random_, 25) ? Draw(random_, 2, 12) : 1;
  const auto elements = [&]() -> int64_t {
    const int64_t kind = Draw(random_, 0, 99);
    if (kind < 25) return 1;
    if (kind < 55) return Draw(random_, 2, 40);
    if (kind < 85) return Draw(random_, 41, 1000);
    if (kind < 97 || vectors > 2) return Draw(random_, 1001, 5000);
    return Draw(random_, 5001, 40000);
  };
  for (int64_t v = vectors; v > 0; --v) {
    site.block_elements.push_back(elements());
  }
  // Small slots make many slices.
  size_t message_bytes = kSlotBytes;
  if (Chance(random_, 60)) {
    message_bytes = std::max<size_t>(size_t{1} << Draw(random_, 9, 16),
                                     static_cast<size_t>(site.largest_message) * 64);
  }
  if (message_bytes > kSlotBytes) return false;
  for (const int process : site.processes) {
    std::vector<OpList> mine;
    for (const int32_t rank : site.Members(process)) mine.push_back(site.op_lists[rank]);
    StatusOr<SliceOps> slice_ops = CompileSliceOps(mine, ranks, site.largest_message);
    EXPECT_TRUE(slice_ops.ok()) << slice_ops.status().message();
    StatusOr<std::shared_ptr<const SlicePlan>> plan =
        SlicePlan::Create(std::make_shared<const SliceOps>(std::move(*slice_ops)),
                          site.block_elements, site.dtype, ReduceOp::kSum, message_bytes);
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    if (!plan.ok()) return false;
    if ((*plan)->slice_count() > 60) return false;  // slow, and nothing new
    site.plans[process] = *plan;
  }
  site.operation = std::string(Name(site.collective)) + ' ' + spec.algorithm + ' ' +
                   std::to_string(sites_.size());
  site.description = std::string(Name(site.collective)) + " by " + spec.algorithm + " over " +
                     std::to_string(ranks) + " ranks, site " + std::to_string(sites_.size());
  return true;
}

void ReactorWorld::Extend(Site& site) {
  const auto ranks = static_cast<int32_t>(site.devices.size());
  const size_t vectors = site.block_elements.size();
  const size_t item = ItemBytes(site.dtype);
  const OpList& layout = site.op_lists[0];
  std::vector<std::vector<std::byte>> inputs(vectors * ranks);
  for (size_t v = 0; v < vectors; ++v) {
    for (int32_t rank = 0; rank < ranks; ++rank) {
      std::vector<std::byte>& input = inputs[v * ranks + rank];
      input.resize(site.block_elements[v] * layout.input_blocks * item);
      uint64_t state = random_();
      for (size_t at = 0; at < input.size(); at += item) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const auto value = static_cast<int32_t>(state >> 61);  // 0 to 7
        StoreElement(site.dtype,
                     site.exact ? static_cast<float>(value)
                                : static_cast<float>(static_cast<int32_t>(state >> 33)) / 77777.f,
                     &input[at]);
      }
    }
  }
  site.expected.push_back(site.exact ? Exactly(site, inputs) : InOneProcess(site, inputs));
  std::vector<size_t> output_bytes;
  for (const int64_t elements : site.block_elements) {
    output_bytes.push_back(elements * layout.output_blocks * item);
  }
  AddCall(site, inputs, output_bytes);
}

void ReactorWorld::AddCall(Site& site, const std::vector<std::vector<std::byte>>& inputs,
                           const std::vector<size_t>& output_bytes) {
  const size_t ranks = site.devices.size();
  for (const int process : site.processes) {
    const std::vector<int32_t> members = site.Members(process);
    auto call = std::make_unique<ProcessCall>();
    call->outcomes.resize(members.size());
    for (size_t v = 0; v < inputs.size() / ranks; ++v) {
      for (const int32_t rank : members) call->inputs.push_back(inputs[v * ranks + rank]);
    }
    for (const size_t bytes : output_bytes) {
      for (size_t m = 0; m < members.size(); ++m)
        call->outputs.emplace_back(bytes, std::byte{0xEE});
    }
    site.calls[process].push_back(std::move(call));
  }
}

void ReactorWorld::DrawRagged(Site& site) {
  RaggedShape shape;
  const auto ranks = static_cast<int64_t>(site.devices.size());
  shape.updates_per_peer = Chance(random_, 30) ? Draw(random_, 2, 4) : 1;
  if (Chance(random_, 3)) shape.updates_per_peer = Draw(random_, 300, 900);  // header in pieces
  const int64_t most = Chance(random_, 20) ? 4000 : 30;
  shape.operand_rows = Draw(random_, 1, most);
  shape.output_rows = Draw(random_, 1, most);
  shape.row_bytes = Chance(random_, 50) ? 4 : Draw(random_, 1, 40);
  shape.index_dtype = Chance(random_, 50) ? DType::kInt32 : DType::kInt64;
  site.ragged = shape;
  site.block_elements = {0};  // one result
  size_t message_bytes = kSlotBytes;
  if (Chance(random_, 60)) message_bytes = size_t{1} << Draw(random_, 10, 16);
  for (const int process : site.processes) {
    auto plan = SlicePlan::CreateRagged(shape, site.process_of_rank, process, message_bytes);
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    site.plans[process] = *plan;
  }
  site.operation = "ragged_all_to_all " + std::to_string(sites_.size());
  site.description = "ragged_all_to_all over " + std::to_string(ranks) + " ranks, site " +
                     std::to_string(sites_.size());
}

// Any blocks, be it that they overlap: as long as those of one receiver fit its output.
void ReactorWorld::ExtendRagged(Site& site, bool may_be_refused) {
  const RaggedShape& shape = *site.ragged;
  const size_t ranks = site.devices.size();
  const int64_t updates = shape.updates_per_peer;
  const size_t entries = ranks * updates;
  struct Tables {
    std::vector<int64_t> table[4];  // input offsets, send sizes, output offsets, receive sizes
  };
  std::vector<Tables> tables(ranks);
  for (Tables& t : tables) {
    for (std::vector<int64_t>& table : t.table) table.resize(entries);
  }
  for (size_t from = 0; from < ranks; ++from) {
    for (size_t i = 0; i < entries; ++i) {
      const int64_t rows =
          Chance(random_, 30)
              ? 0
              : Draw(random_, 0, std::min(shape.operand_rows, shape.output_rows) / (updates * 2));
      tables[from].table[0][i] = Draw(random_, 0, shape.operand_rows - rows);
      tables[from].table[1][i] = rows;
      tables[from].table[2][i] = Draw(random_, 0, shape.output_rows - rows);
      tables[i / updates].table[3][from * updates + i % updates] = rows;
    }
  }
  if (may_be_refused && Chance(random_, 15)) {
    site.refused.insert(site.expected.size());
    Tables& wrong = tables[Draw(random_, 0, static_cast<int64_t>(ranks) - 1)];
    int64_t& entry = wrong.table[Draw(random_, 0, 3)][Draw(random_, 0, entries - 1)];
    // The fault in any of the four tables.
    entry = Chance(random_, 50) ? -1 : std::max(shape.operand_rows, shape.output_rows) + 1;
  }
  std::vector<std::vector<std::byte>> inputs;
  for (const int64_t rows : {shape.operand_rows, shape.output_rows}) {
    for (size_t rank = 0; rank < ranks; ++rank) {
      std::vector<std::byte>& input = inputs.emplace_back(rows * shape.row_bytes);
      uint64_t state = random_();
      for (std::byte& byte : input) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        byte = static_cast<std::byte>(state >> 56);
      }
    }
  }
  for (int table = 0; table < 4; ++table) {
    for (const Tables& t : tables) {
      std::vector<std::byte>& input = inputs.emplace_back(entries * ItemBytes(shape.index_dtype));
      for (size_t i = 0; i < entries; ++i) {
        const auto narrow = static_cast<int32_t>(t.table[table][i]);
        if (shape.index_dtype == DType::kInt32) {
          std::memcpy(&input[i * 4], &narrow, 4);
        } else {
          std::memcpy(&input[i * 8], &t.table[table][i], 8);
        }
      }
    }
  }
  std::vector<std::vector<std::byte>> results(
      inputs.begin() + static_cast<std::ptrdiff_t>(ranks),
      inputs.begin() + static_cast<std::ptrdiff_t>(2 * ranks));
  if (site.refused.count(site.expected.size()) == 0) {
    for (size_t from = 0; from < ranks; ++from) {
      for (size_t i = 0; i < entries; ++i) {
        const auto& [input_offsets, sizes, output_offsets, received] = tables[from].table;
        std::copy_n(&inputs[from][0] + input_offsets[i] * shape.row_bytes,
                    sizes[i] * shape.row_bytes,
                    &results[i / updates][0] + output_offsets[i] * shape.row_bytes);
      }
    }
  }
  site.expected.push_back(std::move(results));
  AddCall(site, inputs, {shape.output_rows * shape.row_bytes});
}

std::vector<std::vector<std::byte>> ReactorWorld::Exactly(
    const Site& site, const std::vector<std::vector<std::byte>>& inputs) {
  const auto ranks = static_cast<int32_t>(site.devices.size());
  const size_t item = ItemBytes(site.dtype);
  std::vector<std::vector<std::byte>> outputs;
  for (size_t v = 0; v < site.block_elements.size(); ++v) {
    const size_t block = site.block_elements[v] * item;
    const auto input = [&](int32_t rank) -> const std::vector<std::byte>& {
      return inputs[v * ranks + rank];
    };
    const auto sum = [&](size_t offset) {
      std::vector<std::byte> result(block);
      for (size_t at = 0; at < block; at += item) {
        float total = 0;
        for (int32_t q = 0; q < ranks; ++q) {
          total += LoadElement(site.dtype, &input(q)[offset + at]);
        }
        StoreElement(site.dtype, total, &result[at]);
      }
      return result;
    };
    const bool reduces =
        site.collective == Collective::kAllReduce || site.collective == Collective::kReduce;
    const std::vector<std::byte> total = reduces ? sum(0) : std::vector<std::byte>();
    for (int32_t rank = 0; rank < ranks; ++rank) {
      std::vector<std::byte> output;
      const auto append = [&](const std::vector<std::byte>& from, size_t offset) {
        output.insert(output.end(), from.begin() + static_cast<std::ptrdiff_t>(offset),
                      from.begin() + static_cast<std::ptrdiff_t>(offset + block));
      };
      switch (site.collective) {
        case Collective::kAllReduce:
          output = total;
          break;
        case Collective::kReduce:
          output = rank == site.spec.root ? total : std::vector<std::byte>(block);
          break;
        case Collective::kReduceScatter:
          output = sum(rank * block);
          break;
        case Collective::kBroadcast:
          output = input(site.spec.root);
          break;
        case Collective::kAllGather:
          for (int32_t q = 0; q < ranks; ++q) append(input(q), 0);
          break;
        case Collective::kAllToAll:
          for (int32_t q = 0; q < ranks; ++q) append(input(q), rank * block);
          break;
        case Collective::kPermute:
          output.resize(block);
          for (const auto& [from, to] : site.spec.permutation) {
            if (to == rank) output = input(from);
          }
          break;
      }
      outputs.push_back(std::move(output));
    }
  }
  return outputs;
}

std::vector<std::vector<std::byte>> ReactorWorld::InOneProcess(
    const Site& site, const std::vector<std::vector<std::byte>>& inputs) {
  StatusOr<LocalActions> actions = Compile(site.op_lists, site.collective);
  EXPECT_TRUE(actions.ok()) << actions.status().message();
  const LocalPlan plan(std::make_shared<const LocalActions>(std::move(*actions)),
                       site.block_elements, site.dtype, ReduceOp::kSum);
  std::vector<std::vector<std::byte>> outputs(inputs.size());
  RunBuffers buffers;
  for (size_t i = 0; i < inputs.size(); ++i) {
    outputs[i].resize(plan.output_bytes(i / site.devices.size()), std::byte{0xEE});
    buffers.inputs.push_back(inputs[i].data());
    buffers.outputs.push_back(outputs[i].data());
  }
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> scratch((plan.scratch_bytes() + 63) / 64);
  buffers.scratch = scratch.empty() ? nullptr : scratch[0].bytes;
  for (int level = 0; level < plan.LevelCount(); ++level) {
    for (int batch = 0; batch < plan.BatchCount(level); ++batch) {
      plan.RunBatch(level, batch, buffers);
    }
  }
  return outputs;
}

}  // namespace jaxcoll
