"""Schedules in other projects' formats.

======== ===================================================== ===================
module   format                                                direction
======== ===================================================== ===================
msccl    XML algorithms of MSCCL and msccl-tools               import
mscclpp  JSON execution plans of MSCCL++                       export
goal     GOAL, the input of LogGOPSim                          export
======== ===================================================== ===================

The command is ``jaxcoll schedule``. Nothing here imports JAX.
"""
