#include "base/environment.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <utility>

namespace jaxcoll {
namespace {

struct Node {
  Settings settings;
  const Node* before;  // replaced, but perhaps still read; there are two or three in a process
};

std::atomic<const Node*> current{nullptr};  // publishes the node it points to

// The cores this process may run on, which in a container are fewer than the machine has.
int AvailableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace

void Configure(Settings settings) {
  Node* const node = new Node{std::move(settings), current.load(std::memory_order_acquire)};
  while (!current.compare_exchange_weak(node->before, node, std::memory_order_acq_rel)) {
  }
}

const Settings& CurrentSettings() {
  static const Settings defaults;
  const Node* const node = current.load(std::memory_order_acquire);
  return node == nullptr ? defaults : node->settings;
}

double TimeoutS() { return CurrentSettings().timeout_s; }

int WorkerThreads() {
  const int threads = CurrentSettings().threads;
  return threads > 0 ? threads : std::min(AvailableCores(), 1024);
}

std::string Seconds(double s) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g s", s);
  return text;
}

}  // namespace jaxcoll
