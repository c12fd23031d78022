"""Workers on several machines: what they compute, and what happens if one is lost.

`results` hands items of work to the workers of a pool, `ray_pool` makes pools of a Ray
cluster.
"""

from edgecs.fleet.spread import Failed, Finished, Item, Lost, Pool, Refused, results

__all__ = ["Failed", "Finished", "Item", "Lost", "Pool", "Refused", "results"]
