"""Expert trajectories: their store, their training, and sources of networks."""

from potstill.experts.imports import Import, ImportedExpert, import_experts
from potstill.experts.kept import kept, read_rows
from potstill.experts.links import (
    FILTERS,
    After,
    Begin,
    Conditioned,
    Continued,
    Link,
    link_tasks,
)
from potstill.experts.network_pool import NetworkPool, Paths, PathSpec, Starts, pool_tasks
from potstill.experts.paths import NetworkPath, Walker
from potstill.experts.pools import KIND, Pool, find_pool, pool_name, pools, remove_pool
from potstill.experts.source import Ahead, Draw, Fresh, NetworkSource, Trajectories, check_window
from potstill.experts.store import Trajectory, write_trajectory
from potstill.experts.train import (
    ExpertPlan,
    ExpertSpec,
    epochs_of,
    expert_tasks,
    train_expert,
)

__all__ = [
    "FILTERS",
    "KIND",
    "After",
    "Ahead",
    "Begin",
    "Conditioned",
    "Continued",
    "Draw",
    "ExpertPlan",
    "ExpertSpec",
    "Fresh",
    "Import",
    "ImportedExpert",
    "Link",
    "NetworkPath",
    "NetworkPool",
    "NetworkSource",
    "PathSpec",
    "Paths",
    "Pool",
    "Starts",
    "Trajectories",
    "Trajectory",
    "Walker",
    "check_window",
    "epochs_of",
    "expert_tasks",
    "find_pool",
    "import_experts",
    "kept",
    "link_tasks",
    "pool_name",
    "pool_tasks",
    "pools",
    "read_rows",
    "remove_pool",
    "train_expert",
    "write_trajectory",
]
