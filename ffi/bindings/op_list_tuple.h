// How schedules look on their way between Python and C++: plain tuples, as jaxcoll/schedule/ir.py
// makes and takes them.
#pragma once

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "schedule/schedule.h"

namespace jaxcoll {

// (buffer, [(begin, count), ...])
using OperandTuple = std::tuple<int, std::vector<std::pair<int32_t, int32_t>>>;
// (kind, channel, peer, sequence, step, sources, destination, depends_on)
using OpTuple = std::tuple<int, int32_t, int32_t, int32_t, int32_t, std::vector<OperandTuple>,
                           OperandTuple, std::vector<int32_t>>;
// (rank, chunks_per_block, input_blocks, output_blocks, scratch_blocks, ops)
using OpListTuple = std::tuple<int32_t, int32_t, int32_t, int32_t, int32_t, std::vector<OpTuple>>;

// (collective, algorithm, world_size, channels, root, permutation, dims): spec_to_tuple of spec.py
using SpecTuple = std::tuple<std::string, std::string, int32_t, int32_t, int32_t,
                             std::vector<std::pair<int32_t, int32_t>>, std::vector<int32_t>>;

template <typename T>
T ValueOrThrow(StatusOr<T> result) {
  if (!result.ok()) throw std::invalid_argument(result.status().message());  // ValueError
  return std::move(*result);
}

// ValueError for a name that is no collective's.
Collective CollectiveOrThrow(std::string_view name);

ScheduleSpec SpecFromTuple(const SpecTuple& tuple);
OpList OpListFromTuple(const OpListTuple& tuple);

}  // namespace jaxcoll
