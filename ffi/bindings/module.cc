#include "bindings/bindings.h"

#ifdef JAXCOLL_TESTING
#include "testing/testing.h"
#endif

NB_MODULE(_jaxcoll, m) {
#ifndef JAXCOLL_TESTING
  // A program may keep our objects in a cache until it ends, which is not an error.
  nanobind::set_leak_warnings(false);
#endif
  m.doc() = "The C++ side of jaxcoll; import it through jaxcoll._native only.";
  jaxcoll::BindSchedule(m);
  jaxcoll::BindKernels(m);
  jaxcoll::BindEngine(m);
  jaxcoll::BindLog(m);
  jaxcoll::BindComm(m);
  jaxcoll::BindSnapshot(m);
  jaxcoll::BindSim(m);
  jaxcoll::BindCuda(m);
  jaxcoll::BindRdma(m);
  jaxcoll::BindEngineCall(m);
#ifdef JAXCOLL_TESTING
  m.attr("testing_built") = true;
  jaxcoll::BindLinkBench(m);
#ifdef JAXCOLL_WITH_CUDA
  jaxcoll::BindHarness(m);
#endif
#else
  m.attr("testing_built") = false;
#endif
}
