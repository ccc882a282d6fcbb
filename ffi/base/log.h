// The log of both languages: whole lines on stderr, or in the file that JAXCOLL_LOG_FILE names.
//
//   2026-11-30T20:51:35.123Z jaxcoll INFO node7:4242 process 3/8: linked to process 5, tcp to ...
//
// UTC, level, host, process id and, once it is known, the process's index in its job and the number
// of processes. Python's lines pass through here as well (jaxcoll/_log.py). Lines of C++ do not
// pass through Python: a thread that waited for the interpreter's lock could keep others waiting.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace jaxcoll {

enum class LogLevel : uint8_t { kWarning, kInfo, kDebug };

// Writes a message if JAXCOLL_LOG asks for its level. Never fails: a file that cannot be opened
// leaves stderr, and the first line there says so.
// Thread rule: any thread, as the functions below.
void Log(LogLevel level, const char* format, ...) __attribute__((format(printf, 2, 3)));

// A message as the log writes it: each of its lines has the head, and ends. Control characters,
// which may come from a peer, become question marks.
std::string LogLines(std::string_view level, std::string_view text);

// Writes lines made by LogLines to the log's file, in one piece; false if there is no file.
bool WriteToLogFile(const std::string& lines);

// The process's place in its job. A file name with %r waits for it; so do the lines for that file.
void SetLogProcess(int index, int count);

// Opens the file now, unless its name takes an index that is not known yet. Where it cannot be
// opened, the status has the path and the system's reason. No file is asked for: ok.
Status OpenLogFile();

}  // namespace jaxcoll
