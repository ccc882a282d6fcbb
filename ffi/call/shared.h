// Objects that equal instructions share, such as a compiled schedule.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "base/status.h"

namespace jaxcoll {

// One object per key, made by `build` if none exists. The map holds weak references: call sites own
// their objects, so each dies with the last executable that uses it. Any thread.
template <typename Built, typename Build>
StatusOr<std::shared_ptr<const Built>> Shared(const std::string& key, Build build) {
  static std::mutex& mutex = *new std::mutex;
  static auto& known = *new std::map<std::string, std::weak_ptr<const Built>>;
  {
    std::lock_guard lock(mutex);
    const auto it = known.find(key);
    if (it != known.end()) {
      if (std::shared_ptr<const Built> found = it->second.lock()) return found;
    }
  }
  StatusOr<Built> built = build();
  if (!built.ok()) return built.status();
  auto made = std::make_shared<const Built>(std::move(*built));
  std::lock_guard lock(mutex);
  std::erase_if(known, [](const auto& entry) { return entry.second.expired(); });
  known[key] = made;
  return made;
}

}  // namespace jaxcoll
