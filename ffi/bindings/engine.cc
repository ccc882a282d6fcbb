#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <csignal>
#include <exception>
#include <optional>
#include <string>
#include <utility>

#include "base/environment.h"
#include "base/interruption.h"
#include "base/kernels.h"
#include "bindings/bindings.h"
#include "call/call_site.h"
#include "xla/handler.h"

namespace nb = nanobind;

namespace jaxcoll {

namespace {

nb::dict Capsules(const FfiRegistration& registration, const char* type_name) {
  constexpr const char* kTarget = "xla._CUSTOM_CALL_TARGET";
  nb::dict target, type, targets, types, all;
  target["instantiate"] = nb::capsule(registration.instantiate, kTarget);
  if (registration.initialize != nullptr) {
    target["initialize"] = nb::capsule(registration.initialize, kTarget);
  }
  target["execute"] = nb::capsule(registration.execute, kTarget);
  // XLA's registration of types takes capsules without a name.
  type["type_id"] = nb::capsule(registration.type_id);
  type["type_info"] = nb::capsule(registration.type_info);
  targets["jaxcoll_collective"] = target;
  targets["jaxcoll_collective_partitioned"] = target;  // jaxcoll/_jax/lowering.py explains why
  types[type_name] = type;
  all["targets"] = targets;
  all["types"] = types;
  return all;
}

void ConfigureFromPython(const std::optional<std::string>& log, std::optional<std::string> log_file,
                         std::optional<double> timeout_s, std::optional<int> threads,
                         const std::optional<std::string>& isa,
                         std::optional<std::string> rdma_devices, std::optional<int> rdma_gid_index,
                         std::optional<int> rdma_service_level,
                         std::optional<int> rdma_traffic_class,
                         std::optional<uint64_t> rdma_register_bytes) {
  Settings settings;
  if (log == "info") settings.log = LogLevel::kInfo;
  if (log == "debug") settings.log = LogLevel::kDebug;
  settings.log_file = std::move(log_file).value_or("");
  settings.timeout_s = timeout_s.value_or(settings.timeout_s);
  settings.threads = threads.value_or(settings.threads);
  for (int i = 0; i < kIsaCount; ++i) {
    if (isa == Name(static_cast<Isa>(i))) settings.isa = static_cast<Isa>(i);
  }
  settings.rdma_devices = std::move(rdma_devices).value_or("");
  settings.rdma_gid_index = rdma_gid_index.value_or(settings.rdma_gid_index);
  settings.rdma_service_level = rdma_service_level.value_or(settings.rdma_service_level);
  settings.rdma_traffic_class = rdma_traffic_class.value_or(settings.rdma_traffic_class);
  settings.rdma_register_bytes = rdma_register_bytes.value_or(settings.rdma_register_bytes);
  Configure(std::move(settings));
}

}  // namespace

void BindEngine(nb::module_& m) {
  m.def("configure", &ConfigureFromPython, nb::kw_only(), nb::arg("log") = nb::none(),
        nb::arg("log_file") = nb::none(), nb::arg("timeout_s") = nb::none(),
        nb::arg("threads") = nb::none(), nb::arg("isa") = nb::none(),
        nb::arg("rdma_devices") = nb::none(), nb::arg("rdma_gid_index") = nb::none(),
        nb::arg("rdma_service_level") = nb::none(), nb::arg("rdma_traffic_class") = nb::none(),
        nb::arg("rdma_register_bytes") = nb::none(),
        "Replaces the engine's settings by those that jaxcoll/_environment.py has parsed; None\n"
        "stands for the default. Calls that have begun keep the settings they began with.");
  m.def(
      "ffi_registrations",
      [] {
        nb::dict all;
        nb::dict cpu = Capsules(GetFfiRegistration(), "jaxcoll_instruction");
        nb::dict nothing;
        nothing["execute"] = nb::capsule(NothingHandler(), "xla._CUSTOM_CALL_TARGET");
        cpu["targets"]["jaxcoll_nothing"] = nothing;
        all["cpu"] = cpu;
#ifdef JAXCOLL_WITH_CUDA
        all["CUDA"] = Capsules(GetCudaFfiRegistration(), "jaxcoll_gpu_instruction");
#endif
        return all;
      },
      "By platform, capsules for jax.ffi.register_ffi_target and register_ffi_type.");
  m.def(
      "ffi_api_version", [] { return nb::make_tuple(FfiApiMajor(), FfiApiMinor()); },
      "The XLA FFI API version this module was compiled against.");
  m.def(
      "engine_info",
      [] {
        const EngineInfo info = GetEngineInfo();
        nb::dict all;
        all["threads"] = info.threads;
        all["call_sites"] = info.call_sites;
        all["timeout_s"] = info.timeout_s;
        return all;
      },
      "Worker threads now, custom-call instructions alive, deadline in seconds.");
  m.def(
      "watch_interrupts",
      [] {
        Interruption::Get().Watch({
            [] {
              const auto heard = [](void*) {
                Interruption::Get().Heard();
                return 0;
              };
              return Py_AddPendingCall(heard, nullptr) == 0;
            },
            [] {
              nb::gil_scoped_acquire acquire;
              try {
                const nb::module_ signal = nb::module_::import_("signal");
                return signal.attr("getsignal")(SIGINT).is(signal.attr("default_int_handler"));
              } catch (const std::exception&) {
                return false;
              }
            },
        });
      },
      "From now on Ctrl-C ends calls in which the main thread waits, if Python's own handler of\n"
      "SIGINT is in place, which then raises KeyboardInterrupt. Once; more calls change nothing.");
  m.def(
      "interrupts", [] { return Interruption::Get().count(); },
      "How many times Ctrl-C was pressed.");
  m.def("engine_dump", &DumpEngine, nb::call_guard<nb::gil_scoped_release>(),
        "The flight recorder of the calls within this process, for people.");
  m.def("shutdown", &ShutdownEngine, nb::call_guard<nb::gil_scoped_release>(),
        "Fails every pending and later call; waits a few seconds for work in progress.");
}

}  // namespace jaxcoll
