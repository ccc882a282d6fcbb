// The simulator's parts by hand: fair shares against a naive computation, routes, the ledger.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "sim/fair_share.h"
#include "sim/graph.h"
#include "sim/ledger.h"
#include "sim/limits.h"
#include "sim/router.h"
#include "sim/simulator.h"

namespace jaxcoll::sim {
namespace {

int32_t AddNode(Network& network, const std::string& name, bool forwards) {
  network.node_names.push_back(name);
  network.forwards.push_back(forwards);
  return network.node_count() - 1;
}

void Connect(Network& network, int32_t a, int32_t b, double bytes_per_ps, Time latency = 0) {
  network.links.push_back({a, b, bytes_per_ps, latency});
  network.links.push_back({b, a, bytes_per_ps, latency});
}

// Two racks of `hosts` each, joined by `spines` spines. Hosts are nodes 0, 1, ...
Network TwoRacks(int32_t hosts, int32_t spines) {
  Network network;
  for (int32_t h = 0; h < 2 * hosts; ++h) AddNode(network, "h" + std::to_string(h), false);
  const int32_t left = AddNode(network, "left", true), right = AddNode(network, "right", true);
  for (int32_t h = 0; h < 2 * hosts; ++h) Connect(network, h, h < hosts ? left : right, 1, 10);
  for (int32_t s = 0; s < spines; ++s) {
    const int32_t spine = AddNode(network, "spine" + std::to_string(s), true);
    Connect(network, left, spine, 1, 100);
    Connect(network, spine, right, 1, 100);
  }
  return network;
}

// Rates raised together, each by its pull, until a link is full or a flow at its limit.
std::vector<double> NaiveShares(const Network& network, const std::vector<const Route*>& routes,
                                const std::vector<double>& limits,
                                const std::vector<double>& pulls) {
  std::vector<double> rates(routes.size(), 0), left;
  for (const NetworkLink& link : network.links) left.push_back(link.bytes_per_ps);
  std::vector<bool> fixed(routes.size(), false);
  while (std::find(fixed.begin(), fixed.end(), false) != fixed.end()) {
    std::vector<double> weight(network.links.size(), 0);
    double raise = std::numeric_limits<double>::infinity();
    for (size_t f = 0; f < routes.size(); ++f) {
      if (fixed[f]) continue;
      raise = std::min(raise, (limits[f] - rates[f]) / pulls[f]);
      for (const Hop& hop : routes[f]->hops) weight[hop.link] += hop.weight * pulls[f];
    }
    for (size_t l = 0; l < left.size(); ++l) {
      if (weight[l] > 1e-12) raise = std::min(raise, left[l] / weight[l]);
    }
    for (size_t f = 0; f < routes.size(); ++f) {
      if (fixed[f]) continue;
      rates[f] += raise * pulls[f];
      for (const Hop& hop : routes[f]->hops) left[hop.link] -= raise * hop.weight * pulls[f];
    }
    for (size_t f = 0; f < routes.size(); ++f) {
      for (const Hop& hop : routes[f]->hops) fixed[f] = fixed[f] || left[hop.link] < 1e-9;
      fixed[f] = fixed[f] || rates[f] > limits[f] - 1e-9;
    }
  }
  return rates;
}

TEST(FairShare, IncrementalRatesEqualThoseFromScratch) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    std::mt19937 random(seed);
    const int32_t hosts = 6;
    const Network network = TwoRacks(hosts, 3);
    Router paths(network, Routing::kEcmp, seed), fans(network, Routing::kSpray, seed);
    FairShare share(network);
    std::vector<int32_t> ids;
    std::vector<std::shared_ptr<const Route>> routes;
    std::vector<double> limits, pulls;
    for (int32_t round = 0; round < 60; ++round) {
      if (!ids.empty() && random() % 3 == 0) {
        const size_t gone = random() % ids.size();
        share.Remove(ids[gone]);
        ids.erase(ids.begin() + gone);
        routes.erase(routes.begin() + gone);
        limits.erase(limits.begin() + gone);
        pulls.erase(pulls.begin() + gone);
      } else {
        const int32_t a = random() % (2 * hosts);
        const int32_t b = (a + 1 + random() % (2 * hosts - 1)) % (2 * hosts);
        auto route = (random() % 2 ? paths : fans).Find(a, b, random() % 4, 0);
        ASSERT_TRUE(route.ok());
        routes.push_back(*route);
        limits.push_back(random() % 4 == 0 ? 0.3 : (*route)->capacity);
        // All pulls of the even seeds are equal.
        pulls.push_back(seed % 2 == 0 ? 1 : std::exp2(static_cast<int32_t>(random() % 5) - 2.5));
        ids.push_back(share.Add(routes.back()->hops.data(),
                                static_cast<int32_t>(routes.back()->hops.size()), limits.back(),
                                pulls.back()));
      }
      if (random() % 4 == 0) continue;  // several changes at once
      share.Update();
      std::vector<const Route*> now;
      for (const auto& route : routes) now.push_back(route.get());
      const std::vector<double> expected = NaiveShares(network, now, limits, pulls);
      for (size_t f = 0; f < ids.size(); ++f) {
        ASSERT_NEAR(share.rate(ids[f]), expected[f], 1e-8) << "seed " << seed << ", flow " << f;
      }
    }
  }
}

