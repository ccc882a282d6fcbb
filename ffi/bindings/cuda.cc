// GPUs: the job's devices, and what this build and machine can do. Compiled in every build; without
// CUDA it only says so.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"

#ifdef JAXCOLL_WITH_CUDA
#include "base/environment.h"
#include "gpu/abi/runtime.h"
#include "gpu/host/driver_info.h"
#include "gpu/host/gpu_call_site.h"
#include "gpu/host/gpu_communicator.h"
#include "gpu/host/store.h"
#endif

namespace nb = nanobind;

namespace jaxcoll {

#ifdef JAXCOLL_WITH_CUDA
namespace {

// The store of the job, called back in Python. Its methods are called by XLA's threads, which do
// not hold the interpreter's lock.
class PythonStore final : public cuda::Store {
 public:
  // Never destroyed: the job may outlive the interpreter.
  explicit PythonStore(nb::object store) : store_(*new nb::object(std::move(store))) {}

  Status Set(const std::string& key, const std::string& value) override {
    nb::gil_scoped_acquire acquire;
    try {
      store_.attr("set")(key, nb::bytes(value.data(), value.size()));
      return Status();
    } catch (const std::exception& e) {
      return Status(StatusCode::kUnavailable, e.what());
    }
  }
  StatusOr<std::string> Wait(const std::string& key, double timeout_s) override {
    nb::gil_scoped_acquire acquire;
    try {
      const nb::bytes value = nb::cast<nb::bytes>(store_.attr("wait")(key, timeout_s));
      return std::string(value.c_str(), value.size());
    } catch (const std::exception& e) {
      return Status(StatusCode::kUnavailable, e.what());
    }
  }

 private:
  nb::object& store_;
};

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
        all["communicators"] = cuda::GpuCommunicator::DescribeAll();
        all["causes"] = cuda::GpuCommunicator::AllCauses();
        return all;
      },
      "CUDA's features here, the communicators there are, and why kernels have given up.");
  m.def(
      "cuda_start",
      [](int process, const std::vector<std::tuple<int64_t, int, int>>& devices, int max_blocks,
         int workspace_mib, bool map_operands, bool dmabuf, std::string host,
         std::optional<nb::object> store) {
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
        if (store) job.store = std::make_unique<PythonStore>(std::move(*store));
        job.runtime = &cuda::CudaRuntime();
        cuda::StartJob(std::move(job));
      },
      nb::arg("process"), nb::arg("devices"), nb::arg("max_blocks"), nb::arg("workspace_mib"),
      nb::arg("map_operands"), nb::arg("dmabuf"), nb::arg("host"), nb::arg("store").none(),
      "Says once which GPUs the job has, as (device id, process, ordinal in the process), whether\n"
      "processes offer each other the memory of their arrays, whether NICs may read a GPU's, what\n"
      "processes of this host have in common, and the job's store, None if alone: an object with\n"
      "set(key, value) and wait(key, timeout_s).");
  m.def("cuda_started", &cuda::JobStarted, "Whether cuda_start has been called.");
  m.def("cuda_stop", &cuda::GpuCommunicator::StopMonitor, nb::call_guard<nb::gil_scoped_release>(),
        "Ends the thread that reports why kernels have given up.");
}

#else

void BindCuda(nb::module_& m) { m.attr("cuda_built") = false; }

#endif

}  // namespace jaxcoll
