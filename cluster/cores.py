"""How many cores this process may use: its affinity, bounded by the quota of its container."""

from __future__ import annotations

import os
from pathlib import Path

UNLIMITED = 1e9


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole cores, at least 1. A container with a quota of 2 cores on a machine of 64 still sees 64 in its affinity."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affine, int(_quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """Cores that the control group grants, UNLIMITED where it sets none. Reads both versions of cgroups."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return UNLIMITED if quota == "max" else int(quota) / int(period)
    except FileNotFoundError:
        pass
    try:
        granted_us = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
    except FileNotFoundError:
        return UNLIMITED
    return UNLIMITED if granted_us < 0 else granted_us / period_us
