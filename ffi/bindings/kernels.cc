#include "bindings/bindings.h"

namespace jaxcoll {

void BindKernels(nanobind::module_&) {}

}  // namespace jaxcoll
