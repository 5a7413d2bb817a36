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
from potstill.experts.plan import PAIRS, ExpertPlan, Objective, epochs_of
from potstill.experts.pools import KIND, Pool, find_pool, pool_name, pools, remove_pool
from potstill.experts.source import Ahead, Draw, Fresh, NetworkSource, Trajectories, check_window
from potstill.experts.store import Trajectory, write_trajectory
from potstill.experts.targets import (
    TARGETS,
    read_moments,
    read_targets,
    targets_facts,
    targets_width,
    write_targets,
)
from potstill.experts.train import (
    ExpertSpec,
    expert_net,
    expert_tasks,
    train_expert,
)

__all__ = [
    "FILTERS",
    "KIND",
    "PAIRS",
    "TARGETS",
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
    "Objective",
    "PathSpec",
    "Paths",
    "Pool",
    "Starts",
    "Trajectories",
    "Trajectory",
    "Walker",
    "check_window",
    "epochs_of",
    "expert_net",
    "expert_tasks",
    "find_pool",
    "import_experts",
    "kept",
    "link_tasks",
    "pool_name",
    "pool_tasks",
    "pools",
    "read_moments",
    "read_rows",
    "read_targets",
    "remove_pool",
    "targets_facts",
    "targets_width",
    "train_expert",
    "write_targets",
    "write_trajectory",
]
