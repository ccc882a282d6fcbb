// Schedules cross into Python as plain tuples: jaxcoll/schedule/ owns the classes users see, and
// nothing here holds state.
#include "schedule/schedule.h"

#include "bindings/bindings.h"
#include "bindings/op_list_tuple.h"
#include "schedule/dependencies.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jaxcoll {
namespace {

template <typename Enum>
Enum EnumOrThrow(int value, Enum last) {
  if (value < 0 || value > static_cast<int>(last)) {
    throw std::invalid_argument("no such kind of op or buffer: " + std::to_string(value));
  }
  return static_cast<Enum>(value);
}

OperandTuple ToTuple(const Operand& operand) {
  std::vector<std::pair<int32_t, int32_t>> chunks;
  chunks.reserve(operand.chunks.size());
  for (const Interval& interval : operand.chunks) {
    chunks.emplace_back(interval.begin, interval.count);
  }
  return {static_cast<int>(operand.buffer), std::move(chunks)};
}

OpListTuple ToTuple(const OpList& op_list) {
  std::vector<OpTuple> ops;
  ops.reserve(op_list.ops.size());
  for (const Op& op : op_list.ops) {
    std::vector<OperandTuple> sources;
    for (const Operand& source : op.sources) sources.push_back(ToTuple(source));
    ops.emplace_back(static_cast<int>(op.kind), op.channel, op.peer, op.sequence, op.step,
                     std::move(sources), ToTuple(op.destination), op.depends_on);
  }
  return {op_list.rank,          op_list.chunks_per_block, op_list.input_blocks,
          op_list.output_blocks, op_list.scratch_blocks,   std::move(ops)};
}

Operand FromTuple(const OperandTuple& tuple) {
  Operand operand{EnumOrThrow(std::get<0>(tuple), BufferKind::kScratch), {}};
  for (const auto& [begin, count] : std::get<1>(tuple)) operand.chunks.push_back({begin, count});
  return operand;
}

}  // namespace

Collective CollectiveOrThrow(std::string_view name) {
  std::optional<Collective> collective = ParseCollective(name);
  if (!collective) throw std::invalid_argument("unknown collective '" + std::string(name) + "'");
  return *collective;
}

ScheduleSpec SpecFromTuple(const SpecTuple& tuple) {
  const auto& [collective, algorithm, world_size, channels, root, permutation, dims] = tuple;
  return {CollectiveOrThrow(collective), algorithm, world_size, channels, root, permutation, dims};
}

OpList OpListFromTuple(const OpListTuple& tuple) {
  const auto& [rank, chunks_per_block, input_blocks, output_blocks, scratch_blocks, ops] = tuple;
  OpList op_list{rank, chunks_per_block, input_blocks, output_blocks, scratch_blocks, {}};
  for (const auto& [kind, channel, peer, sequence, step, sources, destination, depends_on] : ops) {
    Op op{EnumOrThrow(kind, OpKind::kReduce),
          channel,
          peer,
          sequence,
          step,
          {},
          FromTuple(destination),
          depends_on};
    for (const OperandTuple& source : sources) op.sources.push_back(FromTuple(source));
    op_list.ops.push_back(std::move(op));
  }
  return op_list;
}

namespace {

OpListTuple Build(const SpecTuple& spec, int32_t rank) {
  return ToTuple(ValueOrThrow(BuildSchedule(SpecFromTuple(spec), rank)));
}

void CheckOrThrow(const SpecTuple& spec) {
  if (const Status status = CheckSchedule(SpecFromTuple(spec)); !status.ok()) {
    throw std::invalid_argument(status.message());
  }
}

std::string_view DimsOf(std::string_view collective, std::string_view algorithm) {
  switch (DimsKindOf(CollectiveOrThrow(collective), algorithm)) {
    case DimsKind::kNone:
      return "";
    case DimsKind::kNodes:
      return "nodes";
    case DimsKind::kTorus:
      return "torus";
    case DimsKind::kAggregate:
      return "aggregate";
  }
  return "";
}

std::vector<std::string> AlgorithmsOf(std::string_view collective) {
  return Algorithms(CollectiveOrThrow(collective));
}

std::string SerializeOpLists(const std::vector<OpListTuple>& op_lists) {
  std::vector<OpList> converted;
  for (const OpListTuple& op_list : op_lists) converted.push_back(OpListFromTuple(op_list));
  return Serialize(converted);
}

std::vector<OpListTuple> ParseOpLists(std::string_view text) {
  std::vector<OpListTuple> op_lists;
  for (const OpList& op_list : ValueOrThrow(Parse(text))) op_lists.push_back(ToTuple(op_list));
  return op_lists;
}

OpListTuple WithInferredDependencies(const OpListTuple& tuple) {
  OpList op_list = OpListFromTuple(tuple);
  InferDependencies(op_list);
  return ToTuple(op_list);
}

}  // namespace

void BindSchedule(nb::module_& m) {
  m.def("build_schedule", &Build, "spec"_a, "rank"_a, "One rank's op list, as tuples.");
  m.def("check_schedule", &CheckOrThrow, "spec"_a,
        "Raises what build_schedule would raise for any rank, and builds nothing.");
  m.def("schedule_algorithms", &AlgorithmsOf, "collective"_a,
        "Names of the algorithms of a collective.");
  m.def("schedule_dims", &DimsOf, "collective"_a, "algorithm"_a,
        "The meaning of an algorithm's dims: nodes, torus, aggregate, or nothing.");
  m.def("serialize_schedule", &SerializeOpLists, "op_lists"_a, "All ranks' op lists as text.");
  m.def("parse_schedule", &ParseOpLists, "text"_a, "The inverse of serialize_schedule.");
  m.def("infer_dependencies", &WithInferredDependencies, "op_list"_a,
        "The op list with the dependencies that its operands imply added.");
}

}  // namespace jaxcoll
