#include "bindings/bindings.h"

namespace jaxcoll {

void BindSchedule(nanobind::module_&) {}

}  // namespace jaxcoll
