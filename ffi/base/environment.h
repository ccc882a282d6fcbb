// The values of environment variables. C++ reads none itself: one parser, in
// jaxcoll/_environment.py, serves both languages and passes the parsed values when the extension
// module is loaded (jaxcoll/_native.py).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/log.h"

namespace jaxcoll {

enum class Isa : uint8_t;  // base/kernels.h

// The defaults are those of variables that are not set. Programs without Python, which are tests,
// use the defaults or configure their own values.
struct Settings {
  LogLevel log = LogLevel::kWarning;  // JAXCOLL_LOG
  std::string log_file = {};          // JAXCOLL_LOG_FILE, with its %h, %p and %r; empty: stderr
  double timeout_s = 300;             // JAXCOLL_TIMEOUT_S: how long a call waits for its peers
  int threads = 0;                    // JAXCOLL_THREADS that reduce and copy; 0: one per core
  std::optional<Isa> isa = {};        // JAXCOLL_ISA; none: the best that this CPU has
  std::string rdma_devices = {};      // JAXCOLL_IB_HCA; empty: all
  int rdma_gid_index = -1;            // JAXCOLL_IB_GID_INDEX; -1: chosen
  int rdma_service_level = 0;         // JAXCOLL_IB_SL
  int rdma_traffic_class = 0;         // JAXCOLL_IB_TC
  uint64_t rdma_register_bytes = 0;   // JAXCOLL_IB_REGISTER_BYTES; 0: never
};

// Replaces all settings. Calls that have begun keep their settings. Thread rule: any thread, as the
// functions below; references returned before stay valid.
void Configure(Settings settings);

const Settings& CurrentSettings();
double TimeoutS();
int WorkerThreads();  // with the number of cores put in

// A call that waits this long is logged, well before its deadline.
inline constexpr double kWarnAfterS = 10;

// For people: "1.5 s".
std::string Seconds(double s);

}  // namespace jaxcoll
