// The simulator. jaxcoll/topology.py and jaxcoll/simulate.py own what users see; times are integers
// in picoseconds here.
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/range.h"
#include "bindings/bindings.h"
#include "bindings/op_list_tuple.h"
#include "sim/limits.h"
#include "sim/simulator.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jaxcoll {
namespace {

using sim::Graph;
using sim::Network;
using sim::Time;

// Raises ValueError.
void OrThrow(const Status& status) {
  if (!status.ok()) throw std::invalid_argument(status.message());
}

// A number from Python, where the engine has 32 bits for it.
int32_t Narrow(const char* what, int64_t value, int64_t low, int64_t high = INT32_MAX) {
  OrThrow(CheckRange(what, value, low, high));
  return static_cast<int32_t>(value);
}

int32_t NodeOrThrow(const Network& network, const char* what, int64_t node) {
  OrThrow(sim::CheckNode(network, what, node));
  return static_cast<int32_t>(node);
}

Graph GraphOfSpec(const SpecTuple& tuple, uint64_t most_bytes) {
  const ScheduleSpec spec = SpecFromTuple(tuple);
  nb::gil_scoped_release release;
  return ValueOrThrow(Graph::Build(spec, most_bytes));
}

Graph GraphOfOpLists(const std::vector<OpListTuple>& tuples) {
  std::vector<OpList> op_lists;
  for (const OpListTuple& tuple : tuples) op_lists.push_back(OpListFromTuple(tuple));
  return ValueOrThrow(Graph::Build(static_cast<int32_t>(op_lists.size()),
                                   [&](int32_t rank) { return StatusOr<OpList>(op_lists[rank]); }));
}

template <typename T>
using Column = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Network MakeNetwork(std::vector<std::string> names, Column<uint8_t> forwards, Column<int32_t> from,
                    Column<int32_t> to, Column<double> bandwidth_Bps, Column<double> latency_ps) {
  const size_t links = from.size();
  if (forwards.size() != names.size() || to.size() != links || bandwidth_Bps.size() != links ||
      latency_ps.size() != links) {
    throw std::invalid_argument("the columns of a network differ in length");
  }
  Network network;
  network.node_names = std::move(names);
  network.forwards.assign(forwards.data(), forwards.data() + forwards.size());
  network.links.reserve(links);
  for (size_t i = 0; i < links; ++i) {
    OrThrow(
        sim::CheckTime("a link's latency is", latency_ps.data()[i]));  // before it is an integer
    network.links.push_back({from.data()[i], to.data()[i],
                             bandwidth_Bps.data()[i] / sim::kPicosecondsPerSecond,
                             static_cast<Time>(latency_ps.data()[i])});
  }
  OrThrow(sim::CheckNetwork(network));
  return network;
}

template <typename T>
nb::object Array(std::vector<T> values, size_t columns) {
  auto* kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  const size_t rows = kept->size() / columns;
  if (columns == 1) return nb::cast(nb::ndarray<nb::numpy, T>(kept->data(), {rows}, owner));
  return nb::cast(nb::ndarray<nb::numpy, T>(kept->data(), {rows, columns}, owner));
}

sim::Routing RoutingOrThrow(std::string_view name) {
  if (name == "ecmp") return sim::Routing::kEcmp;
  if (name == "split") return sim::Routing::kSplit;
  if (name == "spray") return sim::Routing::kSpray;
  throw std::invalid_argument("unknown routing '" + std::string(name) +
                              "'; there are ecmp, split and spray");
}

nb::dict RunSimulation(
    const Graph& graph, const Network& network, const std::vector<int64_t>& node_of,
    int64_t block_elements, int64_t element_bytes, Time overhead_ps, Time latency_ps,
    double reduce_ps_per_byte, double copy_ps_per_byte, std::string_view routing, int64_t split,
    uint64_t seed, int64_t in_flight, double efficiency, Time quantum_ps, double jitter,
    double unfairness, std::vector<double> slowdown, std::vector<Time> start_ps,
    const std::vector<std::tuple<Time, int64_t, double>>& changes,
    const std::vector<std::tuple<int64_t, int64_t, Time, std::optional<int64_t>, double, double>>&
        background,
    bool record) {
  std::vector<int32_t> nodes;
  for (int64_t node : node_of) nodes.push_back(NodeOrThrow(network, "the node of a rank", node));
  sim::Parameters p;
  p.overhead = overhead_ps;
  p.latency = latency_ps;
  p.reduce_ps_per_byte = reduce_ps_per_byte;
  p.copy_ps_per_byte = copy_ps_per_byte;
  p.routing = RoutingOrThrow(routing);
  p.split = Narrow("the number of parts of a message", split, 1, sim::kMostParts);
  p.seed = seed;
  p.in_flight = Narrow("the number of messages in flight", in_flight, 0);
  p.efficiency = efficiency;
  p.quantum = quantum_ps;
  p.jitter = jitter;
  p.unfairness = unfairness;
  p.slowdown = std::move(slowdown);
  p.start = std::move(start_ps);
  for (const auto& [time, link, bandwidth_Bps] : changes) {
    p.changes.push_back({time, Narrow("a change's link", link, 0, network.link_count() - 1),
                         bandwidth_Bps / sim::kPicosecondsPerSecond});
  }
  for (const auto& [source, destination, time, bytes, bandwidth_Bps, share] : background) {
    p.background.push_back({NodeOrThrow(network, "an end of background traffic", source),
                            NodeOrThrow(network, "an end of background traffic", destination), time,
                            bytes, bandwidth_Bps / sim::kPicosecondsPerSecond, share});
  }
  p.record = record;
  p.interrupted = [] {  // Control-C
    nb::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() != 0;
  };
  sim::Result result;
  {
    nb::gil_scoped_release release;
    StatusOr<sim::Result> outcome =
        sim::Simulate(graph, network, nodes, block_elements, element_bytes, p);
    if (outcome.ok()) {
      result = std::move(*outcome);
    } else {
      nb::gil_scoped_acquire acquire;
      if (PyErr_Occurred()) throw nb::python_error();
      if (outcome.status().code() == StatusCode::kInternal) {
        throw std::runtime_error(outcome.status().message());
      }
      throw std::invalid_argument(outcome.status().message());
    }
  }
  nb::dict all;
  all["time_ps"] = result.time;
  all["rank_time_ps"] = Array(std::move(result.rank_time), 1);
  all["link_bytes"] = Array(std::move(result.link_bytes), 1);
  std::vector<int64_t> rows;
  rows.reserve(result.messages.size() * 10);
  for (const sim::MessageRecord& m : result.messages) {
    for (int64_t value :
         {int64_t{m.step}, int64_t{m.channel}, int64_t{m.source}, int64_t{m.destination}, m.bytes,
          m.ready, m.sent, m.left, m.arrived, m.done}) {
      rows.push_back(value);
    }
  }
  all["messages"] = Array(std::move(rows), 10);
  all["message_count"] = result.message_count;
  all["event_count"] = result.event_count;
  return all;
}

nb::object ReachableFrom(const Network& network, int64_t start, bool backwards) {
  return Array(sim::Reachable(network, NodeOrThrow(network, "the start", start), backwards), 1);
}

// The route that the router would take, as (link, share of the flow): for tests and for showing
// paths.
std::vector<std::pair<int32_t, double>> RouteOf(const Network& network, std::string_view routing,
                                                uint64_t seed, int64_t source, int64_t destination,
                                                int64_t channel, int64_t part) {
  const int32_t from = NodeOrThrow(network, "the source", source);
  const int32_t to = NodeOrThrow(network, "the destination", destination);
  if (from == to) throw std::invalid_argument("a route leads from a node to another");
  sim::Router router(network, RoutingOrThrow(routing), seed);
  const auto route =
      ValueOrThrow(router.Find(from, to, Narrow("the channel", channel, 0, sim::kMostChannels - 1),
                               Narrow("the part", part, 0, sim::kMostParts - 1)));
  std::vector<std::pair<int32_t, double>> hops;
  for (const sim::Hop& hop : route->hops) hops.emplace_back(hop.link, hop.weight);
  return hops;
}

}  // namespace

