#define JAXCOLL_KERNEL_ENTRY ReduceAvx2
#define JAXCOLL_KERNEL_VECTOR_BYTES 32
#include "base/kernels_impl.inc"
