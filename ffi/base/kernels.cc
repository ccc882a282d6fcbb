#include "base/kernels.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/environment.h"
#include "base/kernels_isa.h"
#include "base/status.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#endif

namespace jaxcoll {
namespace {

// XLA's threads flush subnormals to zero and ours do not: without this, a result would depend on
// the thread that happened to compute it. Sets round-to-nearest and no flushing while it lives.
class DefaultFloatControl {
 public:
  DefaultFloatControl(const DefaultFloatControl&) = delete;
  DefaultFloatControl& operator=(const DefaultFloatControl&) = delete;
#if defined(__x86_64__)
  DefaultFloatControl() : saved_(_mm_getcsr()) {
    if ((saved_ & kControl) != kDefault) _mm_setcsr((saved_ & ~kControl) | kDefault);
  }
  ~DefaultFloatControl() {
    if ((saved_ & kControl) != kDefault) _mm_setcsr(saved_);
  }

 private:
  static constexpr unsigned kDefault = 0x1f80;  // all exceptions masked
  static constexpr unsigned kControl = 0xffc0;  // DAZ, masks, rounding, FTZ; not the sticky flags
  const unsigned saved_;
#elif defined(__aarch64__)
  DefaultFloatControl() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    if (saved_ != 0) asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}) : "memory");
  }
  ~DefaultFloatControl() {
    if (saved_ != 0) asm volatile("msr fpcr, %0" : : "r"(saved_) : "memory");
  }

 private:
  uint64_t saved_;
#else
  DefaultFloatControl() {}
  ~DefaultFloatControl() {}
#endif
};

Isa DetectIsa() {
#if defined(__x86_64__)
  unsigned eax, ebx, ecx, edx;  // f16c by hand: clang's builtin learnt that name late
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
  const bool avx2 = f16c && __builtin_cpu_supports("avx2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

void RunKernel(Isa isa, const ReduceArguments& arguments) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      ReduceAvx512(arguments);
      break;
    case Isa::kAvx2:
      ReduceAvx2(arguments);
      break;
#endif
    default:
      ReducePortable(arguments);
  }
#if defined(__x86_64__)
  // Streaming stores are ordered with nothing; a thread that learns that we are done must see them.
  if (arguments.streaming) _mm_sfence();
#endif
}

}  // namespace

std::string_view Name(Isa isa) {
  constexpr std::array<std::string_view, kIsaCount> kNames = {"portable", "avx2", "avx512"};
  return kNames[static_cast<size_t>(isa)];
}

Isa BestIsa() {
  static const Isa isa = DetectIsa();  // once: in a virtual machine CPUID takes microseconds
  return isa;
}

Isa Allowed(std::optional<Isa> wanted, Isa best) { return std::min(wanted.value_or(best), best); }

Isa KernelIsa() { return Allowed(CurrentSettings().isa, BestIsa()); }

void ReduceWith(Isa isa, std::span<void* const> destinations, std::span<const void* const> sources,
                size_t count, DType dtype, ReduceOp op, Caching caching) {
  JAXCOLL_CHECK(isa <= BestIsa(), "%s", Name(isa).data());
  JAXCOLL_CHECK(!sources.empty(), "nothing to reduce");
  JAXCOLL_CHECK(sources.size() == 1 || Supports(dtype, op), "%s of %s", Name(op).data(),
                Name(dtype).data());
  if (destinations.empty() || count == 0) return;
  const DefaultFloatControl float_control;
  RunKernel(isa, {.destinations = destinations.data(),
                  .destination_count = destinations.size(),
                  .sources = sources.data(),
                  .source_count = sources.size(),
                  .count = count,
                  .item_bytes = ItemBytes(dtype),
                  .dtype = dtype,
                  .op = op,
                  .streaming = caching == Caching::kStreaming});
}

void Reduce(std::span<void* const> destinations, std::span<const void* const> sources, size_t count,
            DType dtype, ReduceOp op, Caching caching) {
  ReduceWith(KernelIsa(), destinations, sources, count, dtype, op, caching);
}

void Copy(std::span<void* const> destinations, const void* source, size_t byte_count,
          Caching caching) {
  if (byte_count == 0) return;
  if (caching == Caching::kCached && destinations.size() == 1) {
    if (destinations[0] != source) std::memcpy(destinations[0], source, byte_count);
    return;
  }
  Reduce(destinations, {&source, 1}, byte_count, DType::kUint8, ReduceOp::kOr, caching);
}

}  // namespace jaxcoll
