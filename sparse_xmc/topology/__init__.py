"""Which connections a head has: when they are rewired, and how much of them."""

from sparse_xmc.topology.schedule import RewireSchedule

__all__ = ["RewireSchedule"]
