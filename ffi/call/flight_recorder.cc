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

void FlightRecorder::Add(Record record) {
  std::lock_guard lock(mutex_);
  std::swap(records_[count_++ % records_.size()], record);  // the old one dies without the lock
}

std::string FlightRecorder::Lines(Clock::time_point now) {
  std::lock_guard lock(mutex_);
  std::string text;
  for (uint64_t i = 0; i < std::min<uint64_t>(count_, records_.size()); ++i) {
    const Record& record = records_[(count_ - 1 - i) % records_.size()];
    text += "  " + Seconds(duration<double>(now - record.ended).count()) +
            " ago: " + *record.description +
            (record.number ? ", call " + std::to_string(*record.number) : "") + ", took " +
            Seconds(duration<double>(record.ended - record.begun).count());
    if (!record.status->ok()) text += ", FAILED: " + record.status->message();
    text += '\n';
  }
  return text;
}

std::vector<FlightRecorder::Record> FlightRecorder::Newest(size_t most) {
  std::lock_guard lock(mutex_);
  std::vector<Record> records;
  most = std::min<size_t>({most, static_cast<size_t>(count_), records_.size()});
  for (size_t i = 0; i < most; ++i) {
    records.push_back(records_[(count_ - 1 - i) % records_.size()]);
  }
  return records;
}

uint64_t FlightRecorder::count() {
  std::lock_guard lock(mutex_);
  return count_;
}

std::optional<FlightRecorder::Record> FlightRecorder::last() {
  std::lock_guard lock(mutex_);
  if (count_ == 0) return std::nullopt;
  return records_[(count_ - 1) % records_.size()];
}

}  // namespace jaxcoll