TEST(FairShare, OnlyFlowsWhoseRateChangedAreReported) {
  const Network network = TwoRacks(4, 1);
  Router router(network, Routing::kEcmp, 0);
  FairShare share(network);
  std::vector<std::shared_ptr<const Route>> routes;
  auto add = [&](int32_t a, int32_t b) {
    routes.push_back(*router.Find(a, b, 0, 0));
    return share.Add(routes.back()->hops.data(), static_cast<int32_t>(routes.back()->hops.size()),
                     routes.back()->capacity);
  };
  const int32_t inside = add(0, 1), across = add(2, 4);
  EXPECT_EQ(share.Update(), (std::vector<int32_t>{inside, across}));
  const int32_t second = add(3, 5);  // shares the spine with `across`
  std::vector<int32_t> changed = share.Update();
  std::sort(changed.begin(), changed.end());
  EXPECT_EQ(changed, (std::vector<int32_t>{across, second}));
  EXPECT_DOUBLE_EQ(share.rate(across), 0.5);
  EXPECT_DOUBLE_EQ(share.rate(inside), 1);
  share.Remove(second);
  EXPECT_EQ(share.Update(), std::vector<int32_t>{across});
  EXPECT_DOUBLE_EQ(share.rate(across), 1);
}

TEST(Router, HashesEveryFlowOntoOneShortestPath) {
  const Network network = TwoRacks(2, 4);
  std::set<int32_t> taken;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Router router(network, Routing::kEcmp, seed);
    const auto route = *router.Find(0, 3, 0, 0);
    ASSERT_EQ(route->hops.size(), 4u);
    EXPECT_EQ(route->latency, 220);
    EXPECT_DOUBLE_EQ(route->capacity, 1);
    taken.insert(route->hops[1].link);
    EXPECT_EQ((*router.Find(0, 3, 0, 0)).get(), route.get());  // found once
  }
  EXPECT_EQ(taken.size(), 4u);
}

TEST(Router, SpraysEvenlyAndGoesAroundFailedLinks) {
  Network network = TwoRacks(2, 4);
  Router router(network, Routing::kSpray, 0);
  auto route = *router.Find(0, 3, 0, 0);
  EXPECT_EQ(route->hops.size(), 1u + 4 + 4 + 1);
  EXPECT_EQ(route->first_hops, 1);
  EXPECT_DOUBLE_EQ(route->hops[1].weight, 0.25);
  // From spine 0 to the right rack: shortest paths that work avoid the spine altogether.
  network.links[8 + 2].bytes_per_ps = 0;
  router.Reset();
  route = *router.Find(0, 3, 0, 0);
  EXPECT_EQ(route->hops.size(), 1u + 3 + 3 + 1);
  EXPECT_EQ(router.Find(3, 0, 0, 0).ok(), true);  // that direction still has four
  for (size_t l = 8; l < network.links.size(); ++l) network.links[l].bytes_per_ps = 0;
  router.Reset();
  const auto none = router.Find(0, 3, 0, 0);
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.status().message().find("from h0 to h3"), std::string::npos);
}

