// Additional functions for tests and benchmarks, only in builds with -DJAXCOLL_TESTING=ON: not part
// of the wheel.
#pragma once

#include <nanobind/nanobind.h>

namespace jaxcoll {

void BindLinkBench(nanobind::module_& m);  // link_bench.cc: a link alone
void BindHarness(nanobind::module_& m);    // bind_harness.cc: N ranks on one GPU; needs CUDA

}  // namespace jaxcoll
