#define JAXCOLL_KERNEL_ENTRY ReduceAvx512
#define JAXCOLL_KERNEL_VECTOR_BYTES 64
#include "base/kernels_impl.inc"