TEST(Router, EndpointsDoNotForwardUnlessToldTo) {
  Network network;
  const int32_t a = AddNode(network, "a", false), b = AddNode(network, "b", false),
                c = AddNode(network, "c", false);
  Connect(network, a, b, 1);
  Connect(network, b, c, 1);
  EXPECT_FALSE(Router(network, Routing::kEcmp, 0).Find(a, c, 0, 0).ok());
  EXPECT_TRUE(Router(network, Routing::kEcmp, 0).Find(a, b, 0, 0).ok());
  network.forwards[b] = 1;
  EXPECT_TRUE(Router(network, Routing::kEcmp, 0).Find(a, c, 0, 0).ok());
}

TEST(Ledger, SplitsBytesWithoutLosingAny) {
  const Network network = TwoRacks(2, 3);
  Router router(network, Routing::kSpray, 0);
  const auto route = *router.Find(0, 3, 0, 0);
  Ledger ledger(network);
  ledger.Enter(*route, 0, 3, 10);  // over three spines: 4, 3, 3
  std::vector<int64_t> up;
  for (int32_t s = 0; s < 3; ++s) up.push_back(ledger.link_bytes()[8 + 4 * s]);
  EXPECT_EQ(up, (std::vector<int64_t>{4, 3, 3}));
  EXPECT_TRUE(ledger.Check(100).ok());
}

TEST(Ledger, NoticesBytesThatWereLostAndLinksThatWereOverfull) {
  const Network network = TwoRacks(2, 1);
  Router router(network, Routing::kEcmp, 0);
  Route broken = **router.Find(0, 3, 0, 0);
  broken.hops.pop_back();
  Ledger ledger(network);
  ledger.Enter(broken, 0, 3, 10);
  const Status lost = ledger.Check(1000);
  EXPECT_EQ(lost.code(), StatusCode::kInternal);
  EXPECT_NE(lost.message().find("lost or made up"), std::string::npos);

  Ledger full(network);
  full.Enter(**router.Find(0, 3, 0, 0), 0, 3, 1000);
  EXPECT_TRUE(full.Check(1000).ok());
  const Status over = full.Check(900);
  EXPECT_NE(over.message().find("more than its capacity allows"), std::string::npos);
}

TEST(Graph, PacksProgramsOnceForAllSizes) {
  ScheduleSpec spec;
  spec.algorithm = "ring";
  spec.world_size = 70;  // enough for several threads
  const auto graph = Graph::Build(spec);
  ASSERT_TRUE(graph.ok());
  EXPECT_EQ(graph->op_count(), 70u * 4 * 69);
  int64_t sent = 0;
  const std::vector<int64_t> bytes = graph->ExtentBytes(1000, 4);  // 70 unequal chunks
  for (uint32_t op = 0; op < graph->op_count(); ++op) {
    if (graph->kind(op) == OpKind::kSend) sent += bytes[graph->node(op).extent];
  }
  EXPECT_EQ(sent, 2 * 69 * 1000 * 4);
  EXPECT_LT(graph->bytes(), 60u * graph->op_count());
}

TEST(Simulate, RefusesWhatCannotBe) {
  ScheduleSpec spec;
  spec.world_size = 2;
  const auto graph = Graph::Build(spec);
  const Network network = TwoRacks(1, 1);
  auto refused = [&](const std::vector<int32_t>& nodes, const Parameters& parameters) {
    return !Simulate(*graph, network, nodes, 1, 4, parameters).ok();
  };
  EXPECT_FALSE(refused({0, 1}, {}));
  EXPECT_TRUE(refused({0}, {}));
  EXPECT_TRUE(refused({0, 0}, {}));
  EXPECT_TRUE(refused({0, 99}, {}));
  Parameters bad;
  bad.efficiency = 0;
  EXPECT_TRUE(refused({0, 1}, bad));
  bad = {};
  bad.changes.push_back({0, 99, 1});
  EXPECT_TRUE(refused({0, 1}, bad));
  bad = {};
  bad.background.push_back({0, 0, 0, 1, 1});
  EXPECT_TRUE(refused({0, 1}, bad));
  bad = {};
  bad.changes.push_back({1, 0, std::numeric_limits<double>::infinity()});
  EXPECT_TRUE(refused({0, 1}, bad));
  bad.changes = {{1, 0, std::numeric_limits<double>::quiet_NaN()}};
  EXPECT_TRUE(refused({0, 1}, bad));
}

