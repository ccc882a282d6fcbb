// JAXCOLL_HD marks functions that run on the host and on the device.
#pragma once

#if defined(__CUDACC__)
#define JAXCOLL_HD __host__ __device__ __forceinline__
#else
#define JAXCOLL_HD inline __attribute__((always_inline))
#endif
