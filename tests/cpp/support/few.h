// A sanitizer makes threads and memory ten to twenty times as slow, and judges neither sizes nor
// seeds. CI runs the tests in full without one; under one they run a few of their cases.
#pragma once

#include <vector>

namespace jaxcoll {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// `all`, or under a sanitizer `few` of them.
inline std::vector<int> Few(std::vector<int> all, std::vector<int> few) {
  return kSanitized ? few : all;
}

// The number of random cases.
inline int Few(int all) { return kSanitized ? (all + 1) / 2 : all; }

}  // namespace jaxcoll
