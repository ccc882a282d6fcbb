// Every algorithm: the layout it needs, and the ops of one rank on one channel's share of the
// chunks. The table in schedule.cc gives them their names.
//
// They are called for two ranks or more; alone, a rank copies.
#pragma once

#include "schedule/program_builder.h"

namespace jaxcoll {

// direct.cc
Layout DirectAllReduceLayout(const ScheduleSpec& spec);
void DirectAllReduce(ProgramBuilder& b);
Layout Direct2AllReduceLayout(const ScheduleSpec& spec);
void Direct2AllReduce(ProgramBuilder& b);
Layout DirectReduceScatterLayout(const ScheduleSpec& spec);
void DirectReduceScatter(ProgramBuilder& b);
Layout DirectReduceLayout(const ScheduleSpec& spec);
void DirectReduce(ProgramBuilder& b);
void DirectAllGather(ProgramBuilder& b);
void DirectAllToAll(ProgramBuilder& b);
void DirectBroadcast(ProgramBuilder& b);
void DirectPermute(ProgramBuilder& b);

// ring.cc
Layout RingAllReduceLayout(const ScheduleSpec& spec);
void RingAllReduce(ProgramBuilder& b);
Layout RingReduceScatterLayout(const ScheduleSpec& spec);
void RingReduceScatter(ProgramBuilder& b);
void RingAllGather(ProgramBuilder& b);

// recursive_doubling.cc
Layout RecursiveDoublingAllReduceLayout(const ScheduleSpec& spec);
void RecursiveDoublingAllReduce(ProgramBuilder& b);
void RecursiveDoublingAllGather(ProgramBuilder& b);

// recursive_halving.cc
Layout HalvingDoublingAllReduceLayout(const ScheduleSpec& spec);
void HalvingDoublingAllReduce(ProgramBuilder& b);
Layout RecursiveHalvingReduceScatterLayout(const ScheduleSpec& spec);
void RecursiveHalvingReduceScatter(ProgramBuilder& b);

// bruck.cc
void BruckAllGather(ProgramBuilder& b);
Layout BruckAllToAllLayout(const ScheduleSpec& spec);
void BruckAllToAll(ProgramBuilder& b);

// binomial.cc
void BinomialBroadcast(ProgramBuilder& b);
Layout BinomialReduceLayout(const ScheduleSpec& spec);
void BinomialReduce(ProgramBuilder& b);

// double_tree.cc
Layout DoubleTreeAllReduceLayout(const ScheduleSpec& spec);
void DoubleTreeAllReduce(ProgramBuilder& b);

// hierarchical.cc
Layout HierarchicalAllReduceLayout(const ScheduleSpec& spec);
void HierarchicalAllReduce(ProgramBuilder& b);

}  // namespace jaxcoll
