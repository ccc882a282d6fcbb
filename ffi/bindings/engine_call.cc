// A call of the engine without XLA: what the tuner times, and what the simulator is held against.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <ctime>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/op_list_tuple.h"
#include "call/call_site.h"
#include "call/process_per_rank.h"
#include "engine/memory/local_plan.h"
#include "engine/slices/slice_plan.h"
#include "schedule/op_list_builder.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jaxcoll {
namespace {

using InputArray = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutputArray = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Counts the ranks of one call that are done. Waited for by one thread.
class Countdown {
 public:
  explicit Countdown(size_t count) : left_(count) {}
  void Done(const Status& status) {
    std::lock_guard lock(mutex_);
    if (!status.ok() && status_.ok()) status_ = status;
    if (--left_ == 0) changed_.notify_all();
  }
  Status Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return left_ == 0; });  // the engine has a deadline
    return status_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t left_;
  Status status_;
};

class Ticket final : public Completion {
 public:
  explicit Ticket(std::shared_ptr<Countdown> countdown) : countdown_(std::move(countdown)) {}
  void Done(const Status& status) override { countdown_->Done(status); }

 private:
  std::shared_ptr<Countdown> countdown_;
};

DType DTypeOrThrow(const std::string& name) {
  const std::optional<DType> dtype = ParseDType(name);
  if (!dtype) throw std::invalid_argument("unknown dtype '" + name + "'");
  return *dtype;
}

CallSpec SpecOf(std::string collective, std::string algorithm, int64_t world_size,
                std::vector<int64_t> dims, std::string schedule) {
  CollectiveOrThrow(collective);
  CallSpec spec;
  const bool reduces =
      collective == "all_reduce" || collective == "reduce_scatter" || collective == "reduce";
  spec.collective = std::move(collective);
  spec.algorithm = std::move(algorithm);
  spec.reduce_op = reduces ? "sum" : "";
  spec.group_size = world_size;
  spec.groups.resize(world_size);
  std::iota(spec.groups.begin(), spec.groups.end(), 0);
  spec.dims = std::move(dims);
  spec.schedule = std::move(schedule);
  return spec;
}

// Called by one thread at a time, and by every process of the job in the same order.
class EngineCall {
 public:
  // `members`: this process's ranks. `blocks`: elements of one block.
  EngineCall(std::string collective, std::string algorithm, int64_t world_size,
             std::vector<int64_t> dims, std::string schedule, std::vector<int64_t> members,
             std::string dtype, int64_t block_elements)
      : members_(std::move(members)) {
    CallSpec spec = SpecOf(std::move(collective), std::move(algorithm), world_size, std::move(dims),
                           std::move(schedule));
    spec.device_ids = spec.groups;
    spec.program = "outside XLA";
    spec.signature = dtype + ' ' + std::to_string(block_elements);
    spec.label = std::to_string(world_size) + " ranks";
    const DType type = DTypeOrThrow(dtype);
    const OpList first = ValueOrThrow(OpListsOf(spec, {0})).front();
    input_bytes_ = first.input_blocks * block_elements * ItemBytes(type);
    output_bytes_ = first.output_blocks * block_elements * ItemBytes(type);
    nb::gil_scoped_release release;
    site_ = ValueOrThrow(CallSite::Create(std::move(spec)));
    const CallShape shape{{{type, {first.input_blocks * block_elements}}},
                          {{type, {first.output_blocks * block_elements}}}};
    if (Status status = site_->Prepare(shape); !status.ok()) {
      throw std::invalid_argument(status.message());
    }
  }

