#include "bindings/bindings.h"

NB_MODULE(_jaxcoll, m) {
  m.doc() = "The C++ side of jaxcoll; import it through jaxcoll._native only.";
  jaxcoll::BindSchedule(m);
  jaxcoll::BindKernels(m);
  jaxcoll::BindEngine(m);
  jaxcoll::BindComm(m);
  jaxcoll::BindSim(m);
  jaxcoll::BindCuda(m);
  jaxcoll::BindRdma(m);
  jaxcoll::BindLinkBench(m);
  jaxcoll::BindEngineCall(m);
}
