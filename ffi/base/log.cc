#include "base/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <mutex>
#include <string>

#include "base/environment.h"

namespace jaxcoll {
namespace {

constexpr size_t kHeldBytesMax = 64 << 10;
constexpr int64_t kUnknown = -1;

std::atomic<int64_t> process{kUnknown};  // index << 32 | count

int IndexOf(int64_t value) { return static_cast<int>(value >> 32); }
int CountOf(int64_t value) { return static_cast<int>(value & 0x7fffffff); }

std::string HostName() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0) return "unknown-host";
  return name;
}

// One file for each name that JAXCOLL_LOG_FILE has had in this process: others may still write.
struct LogFile {
  std::string name;  // with its %h, %p and %r
  int fd;
  const LogFile* before;
};

struct Opening {
  std::mutex mutex;
  std::string held;  // until the process's index is known, which the file's name takes
};

std::atomic<const LogFile*> newest{nullptr};  // publishes the file it points to

// Never destroyed: threads log while the process ends.
Opening& TheOpening() {
  static Opening* const opening = new Opening;
  return *opening;
}

bool TakesIndex(const std::string& name) {
  for (size_t i = 0; i + 1 < name.size(); ++i) {
    if (name[i] == '%' && name[++i] == 'r') return true;
  }
  return false;
}

std::string Expanded(const std::string& name) {
  std::string path;
  for (size_t i = 0; i < name.size(); ++i) {
    const bool marked = name[i] == '%' && i + 1 < name.size();
    switch (marked ? name[++i] : '\0') {
      case 'h':
        path += HostName();
        break;
      case 'p':
        path += std::to_string(getpid());
        break;
      case 'r':
        path += std::to_string(IndexOf(process.load(std::memory_order_acquire)));
        break;
      default:  // %% too
        path += name[i];
    }
  }
  return path;
}

// In one call, so that lines of several processes in one file stay whole.
void WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;  // a log has nowhere to say it
    bytes.remove_prefix(static_cast<size_t>(written));
  }
}

// The file to write to; null while its name waits for the index. The mutex is held.
StatusOr<const LogFile*> Opened(const std::string& name) {
  const LogFile* const file = newest.load(std::memory_order_acquire);
  if (file != nullptr && file->name == name) return file;
  if (TakesIndex(name) && process.load(std::memory_order_acquire) == kUnknown) {
    return static_cast<const LogFile*>(nullptr);
  }
  const std::string path = Expanded(name);
  // O_NONBLOCK: the open of a FIFO that nobody reads fails instead of waiting.
  const int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  const int fd = ::open(path.c_str(), flags, 0666);
  if (fd < 0) return Status(StatusCode::kUnavailable, path + ": " + std::strerror(errno));
  ::fcntl(fd, F_SETFL, O_APPEND);
  const auto* const opened = new LogFile{name, fd, file};
  newest.store(opened, std::memory_order_release);
  return opened;
}

void FlushHeldAtExit() {
  std::lock_guard lock(TheOpening().mutex);
  WriteAll(STDERR_FILENO, TheOpening().held);
  TheOpening().held.clear();
}

// Its lines go to stderr from now on, after one that says why.
void GiveUp(const std::string& name, const Status& why) {
  newest.store(new LogFile{name, STDERR_FILENO, newest.load(std::memory_order_acquire)},
               std::memory_order_release);
  WriteAll(STDERR_FILENO, LogLines("WARNING",
                                   "the log goes to stderr, as JAXCOLL_LOG_FILE cannot "
                                   "be opened: " +
                                       why.message()));
}

void Hold(const std::string& lines) {
  std::string& held = TheOpening().held;
  if (held.size() + lines.size() > kHeldBytesMax) return WriteAll(STDERR_FILENO, lines);
  static const int registered = std::atexit(FlushHeldAtExit);
  if (registered != 0) return WriteAll(STDERR_FILENO, lines);
  held += lines;
}

}  // namespace

std::string LogLines(std::string_view level, std::string_view text) {
  timespec now = {};
  clock_gettime(CLOCK_REALTIME, &now);
  tm parts = {};
  gmtime_r(&now.tv_sec, &parts);
  char time[32], head[96], place[48] = "";
  std::strftime(time, sizeof(time), "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(head, sizeof(head), "%s.%03dZ jaxcoll %.16s ", time,
                static_cast<int>(now.tv_nsec / 1000000), std::string(level).c_str());
  const int64_t known = process.load(std::memory_order_acquire);
  if (known != kUnknown) {
    std::snprintf(place, sizeof(place), " process %d/%d", IndexOf(known), CountOf(known));
  }
  const std::string prefix = head + HostName() + ':' + std::to_string(getpid()) + place + ": ";
  std::string lines;
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines += prefix;
    for (const char c : text.substr(begin, end - begin)) {
      const auto byte = static_cast<unsigned char>(c);
      lines += (byte < 0x20 && c != '\t') || byte == 0x7f ? '?' : c;
    }
    lines += '\n';
    begin = end + 1;
  }
  return lines;
}

bool WriteToLogFile(const std::string& lines) {
  const std::string& name = CurrentSettings().log_file;
  if (name.empty()) return false;
  const LogFile* file = newest.load(std::memory_order_acquire);
  if (file == nullptr || file->name != name) {
    std::lock_guard lock(TheOpening().mutex);
    const StatusOr<const LogFile*> opened = Opened(name);
    if (!opened.ok()) GiveUp(name, opened.status());
    file = opened.ok() ? *opened : newest.load(std::memory_order_acquire);
    if (file == nullptr) {
      Hold(lines);
      return true;
    }
  }
  WriteAll(file->fd, lines);
  return true;
}

void SetLogProcess(int index, int count) {
  process.store(static_cast<int64_t>(index) << 32 | count, std::memory_order_release);
  const std::string& name = CurrentSettings().log_file;
  if (name.empty()) return;
  std::lock_guard lock(TheOpening().mutex);
  if (TheOpening().held.empty()) return;
  const StatusOr<const LogFile*> opened = Opened(name);
  if (!opened.ok()) GiveUp(name, opened.status());
  WriteAll(newest.load(std::memory_order_acquire)->fd, TheOpening().held);
  TheOpening().held.clear();
}

Status OpenLogFile() {
  const std::string& name = CurrentSettings().log_file;
  if (name.empty()) return Status();
  std::lock_guard lock(TheOpening().mutex);
  return Opened(name).status();
}

void Log(LogLevel level, const char* format, ...) {
  if (level > CurrentSettings().log) return;
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  std::string text(std::max(std::vsnprintf(nullptr, 0, format, arguments), 0), '\0');
  std::vsnprintf(text.data(), text.size() + 1, format, again);
  va_end(again);
  va_end(arguments);
  constexpr const char* kNames[] = {"WARNING", "INFO", "DEBUG"};
  const std::string lines = LogLines(kNames[static_cast<int>(level)], text);
  if (!WriteToLogFile(lines)) WriteAll(STDERR_FILENO, lines);
}

}  // namespace jaxcoll
