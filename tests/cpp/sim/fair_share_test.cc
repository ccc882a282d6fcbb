// Rates kept up to date against rates computed anew, on random links. An update that begins with no
// rates known has no floor: it fills the whole network, as every update did before there were
// floors.
#include "sim/fair_share.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

namespace jaxcoll::sim {
namespace {

struct Flow {
  std::vector<Hop> hops;
  double limit = std::numeric_limits<double>::infinity();
  double pull = 1;
  int32_t id = 0;
};

class FlowWorld {
 public:
  explicit FlowWorld(uint32_t seed) : random_(seed), equal_pulls_(seed % 2 == 0) {
    network_.node_names = {"a", "b"};
    network_.forwards = {true, true};
    const uint32_t links = 5 + random_() % 30;
    for (uint32_t l = 0; l < links; ++l) network_.links.push_back({0, 1, 1.0 + random_() % 3, 0});
    kept_ = std::make_unique<FairShare>(network_);
  }

  void Change() {
    const uint32_t what = random_() % 12;
    if (flows_.empty() || what < 7) {
      Add();
    } else if (what < 11) {
      const size_t gone = random_() % flows_.size();
      kept_->Remove(flows_[gone]->id);
      flows_.erase(flows_.begin() + static_cast<ptrdiff_t>(gone));
    } else {
      const auto link = static_cast<int32_t>(random_() % network_.links.size());
      network_.links[link].bytes_per_ps = 1.0 + random_() % 3;
      kept_->SetCapacity(link, network_.links[link].bytes_per_ps);
    }
  }

  void Compare() {
    kept_->Update();
    FairShare anew(network_);
    std::vector<int32_t> ids;
    for (const auto& flow : flows_) ids.push_back(AddTo(anew, *flow));
    anew.Update();
    for (size_t f = 0; f < flows_.size(); ++f) {
      const double expected = anew.rate(ids[f]);
      ASSERT_NEAR(kept_->rate(flows_[f]->id), expected, 1e-11 * expected) << "flow " << f;
    }
  }

 private:
  void Add() {
    auto flow = std::make_unique<Flow>();
    std::vector<int32_t> links(network_.links.size());
    for (size_t l = 0; l < links.size(); ++l) links[l] = static_cast<int32_t>(l);
    std::shuffle(links.begin(), links.end(), random_);
    links.resize(1 + random_() % 4);
    for (int32_t link : links) {
      const double weight = 0.25 * static_cast<double>(1 + random_() % 4);
      flow->hops.push_back({link, weight});
      flow->limit = std::min(flow->limit, network_.links[link].bytes_per_ps / weight);
    }
    if (random_() % 4 == 0) flow->limit *= 0.3;
    if (!equal_pulls_) flow->pull = std::exp2(static_cast<double>(random_() % 100) / 25 - 2);
    flow->id = AddTo(*kept_, *flow);
    flows_.push_back(std::move(flow));
  }

  static int32_t AddTo(FairShare& share, const Flow& flow) {
    return share.Add(flow.hops.data(), static_cast<int32_t>(flow.hops.size()), flow.limit,
                     flow.pull);
  }

  std::mt19937 random_;
  const bool equal_pulls_;
  Network network_;
  std::unique_ptr<FairShare> kept_;
  std::vector<std::unique_ptr<Flow>> flows_;
};

TEST(FairShare, RatesKeptUpToDateEqualThoseComputedAnew) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FlowWorld world(seed);
    for (uint32_t step = 0; step < 200; ++step) {
      for (uint32_t change = 0; change <= step % 3; ++change) world.Change();
      world.Compare();
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace jaxcoll::sim
