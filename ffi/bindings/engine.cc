#include <nanobind/stl/string.h>

#include "bindings/bindings.h"
#include "executor/call_site.h"
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
  targets["jaxcoll_collective_partitioned"] = target;  // jaxcoll/_lowering.py tells why
  types[type_name] = type;
  all["targets"] = targets;
  all["types"] = types;
  return all;
}

}  // namespace

void BindEngine(nb::module_& m) {
  m.def(
      "ffi_registrations",
      [] {
        nb::dict all;
        all["cpu"] = Capsules(GetFfiRegistration(), "jaxcoll_instruction");
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
  m.def("engine_dump", &DumpEngine, nb::call_guard<nb::gil_scoped_release>(),
        "The flight recorder of the calls within this process, for people.");
  m.def("shutdown", &ShutdownEngine, nb::call_guard<nb::gil_scoped_release>(),
        "Fails every pending and later call; waits a few seconds for work in progress.");
}

}  // namespace jaxcoll
