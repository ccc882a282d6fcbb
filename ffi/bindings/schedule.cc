// Schedules cross into Python as plain tuples: jaxcoll/schedule/ owns the classes users see, and
// nothing here holds state.
#include "schedule/schedule.h"

#include "bindings/bindings.h"
#include "bindings/program_tuple.h"
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

ProgramTuple ToTuple(const Program& program) {
  std::vector<OpTuple> ops;
  ops.reserve(program.ops.size());
  for (const Op& op : program.ops) {
    std::vector<OperandTuple> sources;
    for (const Operand& source : op.sources) sources.push_back(ToTuple(source));
    ops.emplace_back(static_cast<int>(op.kind), op.channel, op.peer, op.sequence, op.step,
                     std::move(sources), ToTuple(op.destination), op.depends_on);
  }
  return {program.rank,          program.chunks_per_block, program.input_blocks,
          program.output_blocks, program.scratch_blocks,   std::move(ops)};
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

Program ProgramFromTuple(const ProgramTuple& tuple) {
  const auto& [rank, chunks_per_block, input_blocks, output_blocks, scratch_blocks, ops] = tuple;
  Program program{rank, chunks_per_block, input_blocks, output_blocks, scratch_blocks, {}};
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
    program.ops.push_back(std::move(op));
  }
  return program;
}

namespace {

ProgramTuple Build(const SpecTuple& spec, int32_t rank) {
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

std::string SerializePrograms(const std::vector<ProgramTuple>& programs) {
  std::vector<Program> converted;
  for (const ProgramTuple& program : programs) converted.push_back(ProgramFromTuple(program));
  return Serialize(converted);
}

std::vector<ProgramTuple> ParsePrograms(std::string_view text) {
  std::vector<ProgramTuple> programs;
  for (const Program& program : ValueOrThrow(Parse(text))) programs.push_back(ToTuple(program));
  return programs;
}

ProgramTuple WithInferredDependencies(const ProgramTuple& tuple) {
  Program program = ProgramFromTuple(tuple);
  InferDependencies(program);
  return ToTuple(program);
}

}  // namespace

void BindSchedule(nb::module_& m) {
  m.def("build_schedule", &Build, "spec"_a, "rank"_a, "One rank's program, as tuples.");
  m.def("check_schedule", &CheckOrThrow, "spec"_a,
        "Raises what build_schedule would raise for any rank, and builds nothing.");
  m.def("schedule_algorithms", &AlgorithmsOf, "collective"_a,
        "Names of the algorithms of a collective.");
  m.def("schedule_dims", &DimsOf, "collective"_a, "algorithm"_a,
        "The meaning of an algorithm's dims: nodes, torus, aggregate, or nothing.");
  m.def("serialize_schedule", &SerializePrograms, "programs"_a, "All ranks' programs as text.");
  m.def("parse_schedule", &ParsePrograms, "text"_a, "The inverse of serialize_schedule.");
  m.def("infer_dependencies", &WithInferredDependencies, "program"_a,
        "The program with the dependencies that its operands imply added.");
}

}  // namespace jaxcoll
