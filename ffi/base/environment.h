// The environment variables that C++ reads, each read once. The table for users is in
// jaxcoll/_environment.py.
#pragma once

namespace jaxcoll {

double TimeoutS();    // JAXCOLL_TIMEOUT_S: how long a call waits for its peers, 300
int WorkerThreads();  // JAXCOLL_THREADS: threads that reduce and copy, as many as cores

enum class LogLevel { kWarning, kInfo, kDebug };
LogLevel CurrentLogLevel();  // JAXCOLL_LOG: info or debug

// Writes one line to stderr, "jaxcoll: ..."; for kInfo and kDebug only if JAXCOLL_LOG asks for it.
void Log(LogLevel level, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace jaxcoll