TEST(Time, SumsStayOutOfRange) {
  EXPECT_EQ(After(1, 2), 3);
  EXPECT_EQ(After(kMostTime, kMostTime), kNever);
  EXPECT_EQ(After(kNever, 0), kNever);
  EXPECT_EQ(After(kNever, kNever), kNever);
  EXPECT_EQ(After(0, kNever), kNever);
}

// The undefined behaviour sanitizer watches: each kind of time at the end of its range, alone and
// together.
TEST(Simulate, SumsOfGreatTimesAreRefused) {
  ScheduleSpec spec;
  spec.world_size = 4;
  spec.algorithm = "direct";
  const auto graph = Graph::Build(spec);
  ASSERT_TRUE(graph.ok());
  Network network;
  const int32_t center = AddNode(network, "center", true);
  std::vector<int32_t> nodes;
  for (int32_t h = 0; h < 4; ++h) {
    nodes.push_back(AddNode(network, "h" + std::to_string(h), false));
    Connect(network, nodes.back(), center, 1, 1);
  }
  const Time most = kMostTime;
  for (int32_t kinds = 1; kinds < 1 << 8; ++kinds) {
    Parameters p;
    Network far = network;
    if (kinds & 1) p.latency = most;
    if (kinds & 2) p.overhead = most;
    if (kinds & 4) p.quantum = most;
    if (kinds & 8) p.start.assign(4, most);
    if (kinds & 16) p.reduce_ps_per_byte = static_cast<double>(most) / 16;
    if (kinds & 32) p.copy_ps_per_byte = static_cast<double>(most) / 16;
    if (kinds & 64) far.links[0].latency = most - 100;
    if (kinds & 128) p.background.push_back({nodes[0], nodes[1], most, std::nullopt, 1, 0});
    p.in_flight = 0;
    const auto result = Simulate(*graph, far, nodes, 4, 4, p);
    if (result.ok()) {
      EXPECT_EQ(kinds & (1 | 2 | 8), 0) << kinds;
      EXPECT_LE(result->time, most) << kinds;
    } else {
      EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument) << kinds;
    }
  }
}

TEST(Simulate, FlowsFollowTheCapacitiesOfTheirLinks) {
  ScheduleSpec spec;
  spec.collective = Collective::kPermute;
  spec.world_size = 2;
  spec.permutation = {{0, 1}};
  const auto graph = Graph::Build(spec);
  ASSERT_TRUE(graph.ok());
  const Network network = TwoRacks(1, 1);  // 220 ps from h0 to h1
  auto time = [&](const std::vector<LinkChange>& changes, Routing routing) {
    Parameters p;
    p.routing = routing;
    p.split = 3;
    p.changes = changes;
    const auto result = Simulate(*graph, network, {0, 1}, 3000, 1, p);
    EXPECT_TRUE(result.ok()) << result.status().message();
    return result->time - 220;
  };
  for (Routing routing : {Routing::kEcmp, Routing::kSplit, Routing::kSpray}) {
    EXPECT_EQ(time({}, routing), 3000);
    EXPECT_EQ(time({{0, 0, 0.01}}, routing), 300'000);
    EXPECT_EQ(time({{0, 0, 0.01}, {1000, 0, 1}}, routing), 1000 + 2990);
    EXPECT_EQ(time({{1000, 0, 0.1}, {2000, 4, 0.01}, {3000, 0, 1}, {4000, 4, 0.5}}, routing),
              4000 + 2 * (2000 - 100 - 10 - 10));
    EXPECT_EQ(time({{0, 0, 4}, {0, 4, 4}, {1000, 4, 1}}, routing), 3000);  // others stay at 1
  }
}

TEST(Graph, ADirectRootIsNotMultipliedByTheRanks) {
  ScheduleSpec spec;
  spec.collective = Collective::kBroadcast;
  spec.world_size = 1000;
  EXPECT_TRUE(Graph::Build(spec, 4'000'000).ok());  // the root's ops alone: 1000 * 999 * 90 bytes
  spec.root = 500;
  EXPECT_TRUE(Graph::Build(spec, 4'000'000).ok());
  EXPECT_FALSE(Graph::Build(spec, 1'000'000).ok());
}

}  // namespace
}  // namespace jaxcoll::sim
