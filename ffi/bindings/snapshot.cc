#include "call/snapshot.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "comm/reactor.h"

namespace nb = nanobind;

namespace jaxcoll {
namespace {

using Clock = FlightRecorder::Clock;

double SecondsSince(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

// An identity that is equal on every process. JSON's numbers need not hold 64 bits.
std::string HexText(uint64_t number) {
  char text[20];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(number));
  return text;
}

nb::dict DictOf(const PendingCall& call) {
  nb::dict all, parts;
  for (const CallFacts::Part& part : call.facts.parts) parts[part.name.c_str()] = part.value;
  all["communicator"] = HexText(call.communicator);
  all["key"] = HexText(call.key);
  all["number"] = call.number;
  all["description"] = call.description;
  all["parts"] = parts;
  all["program"] = call.facts.program;
  all["bytes"] = call.facts.bytes;
  all["devices"] = call.device_ids;
  all["processes"] = call.process_of_rank;
  all["waits_for"] = call.waits_for;
  all["since_s"] = call.since_s;
  all["moved_s"] = call.moved_s ? nb::cast(*call.moved_s) : nb::none();
  all["mismatch"] = call.mismatch;
  return all;
}

nb::dict DictOf(const FlightRecorder::Record& record);
nb::dict DictOf(const FailedCalls& failed);
nb::dict DictOf(const PeerState& peer);
nb::dict DictOf(const HalfMadeCall& call);

template <typename T>
nb::list ListOf(const std::vector<T>& items) {
  nb::list all;
  for (const T& item : items) all.append(DictOf(item));
  return all;
}

nb::dict DictOf(const FlightRecorder::Record& record) {
  nb::dict all;
  all["description"] = *record.description;
  all["number"] = record.number ? nb::cast(*record.number) : nb::none();
  all["ended_s"] = SecondsSince(record.ended);
  all["took_s"] = std::chrono::duration<double>(record.ended - record.begun).count();
  all["error"] = record.status->ok() ? std::string() : record.status->message();
  return all;
}

nb::dict DictOf(const FailedCalls& failed) {
  nb::dict all;
  all["communicator"] = HexText(failed.communicator);
  all["cause"] = failed.cause;
  all["failed_s"] = SecondsSince(failed.at);
  all["pending"] = ListOf(failed.calls);
  return all;
}

nb::dict DictOf(const PeerState& peer) {
  nb::dict all;
  all["process"] = peer.process;
  all["state"] = peer.state;
  all["transport"] = peer.transport;
  all["description"] = peer.description;
  all["silent_s"] = peer.silent_s;
  all["told"] = peer.told;
  all["told_s"] = peer.told_s;
  all["queued"] = peer.queued;
  return all;
}

nb::dict DictOf(const HalfMadeCall& call) {
  nb::dict all;
  all["description"] = call.description;
  all["program"] = call.program;
  all["since_s"] = call.since_s;
  all["arrived"] = call.arrived;
  all["missing"] = call.missing;
  return all;
}

nb::dict DictOf(const ReactorSnapshot& snapshot) {
  nb::dict all, next;
  for (const auto& [key, number] : snapshot.next_numbers) next[HexText(key).c_str()] = number;
  all["process"] = snapshot.process;
  all["ended"] = snapshot.ended;
  all["pending"] = ListOf(snapshot.pending);
  all["next_numbers"] = next;
  all["last"] = ListOf(snapshot.last);
  all["failed"] = ListOf(snapshot.failed);
  all["peers"] = ListOf(snapshot.peers);
  return all;
}

}  // namespace

// The reactor's mutex is never taken with the interpreter's lock held: see comm.cc.
void BindSnapshot(nb::module_& m) {
  m.def(
      "comm_snapshot",
      [] {
        Reactor* const reactor = Reactor::Get();
        if (reactor == nullptr) return nb::object(nb::none());
        ReactorSnapshot snapshot;
        {
          nb::gil_scoped_release release;
          snapshot = reactor->TakeSnapshot();
        }
        return nb::object(DictOf(snapshot));
      },
      "This process's calls with others, as facts; None before comm_start.");
  m.def(
      "engine_snapshot",
      [] {
        EngineSnapshot snapshot;
        {
          nb::gil_scoped_release release;
          snapshot = TakeEngineSnapshot();
        }
        nb::dict all;
        all["ended"] = snapshot.ended;
        all["pending"] = ListOf(snapshot.pending);
        all["last"] = ListOf(snapshot.last);
        return all;
      },
      "The calls within this process, as facts.");
  m.def(
      "comm_lines",
      [](const std::string& program) {
        Reactor* const reactor = Reactor::Get();
        return reactor == nullptr ? std::vector<std::string>() : reactor->LinesOf(program);
      },
      nb::call_guard<nb::gil_scoped_release>(), nb::arg("program"),
      "The lines that comm_add_listing has brought for the program of this fingerprint.");
  m.def(
      "comm_set_watcher",
      [](int fd) {
        if (Reactor* const reactor = Reactor::Get()) reactor->SetWatcher(fd);
      },
      nb::arg("fd"),
      "From now on this eventfd is written to when calls have failed, and when a peer that waits\n"
      "asks what this process is doing: comm_set_place should follow.");
  m.def(
      "comm_set_place",
      [](std::string place) {
        if (Reactor* const reactor = Reactor::Get()) reactor->SetPlace(std::move(place));
      },
      nb::call_guard<nb::gil_scoped_release>(), nb::arg("place"),
      "Tells the peers that have asked where this process is, e.g. \"it is in Python at\n"
      "train.py:31\".");
}

}  // namespace jaxcoll
