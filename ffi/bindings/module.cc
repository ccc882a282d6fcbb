#include "bindings/bindings.h"

NB_MODULE(_jaxcoll, m) {
  m.doc() = "The C++ side of jaxcoll; import it through jaxcoll._native only.";
  m.attr("xla_ffi_api") = JAXCOLL_XLA_FFI_API;  // of the headers it was built with, "0.3"
  jaxcoll::BindSchedule(m);
  jaxcoll::BindKernels(m);
  jaxcoll::BindEngine(m);
}
