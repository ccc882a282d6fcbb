#include "base/interruption.h"

#include <atomic>
#include <csignal>

namespace jaxcoll {
namespace {

constexpr int kLookEvery = 10;  // calls of Check; a look is a system call

std::atomic<bool> watching{false};
std::atomic<uint32_t> interrupts{0};
std::atomic<uint32_t> heard{0};  // how many of them the main thread has seen
// The interpreter's handler. Written before ours is installed, which calls it.
std::atomic<void (*)(int)> theirs{nullptr};
std::atomic<void (*)(int, siginfo_t*, void*)> theirs_with_info{nullptr};

// Async-signal-safe: lock-free atomics, and what was installed before.
void OnInterrupt(int number, siginfo_t* info, void* context) {
  interrupts.fetch_add(1, std::memory_order_release);
  if (auto* const handler = theirs_with_info.load(std::memory_order_acquire)) {
    handler(number, info, context);
  } else if (auto* const simple = theirs.load(std::memory_order_acquire)) {
    simple(number);
  }
}

bool Handles(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 ||
         (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN);
}

bool IsOurs(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == &OnInterrupt;
}

bool IsTheirs(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 ? action.sa_sigaction == theirs_with_info.load()
                                             : action.sa_handler == theirs.load();
}

}  // namespace

Interruption& Interruption::Get() {
  static Interruption& interruption = *new Interruption;
  return interruption;
}

void Interruption::Watch(PythonInterpreter interpreter) {
  if (watching.load(std::memory_order_acquire)) return;
  interpreter_ = interpreter;
  Arm();
  watching.store(true, std::memory_order_release);
}

// Only in front of the interpreter's: a handler that C code has installed stays alone.
void Interruption::Arm() {
  struct sigaction now;
  if (sigaction(SIGINT, nullptr, &now) != 0 || !Handles(now) || IsOurs(now)) return;
  if (theirs.load() == nullptr && theirs_with_info.load() == nullptr) {
    if ((now.sa_flags & SA_SIGINFO) != 0) {
      theirs_with_info.store(now.sa_sigaction, std::memory_order_release);
    } else {
      theirs.store(now.sa_handler, std::memory_order_release);
    }
  }
  if (!IsTheirs(now)) return;
  struct sigaction ours = now;
  ours.sa_flags |= SA_SIGINFO;
  ours.sa_sigaction = &OnInterrupt;
  struct sigaction replaced;
  if (sigaction(SIGINT, &ours, &replaced) != 0) return;
  // Another thread has installed something in between.
  if (!IsTheirs(replaced) && !IsOurs(replaced)) (void)sigaction(SIGINT, &replaced, nullptr);
}

void Interruption::Heard() {
  heard.store(interrupts.load(std::memory_order_acquire), std::memory_order_release);
}

bool Interruption::unheard() const {
  return heard.load(std::memory_order_acquire) != interrupts.load(std::memory_order_acquire);
}

uint32_t Interruption::count() const { return interrupts.load(std::memory_order_acquire); }

bool Interruption::Check(int ticks) {
  if (!watching.load(std::memory_order_acquire)) return false;
  if (++arm_ticks_ >= kLookEvery) {
    arm_ticks_ = 0;
    Arm();
  }
  if (count() != seen_) {
    seen_ = count();
    asked_ = false;
    if (!fresh_) {  // else it was pressed again: that puts off nothing
      ticks_ = 0;
      came_ = std::chrono::steady_clock::now();
    }
    fresh_ = true;
  }
  if (!asked_) asked_ = interpreter_.ask_main_thread();
  return fresh_ && ++ticks_ >= ticks;
}

void Interruption::Take() { fresh_ = false; }

}  // namespace jaxcoll
