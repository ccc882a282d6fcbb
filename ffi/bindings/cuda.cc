// GPUs: the job's devices, what this build and machine can do, and the harness of tests and
// benchmarks. Compiled in every build; without CUDA it only says so.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"

#ifdef JAXCOLL_WITH_CUDA
#include "base/environment.h"
#include "cuda/communicator.h"
#include "cuda/driver_info.h"
#include "cuda/exchange.h"
#include "cuda/gpu_call_site.h"
#include "cuda/harness.h"
#include "cuda/runtime.h"
#endif

namespace nb = nanobind;

namespace jaxcoll {

#ifdef JAXCOLL_WITH_CUDA
namespace {

template <typename T>
T ValueOrThrow(StatusOr<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().message());
  return std::move(*result);
}

// The store of the job, called back in Python. Its methods are called by XLA's threads, which do
// not hold the interpreter's lock.
class PythonExchange final : public cuda::Exchange {
 public:
  PythonExchange(nb::callable publish, nb::callable fetch)
      // Never destroyed: the job may outlive the interpreter.
      : publish_(*new nb::callable(std::move(publish))),
        fetch_(*new nb::callable(std::move(fetch))) {}

  Status Publish(const std::string& key, const std::string& value) override {
    nb::gil_scoped_acquire acquire;
    try {
      publish_(key, nb::bytes(value.data(), value.size()));
      return Status();
    } catch (const std::exception& e) {
      return Status(StatusCode::kUnavailable, e.what());
    }
  }
  StatusOr<std::string> Fetch(const std::string& key, double timeout_s) override {
    nb::gil_scoped_acquire acquire;
    try {
      const nb::bytes value = nb::cast<nb::bytes>(fetch_(key, timeout_s));
      return std::string(value.c_str(), value.size());
    } catch (const std::exception& e) {
      return Status(StatusCode::kUnavailable, e.what());
    }
  }

 private:
  nb::callable& publish_;
  nb::callable& fetch_;
};

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

void BindCuda(nb::module_& m) {
  m.attr("cuda_built") = true;
  m.def(
      "cuda_info",
      [] {
        const cuda::DriverInfo info = cuda::GetDriverInfo();
        nb::dict all;
        all["driver"] = info.driver;
        all["problem"] = info.problem;
        all["runtime_version"] = info.runtime_version;
        all["driver_version"] = info.driver_version;
        all["devices"] = info.devices;
        all["communicators"] = cuda::Communicator::DescribeAll();
        all["causes"] = cuda::Communicator::AllCauses();
        return all;
      },
      "What CUDA offers here, the communicators there are, and why kernels have given up.");
  m.def(
      "cuda_start",
      [](int process, const std::vector<std::tuple<int64_t, int, int>>& devices, int max_blocks,
         int workspace_mib, bool map_operands, bool dmabuf, std::string host,
         std::optional<nb::callable> publish, std::optional<nb::callable> fetch) {
        cuda::Job job;
        job.process = process;
        for (const auto& [id, owner, ordinal] : devices) {
          job.devices.push_back({id, owner, ordinal});
        }
        job.options.max_blocks = max_blocks;
        job.options.workspace_bytes = static_cast<uint64_t>(workspace_mib) << 20;
        job.options.timeout_s = TimeoutS();
        job.options.lend = dmabuf;
        job.options.host = std::move(host);
        job.maps_operands = map_operands;
        if (publish && fetch) {
          job.exchange = std::make_unique<PythonExchange>(std::move(*publish), std::move(*fetch));
        }
        job.runtime = &cuda::CudaRuntime();
        cuda::StartJob(std::move(job));
      },
      nb::arg("process"), nb::arg("devices"), nb::arg("max_blocks"), nb::arg("workspace_mib"),
      nb::arg("map_operands"), nb::arg("dmabuf"), nb::arg("host"), nb::arg("publish").none(),
      nb::arg("fetch").none(),
      "Says once which GPUs the job has, as (device id, process, ordinal in the process), whether\n"
      "processes offer each other the memory of their arrays, whether NICs may read a GPU's, what\n"
      "processes of this host have in common, and how the job's processes exchange bytes:\n"
      "publish(key, value), fetch(key, timeout_s); None if alone.");
  m.def("cuda_started", &cuda::JobStarted, "Whether cuda_start has been called.");
  m.def("cuda_stop", &cuda::Communicator::StopMonitor, nb::call_guard<nb::gil_scoped_release>(),
        "Ends the thread that reports why kernels have given up.");

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
            return ValueOrThrow(cuda::Harness::Create(std::move(spec), shape, options));
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
              outputs = ValueOrThrow(harness.Run(from, calls, leave_out));
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
            return ValueOrThrow(harness.Time(chain, samples, sets));
          },
          nb::arg("chain"), nb::arg("samples"), nb::arg("sets"),
          "Seconds of one call, from replays of graphs of `chain` calls on `sets` of operands.")
      .def("causes", &cuda::Harness::Causes);
  m.def(
      "cuda_copy_bandwidth",
      [](uint64_t bytes, int samples) {
        return ValueOrThrow(cuda::CopyBandwidth(0, bytes, samples));
      },
      nb::call_guard<nb::gil_scoped_release>(), nb::arg("bytes"), nb::arg("samples"),
      "Bytes read plus written per second by a device-to-device copy.");
  m.def(
      "cuda_device",
      [] {
        const cuda::DeviceInfo info = ValueOrThrow(cuda::GetDeviceInfo(0));
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

#else

void BindCuda(nb::module_& m) { m.attr("cuda_built") = false; }

#endif

}  // namespace jaxcoll
