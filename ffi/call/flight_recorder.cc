#include "call/flight_recorder.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/environment.h"

namespace jaxcoll {

using std::chrono::duration;

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
    text += "  " + Seconds(duration<double>(now - record.ended).count()) +
            " ago: " + *record.description + ", took " +
            Seconds(duration<double>(record.ended - record.begun).count());
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
