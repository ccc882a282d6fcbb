#define JAXCOLL_KERNEL_ENTRY ReducePortable
#define JAXCOLL_KERNEL_VECTOR_BYTES 16
#include "base/kernels_impl.inc"