  // `count` calls, one after the other; seconds for all. By member, its input and its output.
  double Run(const std::vector<InputArray>& inputs, std::vector<OutputArray> outputs, int count) {
    if (inputs.size() != members_.size() || outputs.size() != members_.size()) {
      throw std::invalid_argument("one input and one output for each rank of this process");
    }
    for (size_t i = 0; i < members_.size(); ++i) {
      if (inputs[i].size() != input_bytes_ || outputs[i].size() != output_bytes_) {
        throw std::invalid_argument("the call takes " + std::to_string(input_bytes_) +
                                    " bytes and returns " + std::to_string(output_bytes_));
      }
    }
    nb::gil_scoped_release release;  // links are asked for in Python
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < count; ++i) {
      if (const Status status = CallOnce(inputs, outputs); !status.ok()) {
        throw std::runtime_error(status.message());
      }
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  Status CallOnce(const std::vector<InputArray>& inputs, std::vector<OutputArray>& outputs) {
    const auto countdown = std::make_shared<Countdown>(members_.size());
    ++run_id_;
    for (size_t i = 0; i < members_.size(); ++i) {
      const void* const input = inputs[i].data();
      void* const output = outputs[i].data();
      Arrival arrival;
      arrival.run_id = run_id_;
      arrival.logical_id = members_[i];
      arrival.inputs = {&input, 1};
      arrival.outputs = {&output, 1};
      const StatusOr<CallSite::Entry> entry =
          site_->Arrive(arrival, std::make_unique<Ticket>(countdown));
      if (!entry.ok()) {
        countdown->Done(entry.status());
      } else if (*entry == CallSite::Entry::kDone) {
        countdown->Done(Status());
      }
    }
    return countdown->Wait();
  }

  std::vector<int64_t> members_;
  size_t input_bytes_ = 0, output_bytes_ = 0;
  int64_t run_id_ = 0;
  std::unique_ptr<CallSite> site_;
};

// How the engine would cut a call between processes, if rank 0 were a process of its own: slices,
// how many of them run at once, and the bytes of the largest message.
std::tuple<int32_t, int32_t, int64_t> SlicesOf(std::string collective, std::string algorithm,
                                               int64_t world_size, std::vector<int64_t> dims,
                                               std::string schedule, std::string dtype,
                                               int64_t block_elements) {
  const CallSpec spec = SpecOf(std::move(collective), std::move(algorithm), world_size,
                               std::move(dims), std::move(schedule));
  const auto plan = ValueOrThrow([&]() -> StatusOr<std::shared_ptr<const SlicePlan>> {
    StatusOr<std::shared_ptr<const SliceOps>> slice_ops = SliceOpsFor(spec, {0});
    if (!slice_ops.ok()) return slice_ops.status();
    return SlicePlan::Create(std::move(*slice_ops), {block_elements}, DTypeOrThrow(dtype),
                             ReduceOp::kSum, kSlotBytes);
  }());
  size_t largest_bytes = 0;
  for (const SliceOp& op : plan->slice_ops().ops) {
    if (op.kind == SliceOp::Kind::kSend) {
      largest_bytes = std::max(largest_bytes, plan->MessageBytes(0, op));
    }
  }
  return {plan->slice_count(), plan->in_flight(), static_cast<int64_t>(largest_bytes)};
}

// The memory traffic of a call within one process: levels, which follow each other, and bytes read
// and written.
std::tuple<int32_t, int64_t> MemoryOf(std::string collective, std::string algorithm,
                                      int64_t world_size, std::vector<int64_t> dims,
                                      std::string dtype, int64_t block_elements) {
  const CallSpec spec =
      SpecOf(std::move(collective), std::move(algorithm), world_size, std::move(dims), "");
  const LocalPlan plan(ValueOrThrow(ActionsFor(spec)), {block_elements}, DTypeOrThrow(dtype),
                       ReduceOp::kSum);
  return {plan.LevelCount(), static_cast<int64_t>(plan.moved_bytes())};
}

// Sets a call up as in a job whose ranks are all processes of their own. CPU seconds, and how many
// ops it built.
std::tuple<double, int64_t> InstantiateCall(std::string collective, std::string algorithm,
                                            int64_t world_size, std::vector<int64_t> dims, int rank,
                                            std::string dtype, int64_t block_elements) {
  CallSpec spec =
      SpecOf(std::move(collective), std::move(algorithm), world_size, std::move(dims), "");
  spec.device_ids = spec.groups;
  spec.label = std::to_string(world_size) + " ranks";
  const DType type = DTypeOrThrow(dtype);
  const Collective kind = CollectiveOrThrow(spec.collective);
  const auto size = static_cast<int32_t>(world_size);
  const CallShape shape{{{type, {InputBlocks(kind, size) * block_elements}}},
                        {{type, {OutputBlocks(kind, size) * block_elements}}}};
  nb::gil_scoped_release release;
  ProcessPerRank job(size, rank);
  const int64_t ops = OpsBuilt();
  const std::clock_t begin = std::clock();
  const std::unique_ptr<CallSite> site = ValueOrThrow(CallSite::Create(std::move(spec), &job));
  if (Status status = site->Prepare(shape); !status.ok()) {
    throw std::invalid_argument(status.message());
  }
  return {static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, OpsBuilt() - ops};
}

}  // namespace

void BindEngineCall(nb::module_& m) {
  nb::class_<EngineCall>(m, "EngineCall", "A collective of NumPy arrays, without XLA.")
      .def(nb::init<std::string, std::string, int64_t, std::vector<int64_t>, std::string,
                    std::vector<int64_t>, std::string, int64_t>(),
           "collective"_a, "algorithm"_a, "world_size"_a, "dims"_a, "schedule"_a, "members"_a,
           "dtype"_a, "block_elements"_a)
      .def("run", &EngineCall::Run, "inputs"_a, "outputs"_a.noconvert(), "count"_a = 1,
           "Calls it, as bytes of each member; seconds for all of `count`.");
  m.def("engine_slices", &SlicesOf, "collective"_a, "algorithm"_a, "world_size"_a, "dims"_a,
        "schedule"_a, "dtype"_a, "block_elements"_a,
        "How the engine cuts a call between processes: slices, how many run at once, bytes of\n"
        "rank 0's largest message.");
  m.def("engine_memory", &MemoryOf, "collective"_a, "algorithm"_a, "world_size"_a, "dims"_a,
        "dtype"_a, "block_elements"_a,
        "A call within one process: levels that follow each other, bytes read and written.");
  m.def("engine_instantiate", &InstantiateCall, "collective"_a, "algorithm"_a, "world_size"_a,
        "dims"_a, "rank"_a, "dtype"_a, "block_elements"_a,
        "Sets up a call of one rank, each of which is a process: CPU seconds, ops built.");
}

}  // namespace jaxcoll
