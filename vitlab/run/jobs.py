"""In which order runs begin where several train side by side, how many that should be, and when they end. Loads no torch."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

from vitlab.run.plan import Run

# What a step costs whatever the threads, in FLOPs of one thread; and a run besides its steps: starting, the test split, pictures, MLflow.
# From two cores with bf16: two steps of `quick` (2 GFLOP) side by side, one thread each, did 1.32 times the work of one with two threads, two
# of 51 GFLOP 0.99 times; a run took about 8 seconds besides its steps, at 50 GFLOP/s a thread.
STEP_FLOPS = 1e9
RUN_FLOPS = 8 * 50e9


def work(run: Run, threads: int) -> float:
    """Return what the run costs with so many threads, in FLOPs of one thread."""
    return run.train_flops / threads + run.steps * STEP_FLOPS + RUN_FLOPS


def by_path(runs: list[Run]) -> list[Run]:
    """Return `runs` with those first that most work waits for: a run's own and that of the longest line of students after it."""
    path: dict[object, float] = {}
    for run in reversed(runs):  # students come after their teachers
        students = [path[other.folder] for other in runs if other.teacher is not None and other.teacher.folder == run.folder]
        path[run.folder] = work(run, 1) + max(students, default=0.0)
    return sorted(runs, key=lambda run: -path[run.folder])


def ready(left: list[Run], running: list[Run]) -> Run | None:
    """Return the first of `left` whose teacher neither waits nor trains, or None."""
    unfinished = {run.folder for run in (*left, *running)}
    return next((run for run in left if run.teacher is None or run.teacher.folder not in unfinished), None)


class Planned(NamedTuple):
    """A run of a schedule, and when it begins and ends."""

    run: Run
    begin: float
    end: float


def schedule(runs: list[Run], slots: int, cost: Callable[[Run], float]) -> list[Planned]:
    """Return when each of `runs` begins and ends, up to `slots` at a time, each as long as `cost` says and in its unit; in their order of beginning."""
    left, running, now, planned = by_path(runs), [], 0.0, []
    while left or running:
        while len(running) < slots and (run := ready(left, [other for _, _, other in running])):
            left.remove(run)
            planned.append(Planned(run, now, now + cost(run)))
            heapq.heappush(running, (planned[-1].end, len(left), run))
        now, _, _ = heapq.heappop(running)
    return planned


def critical_path(runs: list[Run], cost: Callable[[Run], float]) -> list[Run]:
    """Return the line of `runs`, each the teacher of the next, that takes longest; cost as for `schedule`. No number of slots shortens it."""
    paths: dict[object, list[Run]] = {}
    for run in runs:  # students come after their teachers
        paths[run.folder] = [*(paths.get(run.teacher.folder, []) if run.teacher else []), run]
    return max(paths.values(), key=lambda path: sum(map(cost, path)), default=[])


def makespan(runs: list[Run], jobs: int, threads: int) -> float:
    """Return when the last of `runs` is finished, in FLOPs of one thread: `jobs` at a time, each with its share of `threads`."""
    share = max(1, threads // jobs)
    return max((planned.end for planned in schedule(runs, jobs, lambda run: work(run, share))), default=0.0)


def best(runs: list[Run], threads: int) -> int:
    """Return how many of `runs` to train side by side so that the last is finished soonest: the fewest within 2 % of that."""
    ends = [makespan(runs, jobs, threads) for jobs in range(1, max(1, min(threads, len(runs))) + 1)]
    return next(jobs for jobs, end in enumerate(ends, 1) if end <= 1.02 * min(ends))
