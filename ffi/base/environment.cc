#include "base/environment.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace jaxcoll {
namespace {

// A malformed value is reported and replaced: a typo must not change the result of a long job.
double PositiveNumber(const char* name, double fallback) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return fallback;
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (*end == '\0' && std::isfinite(value) && value > 0) return value;
  Log(LogLevel::kWarning, "%s=%s is not a positive number; using %g", name, text, fallback);
  return fallback;
}

// The cores this process may run on, which in a container are fewer than the machine has.
int AvailableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace

double TimeoutS() {
  static const double timeout_s = PositiveNumber("JAXCOLL_TIMEOUT_S", 300);
  return timeout_s;
}

int WorkerThreads() {
  static const int threads = static_cast<int>(
      std::clamp(PositiveNumber("JAXCOLL_THREADS", AvailableCores()), 1.0, 1024.0));
  return threads;
}

LogLevel CurrentLogLevel() {
  static const LogLevel level = [] {
    const char* text = std::getenv("JAXCOLL_LOG");
    if (text != nullptr && std::strcmp(text, "debug") == 0) return LogLevel::kDebug;
    if (text != nullptr && std::strcmp(text, "info") == 0) return LogLevel::kInfo;
    return LogLevel::kWarning;
  }();
  return level;
}

void Log(LogLevel level, const char* format, ...) {
  if (level > CurrentLogLevel()) return;
  char line[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "jaxcoll: %s\n", line);
}

}  // namespace jaxcoll
