// The harness of GPU kernels, for Python: tests/cuda and benchmarks/gpu.py.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "testing/harness.h"
#include "testing/testing.h"

namespace nb = nanobind;

namespace jaxcoll {
namespace {

template <typename T>
T ValueOrRuntimeError(StatusOr<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().message());
  return std::move(*result);
}

// (dtype, dimensions)
using ArrayTuple = std::tuple<std::string, std::vector<int64_t>>;

CallShape ShapeFromTuples(const std::vector<ArrayTuple>& inputs,
                          const std::vector<ArrayTuple>& outputs) {
  const auto array = [](const ArrayTuple& tuple) {
    const std::optional<DType> dtype = ParseDType(std::get<0>(tuple));
    if (!dtype) throw std::invalid_argument("unknown dtype '" + std::get<0>(tuple) + "'");
    return CallShape::Array{*dtype, std::get<1>(tuple)};
  };
  CallShape shape;
  for (const ArrayTuple& tuple : inputs) shape.inputs.push_back(array(tuple));
  for (const ArrayTuple& tuple : outputs) shape.outputs.push_back(array(tuple));
  return shape;
}

}  // namespace

void BindHarness(nb::module_& m) {
  nb::class_<cuda::Harness>(m, "CudaHarness", "N ranks on one device: for tests and benchmarks.")
      .def_static(
          "create",
          [](std::string collective, std::string algorithm, std::string reduce_op, int ranks,
             int root, std::vector<int64_t> permutation, const std::vector<ArrayTuple>& inputs,
             const std::vector<ArrayTuple>& outputs, bool streams, bool staged, int max_blocks,
             double timeout_s, int workspace_mib, bool interpret, std::vector<int64_t> dims,
             std::string schedule) {
            CallSpec spec;
            spec.collective = std::move(collective);
            spec.algorithm = std::move(algorithm);
            spec.reduce_op = std::move(reduce_op);
            spec.group_size = ranks;
            for (int rank = 0; rank < ranks; ++rank) spec.groups.push_back(rank);
            spec.root = root;
            spec.permutation = std::move(permutation);
            spec.dims = std::move(dims);
            spec.schedule = std::move(schedule);
            cuda::HarnessOptions options;
            options.mode = streams ? cuda::HarnessMode::kStreams : cuda::HarnessMode::kGrid;
            options.staged = staged;
            options.interpret = interpret;
            options.max_blocks = max_blocks;
            options.timeout_s = timeout_s;
            options.workspace_bytes = static_cast<uint64_t>(workspace_mib) << 20;
            const CallShape shape = ShapeFromTuples(inputs, outputs);
            nb::gil_scoped_release release;
            return ValueOrRuntimeError(cuda::Harness::Create(std::move(spec), shape, options));
          },
          nb::arg("collective"), nb::arg("algorithm"), nb::arg("reduce_op"), nb::arg("ranks"),
          nb::arg("root"), nb::arg("permutation"), nb::arg("inputs"), nb::arg("outputs"),
          nb::arg("streams"), nb::arg("staged"), nb::arg("max_blocks"), nb::arg("timeout_s"),
          nb::arg("workspace_mib"), nb::arg("interpret"), nb::arg("dims"), nb::arg("schedule"))
      .def_prop_ro("blocks", &cuda::Harness::blocks)
      .def(
          "run",
          [](cuda::Harness& harness, const std::vector<std::vector<nb::bytes>>& inputs, int calls,
             int leave_out) {
            std::vector<std::vector<std::string>> from;
            for (const auto& rank : inputs) {
              from.emplace_back();
              for (const nb::bytes& bytes : rank) {
                from.back().emplace_back(bytes.c_str(), bytes.size());
              }
            }
            std::vector<std::vector<std::string>> outputs;
            {
              nb::gil_scoped_release release;
              outputs = ValueOrRuntimeError(harness.Run(from, calls, leave_out));
            }
            std::vector<std::vector<nb::bytes>> to;
            for (const auto& rank : outputs) {
              to.emplace_back();
              for (const std::string& bytes : rank) {
                to.back().emplace_back(bytes.data(), bytes.size());
              }
            }
            return to;
          },
          nb::arg("inputs"), nb::arg("calls"), nb::arg("leave_out"),
          "inputs[rank][operand] -> outputs[rank][result] of the last of `calls` calls.")
      .def(
          "time",
          [](cuda::Harness& harness, int chain, int samples, int sets) {
            nb::gil_scoped_release release;
            return ValueOrRuntimeError(harness.Time(chain, samples, sets));
          },
          nb::arg("chain"), nb::arg("samples"), nb::arg("sets"),
          "Seconds of one call, from replays of graphs of `chain` calls on `sets` of operands.")
      .def("causes", &cuda::Harness::Causes);
  m.def(
      "cuda_copy_bandwidth",
      [](uint64_t bytes, int samples) {
        return ValueOrRuntimeError(cuda::CopyBandwidth(0, bytes, samples));
      },
      nb::call_guard<nb::gil_scoped_release>(), nb::arg("bytes"), nb::arg("samples"),
      "Bytes read plus written per second by a device-to-device copy.");
  m.def(
      "cuda_device",
      [] {
        const cuda::DeviceInfo info = ValueOrRuntimeError(cuda::GetDeviceInfo(0));
        nb::dict all;
        all["name"] = info.name;
        all["sm_count"] = info.sm_count;
        all["l2_bytes"] = info.l2_bytes;
        all["compute_capability"] = info.compute_capability;
        all["memory_bytes"] = info.memory_bytes;
        return all;
      },
      "The first GPU.");
}

}  // namespace jaxcoll
