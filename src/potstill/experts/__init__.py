"""Expert trajectories: their store, their training, and sources of networks."""

from potstill.experts.source import Draw, NetworkSource, Trajectories, check_window
from potstill.experts.store import Trajectory, write_trajectory
from potstill.experts.train import ExpertPlan, ExpertSpec, expert_tasks, train_expert

__all__ = [
    "Draw",
    "ExpertPlan",
    "ExpertSpec",
    "NetworkSource",
    "Trajectories",
    "Trajectory",
    "check_window",
    "expert_tasks",
    "train_expert",
    "write_trajectory",
]