void BindSim(nb::module_& m) {
  nb::class_<Graph>(m, "SimGraph", "A schedule packed for the simulator; free of sizes.")
      .def_prop_ro("world_size", &Graph::world_size)
      .def_prop_ro("ops", &Graph::op_count)
      .def_prop_ro("nbytes", &Graph::bytes);
  nb::class_<Network>(m, "SimNetwork", "Nodes and directed links.");
  m.def("sim_graph", &GraphOfSpec, "spec"_a, "most_bytes"_a,
        "A built-in schedule, packed, if that takes no more memory.");
  m.def("sim_graph_of_op_lists", &GraphOfOpLists, "op_lists"_a,
        "All ranks' op lists, as tuples, packed.");
  m.attr("SIM_MOST_TIME_PS") = sim::kMostTime;
  m.attr("SIM_MOST_BYTES") = sim::kMostBytes;
  m.attr("SIM_MOST_UNFAIRNESS") = sim::kMostUnfairness;
  // Arrays of other types would be converted, and large numbers wrapped.
  m.def("sim_network", &MakeNetwork, "names"_a, "forwards"_a.noconvert(), "source"_a.noconvert(),
        "destination"_a.noconvert(), "bandwidth_Bps"_a.noconvert(), "latency_ps"_a.noconvert(),
        "Nodes by name, then directed links, in columns.");
  m.def("sim_reachable", &ReachableFrom, "network"_a, "start"_a, "backwards"_a,
        "By node: whether a path leads to it from `start`, or back.");
  m.def("simulate", &RunSimulation, "graph"_a, "network"_a, "node_of"_a, "block_elements"_a,
        "element_bytes"_a, "overhead_ps"_a, "latency_ps"_a, "reduce_ps_per_byte"_a,
        "copy_ps_per_byte"_a, "routing"_a, "split"_a, "seed"_a, "in_flight"_a, "efficiency"_a,
        "quantum_ps"_a, "jitter"_a, "unfairness"_a, "slowdown"_a, "start_ps"_a, "changes"_a,
        "background"_a, "record"_a, "One simulation; see ffi/sim/simulator.h.");
  m.def("sim_route", &RouteOf, "network"_a, "routing"_a, "seed"_a, "source"_a, "destination"_a,
        "channel"_a, "part"_a, "The links of a message, as (link, share).");
}

}  // namespace jaxcoll
