// The check of a whole number that came from outside.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace jaxcoll {

// "a link's source is 7, but must be from 0 to 3"
inline Status CheckRange(std::string_view what, int64_t value, int64_t low, int64_t high) {
  if (low <= value && value <= high) return {};
  return InvalidArgument(std::string(what) + " is " + std::to_string(value) +
                         ", but must be from " + std::to_string(low) + " to " +
                         std::to_string(high));
}

}  // namespace jaxcoll
