// The extension module, one function per file of this folder.
#pragma once

#include <nanobind/nanobind.h>

namespace jaxcoll {

void BindSchedule(nanobind::module_& m);  // schedule.cc: specs, op lists, BuildSchedule
void BindKernels(nanobind::module_& m);   // kernels.cc: Reduce on NumPy arrays, for tests
void BindEngine(nanobind::module_& m);    // engine.cc: FFI registrations, engine counters, shutdown
void BindLog(nanobind::module_& m);       // log.cc: the log of both languages
void BindComm(nanobind::module_& m);      // comm.cc: the other processes of the job
void BindSnapshot(nanobind::module_& m);  // snapshot.cc: what the engines are doing, as facts
void BindSim(nanobind::module_& m);       // sim.cc: networks, schedules packed for them, time
void BindCuda(nanobind::module_& m);      // cuda.cc: GPUs, or that this build has none
void BindRdma(nanobind::module_& m);      // rdma.cc: links to them over RDMA
void BindEngineCall(nanobind::module_& m);  // engine_call.cc: the engine without XLA, for timing

}  // namespace jaxcoll
