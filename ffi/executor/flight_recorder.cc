#include "executor/flight_recorder.h"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace jaxcoll {
namespace {

std::string Seconds(FlightRecorder::Clock::duration duration) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g s", std::chrono::duration<double>(duration).count());
  return text;
}

}  // namespace

FlightRecorder& FlightRecorder::Get() {
  static FlightRecorder* const recorder = new FlightRecorder;
  return *recorder;
}

void FlightRecorder::Add(std::shared_ptr<const std::string> description, Clock::time_point begun,
                         std::shared_ptr<const Status> status) {
  Record record{std::move(description), begun, Clock::now(), std::move(status)};
  std::lock_guard lock(mutex_);
  std::swap(records_[count_++ % records_.size()], record);  // the old one dies without the lock
}

std::string FlightRecorder::Lines() {
  std::lock_guard lock(mutex_);
  const Clock::time_point now = Clock::now();
  std::string text;
  for (uint64_t i = 0; i < std::min<uint64_t>(count_, records_.size()); ++i) {
    const Record& record = records_[(count_ - 1 - i) % records_.size()];
    text += "  " + Seconds(now - record.ended) + " ago: " + *record.description + ", took " +
            Seconds(record.ended - record.begun);
    if (!record.status->ok()) text += ", FAILED: " + record.status->message();
    text += '\n';
  }
  return text;
}

uint64_t FlightRecorder::count() {
  std::lock_guard lock(mutex_);
  return count_;
}

}  // namespace jaxcoll
