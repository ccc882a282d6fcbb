"""Schedules in other projects' formats; `jaxcoll.schedule.interop` says which."""

from jaxcoll.schedule.interop import goal, msccl, mscclpp

__all__ = ["goal", "msccl", "mscclpp"]
