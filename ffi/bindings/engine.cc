#include "bindings/bindings.h"

namespace jaxcoll {

void BindEngine(nanobind::module_&) {}

}  // namespace jaxcoll
