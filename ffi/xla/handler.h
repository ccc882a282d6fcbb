// The XLA FFI entry points of the custom call "jaxcoll_collective", for CPUs (handler.cc) and for
// GPUs (handler_cuda.cc). This folder is the only one that includes XLA's headers.
#pragma once

namespace jaxcoll {

// For jax.ffi.register_ffi_target and register_ffi_type: pointers to XLA_FFI_Handler functions, a
// TypeId and a TypeInfo of the per-instruction state.
struct FfiRegistration {
  void* instantiate;
  void* initialize;  // null: there is nothing to do
  void* execute;
  void* type_id;
  void* type_info;
};
FfiRegistration GetFfiRegistration();
FfiRegistration GetCudaFfiRegistration();  // only in a build with CUDA

// The custom call "jaxcoll_nothing", for CPUs: an XLA_FFI_Handler function.
void* NothingHandler();

// The XLA FFI API version this was compiled against.
int FfiApiMajor();
int FfiApiMinor();

}  // namespace jaxcoll
