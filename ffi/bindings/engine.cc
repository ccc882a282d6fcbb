#include <nanobind/stl/string.h>

#include "bindings/bindings.h"
#include "executor/call_site.h"
#include "xla/handler.h"

namespace nb = nanobind;

namespace jaxcoll {

void BindEngine(nb::module_& m) {
  m.def(
      "ffi_registrations",
      [] {
        const FfiRegistration registration = GetFfiRegistration();
        nb::dict target, type, targets, types, all;
        target["instantiate"] = nb::capsule(registration.instantiate, "xla._CUSTOM_CALL_TARGET");
        target["execute"] = nb::capsule(registration.execute, "xla._CUSTOM_CALL_TARGET");
        // XLA's registration of types takes capsules without a name.
        type["type_id"] = nb::capsule(registration.type_id);
        type["type_info"] = nb::capsule(registration.type_info);
        targets["jaxcoll_collective"] = target;
        targets["jaxcoll_collective_partitioned"] = target;  // jaxcoll/_lowering.py tells why
        types["jaxcoll_instruction"] = type;
        all["targets"] = targets;
        all["types"] = types;
        return all;
      },
      "Capsules for jax.ffi.register_ffi_target and register_ffi_type.");
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
