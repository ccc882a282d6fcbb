// Distances against a plain search of the whole network, on random ones.
#include "sim/distances.h"

#include <gtest/gtest.h>

#include <random>

namespace jaxcoll::sim {
namespace {

Network RandomNetwork(std::mt19937& random, int32_t nodes, int32_t links) {
  Network network;
  for (int32_t n = 0; n < nodes; ++n) {
    network.node_names.push_back("n" + std::to_string(n));
    network.forwards.push_back(random() % 4 != 0);
  }
  for (int32_t l = 0; l < links; ++l) {
    const auto from = static_cast<int32_t>(random() % nodes);
    const auto to = static_cast<int32_t>((from + 1 + random() % (nodes - 1)) % nodes);
    network.links.push_back({from, to, random() % 8 == 0 ? 0.0 : 1.0, 0});
  }
  return network;
}

// To `root`, from nodes that forward over nodes that forward, by relaxing until nothing changes.
std::vector<int32_t> Plain(const Network& network, int32_t root) {
  std::vector<int32_t> distance(network.node_names.size(), Field::kUnknown);
  distance[root] = 0;
  for (bool changed = true; changed;) {
    changed = false;
    for (const NetworkLink& link : network.links) {
      if (link.bytes_per_ps <= 0 || !network.forwards[link.from] || !network.forwards[link.to]) {
        continue;
      }
      if (distance[link.to] + 1 < distance[link.from]) {
        distance[link.from] = distance[link.to] + 1;
        changed = true;
      }
    }
  }
  return distance;
}

TEST(Distances, EqualAPlainSearchWhateverIsAskedFirst) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    std::mt19937 random(seed);
    const int32_t nodes = seed % 3 == 0 ? 20 : 600;  // one table, or one that grows into a list
    const Network network = RandomNetwork(random, nodes, nodes * (1 + static_cast<int>(seed % 3)));
    const Fabric fabric(network);
    FieldCache cache(network, fabric, 20'000);  // forgets nearly all that it holds
    for (int question = 0; question < 300; ++question) {
      const auto root = static_cast<int32_t>(random() % 8),
                 from = static_cast<int32_t>(random() % nodes);
      if (!network.forwards[root] || fabric.part[from] != fabric.part[root]) continue;
      const int32_t most = question % 2 == 0 ? Field::kUnknown : static_cast<int32_t>(random() % 6);
      const std::vector<int32_t> plain = Plain(network, root);
      const auto field = cache.Of(root);
      const int32_t expected = plain[from] <= most ? plain[from] : Field::kUnknown;
      ASSERT_EQ(field->At(from, most), expected) << "seed " << seed << ", question " << question;
      cache.Account(*field);
      // All that is nearer is known as well.
      for (int32_t node = 0; node < nodes && expected != Field::kUnknown; ++node) {
        if (plain[node] < expected) {
          ASSERT_EQ(field->Known(node), plain[node]);
        }
      }
    }
  }
}

TEST(Distances, NodesThatNothingJoinsAreInDifferentParts) {
  Network network;
  for (int n = 0; n < 5; ++n) network.node_names.push_back("n" + std::to_string(n));
  network.forwards = {1, 1, 0, 1, 1};
  network.links = {{0, 1, 1.0, 0}, {1, 2, 1.0, 0}, {2, 3, 1.0, 0}, {3, 4, 0.0, 0}};
  const Fabric fabric(network);
  EXPECT_EQ(fabric.part[0], fabric.part[1]);
  EXPECT_EQ(fabric.part[2], -1);  // does not forward
  EXPECT_EQ(fabric.part[3], fabric.part[4]);
  EXPECT_NE(fabric.part[0], fabric.part[3]);
  EXPECT_EQ(fabric.part_size, (std::vector<int32_t>{2, 2}));
}

}  // namespace
}  // namespace jaxcoll::sim
