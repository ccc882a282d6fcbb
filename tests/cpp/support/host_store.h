// A store of the job's processes, which are threads here.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>

#include "gpu/host/store.h"

namespace jaxcoll::cuda {

class HostStore final : public Store {
 public:
  Status Set(const std::string& key, const std::string& value) override {
    std::lock_guard lock(mutex_);
    if (!values_.emplace(key, value).second) {
      return Status(StatusCode::kUnavailable, key + " is there already");
    }
    changed_.notify_all();
    return Status();
  }
  StatusOr<std::string> Wait(const std::string& key, double) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return values_.contains(key); });
    return values_.at(key);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;  // guarded by mutex_
};

}  // namespace jaxcoll::cuda
