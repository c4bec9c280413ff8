"""Runs as jobs of a Slurm cluster, submitted through submitit: a job for each run, with its teacher's job as its dependency.

Runs that wait for the same job, or for none, are one job array. The folder of runs is in storage that the cluster's machines share; beside it,
`slurm/` has the jobs' logs, and the files through which they tell what becomes of their runs. Jobs outlive the command that has submitted them:
the same command finds them again by their name, and waits for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from submitit import SlurmExecutor, SlurmJob
from submitit.core.utils import FailedJobError

from vitlab.errors import UserError
from vitlab.paths import REPOSITORY
from vitlab.run.engines.engine import Event
from vitlab.run.engines.flags import Options
from vitlab.run.engines.slurm_job import STOP, EventFile, TrainRun, event_file
from vitlab.run.task import Task

WARNING = 90  # seconds before the time limit at which a job saves its run and is queued again; Slurm may give up to a minute more
LOOK = 5.0  # seconds between two looks at Slurm's queue,
LAST_LOOK = 1.0  # and once the runs are to stop
SILENCE = 120.0  # seconds without an answer, after which the user is told
ARRAY = 500  # runs in one job array, at most; Slurm's own limit is 1000 unless the cluster has another
ENDLESS = 1_000_000  # a run is queued again as often as it takes
USUAL = ("None", "Priority", "Resources", "Dependency", "BeginTime")  # reasons to wait that need no word


@dataclass
class Job:
    """A run's job. `begun` and `ended` are the run's, `reason` is why it waits, where that was told."""

    task: Task
    id: str
    told: EventFile
    begun: bool = False
    ended: bool = False  # finished, interrupted or failed; its process may go on until MLflow has everything
    reason: str = ""
    past: bool = False  # whether what is told next was told to an earlier command already


class Slurm:
    """The engine that has runs trained by Slurm; `root` is the folder in which the folder of runs is. Raises UserError where Slurm is missing."""

    def __init__(self, options: Options, root: Path) -> None:
        if options.gpus_per_run not in (None, 1):
            raise UserError("--gpus-per-run: Slurm gives a run a whole GPU: 1, or leave it out")
        if shutil.which("sbatch") is None:
            raise UserError("--engine slurm: there is no 'sbatch' here; run the command where the cluster takes jobs, on its login node")
        self.options, self.folder = options, root / "slurm"
        self.name = f"vitlab-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"
        self.left: list[Task] = []  # not submitted yet
        self.jobs: dict[Path, Job] = {}  # by the run's folder
        self.looked = 0.0
        self.answered = time.monotonic()  # when Slurm did last
        self.trouble = ""  # why it did not since then,
        self.told_of_silence = False  # and whether the user knows
        self.stopping = False
        partition = f"partition {options.partition}, " if options.partition else ""
        self.about = f"Slurm: jobs named {self.name}, {partition}each run with {self.cpus} CPU{'s' * (self.cpus > 1)} and up to {self.minutes} min at a time"

    @property
    def cpus(self) -> int:
        """Return how many CPUs, and threads, a run has."""
        return self.options.cpus_per_run or 1

    @property
    def minutes(self) -> int:
        """Return a job's time limit."""
        return self.options.time or 60

    def __enter__(self) -> Slurm:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop(signal.SIGTERM)  # there are some only where an exception has ended it
        while self.busy:
            self.events(LAST_LOOK)

    @property
    def busy(self) -> bool:
        """Return whether a run is in hand or still to begin."""
        return bool(self.left or self.jobs)

    def submit(self, task: Task) -> None:
        """Take a run in. All are submitted together at the next call of events(), so that no job depends on one that Slurm has forgotten."""
        self.left.append(task)

    def stop(self, number: int) -> None:
        """Cancel the jobs that wait, and let each that runs save its current step."""
        self.left.clear()
        self.stopping, self.looked = True, 0.0

    def events(self, seconds: float) -> list[Event]:
        """Submit what is left; return what has become of the runs."""
        if self.left:
            self._submit_left()
            return []
        time.sleep(seconds)
        queue, said = None, []
        if time.monotonic() - self.looked > (LAST_LOOK if self.stopping else LOOK):
            if self.stopping:
                self._cancel()
            queue, said = self._queue(), self._of_silence()
            self.looked = time.monotonic()
        return said + [event for job in list(self.jobs.values()) for event in self._of_job(job, queue)]

    # ------------------------------------------------------------------------------------------------------- submission

    def _submit_left(self) -> None:
        """Submit each run whose job is not in the queue already; those that wait for the same job, or for none, are one array."""
        before = self._of_before()
        kept: set[str] = set()  # jobs of before
        while self.left:
            arrays: dict[str | None, list[Task]] = {}
            unready = {task.run.folder for task in self.left}
            for task in [task for task in self.left if task.run.teacher is None or task.run.teacher.folder not in unready]:
                self.left.remove(task)
                teacher = self.jobs.get(task.run.teacher.folder) if task.run.teacher else None
                after = teacher.id if teacher and not teacher.ended else None
                if (id := before.get(task.run.folder)) and not task.force and (after is None or after in kept):
                    kept.add(id)
                    self.jobs[task.run.folder] = Job(task, id, event_file(self.folder, id), past=True)
                else:
                    if id:  # it waits for a job that will not finish, or has not heard of --force
                        slurm("scancel", "--quiet", id)
                    arrays.setdefault(after, []).append(task)
            for after, tasks in arrays.items():
                for i in range(0, len(tasks), ARRAY):
                    self._submit_array(tasks[i : i + ARRAY], after)

    def _submit_array(self, tasks: list[Task], after: str | None) -> None:
        executor = SlurmExecutor(self.folder, max_num_timeout=ENDLESS)
        executor.update_parameters(
            job_name=self.name,
            time=self.minutes,
            signal_delay_s=WARNING,
            cpus_per_task=self.cpus,
            srun_args=[f"--cpus-per-task={self.cpus}"],  # since Slurm 22.05 srun does not take it from sbatch
            stderr_to_stdout=True,
            setup=[f"export PYTHONPATH={shlex.quote(str(REPOSITORY))}${{PYTHONPATH:+:$PYTHONPATH}}"],
            additional_parameters={"requeue": True, "kill-on-invalid-dep": "yes"},
            **({"partition": self.options.partition} if self.options.partition else {}),
            **({"gpus_per_node": 1} if self.options.gpus_per_run else {}),
            **({"dependency": f"afterok:{after}"} if after else {}),
        )
        work = [TrainRun(str(task.run.folder), pickle.dumps(task), self.cpus) for task in tasks]
        with undisturbed():
            try:
                with executor.batch():
                    jobs = [executor.submit(each) for each in work]
            except FailedJobError as e:
                raise UserError(f"Slurm does not take the job: {e}") from None
        for task, job in zip(tasks, jobs, strict=True):
            told = event_file(self.folder, job.job_id)
            # Empty now: a cluster made anew may have had a job of this id, and NFS remembers for a while what was not there.
            told.path.write_bytes(b"")
            self.jobs[task.run.folder] = Job(task, job.job_id, told)

    def _of_before(self) -> dict[Path, str]:
        """Return the jobs that an earlier command has submitted, by their runs' folders, if their runs have not ended. Raises UserError."""
        found, queue = {}, self._queue()
        if queue is None:  # whatever was submitted now might be in it already
            raise UserError(f"Slurm does not answer ({self.trouble}); start the same command again once 'squeue' does")
        for id in queue:
            with contextlib.suppress(Exception):  # of another version of vitlab, or killed while it was submitted
                folder = SlurmJob(self.folder, id).submission().function.folder
                if not {"finished", "interrupted", "failed"} & {kind for kind, *_ in event_file(self.folder, id).read()}:
                    found[Path(folder)] = id
        return found

    # ---------------------------------------------------------------------------------------------------- what has become

    def _queue(self) -> dict[str, tuple[str, str]] | None:
        """Return state and reason of each job in Slurm's queue, by its id; None where Slurm does not answer."""
        done = slurm("squeue", "--me", "--noheader", "--array", f"--name={self.name}", "--format=%i|%T|%r")
        if done.returncode:
            self.trouble = (done.stderr.strip().splitlines() or [f"squeue ended with exit code {done.returncode}"])[-1]
            return None
        self.answered, self.trouble, self.told_of_silence = time.monotonic(), "", False
        rows = (line.split("|", 2) for line in done.stdout.splitlines())
        return {id: (state, reason) for id, state, reason in rows}

    def _of_silence(self) -> list[Event]:
        """Tell once that Slurm has not answered for a while. Its jobs do not need it in order to go on."""
        if self.told_of_silence or not self.trouble or time.monotonic() - self.answered < SILENCE:
            return []
        self.told_of_silence = True
        text = f"Slurm has not answered for {SILENCE:g} s ({self.trouble}); jobs that run go on, and this command waits for them"
        return [Event(job.task, "said", (text,)) for job in list(self.jobs.values())[:1]]

    def _of_job(self, job: Job, queue: dict[str, tuple[str, str]] | None) -> Iterator[Event]:
        """Give what has become of a job's run; `queue` is as it was before this call."""
        folder = job.task.run.folder
        if self.jobs.get(folder) is not job:  # its teacher has failed
            return
        past, job.past = job.past, False
        for kind, *values in job.told.read():
            job.begun = job.begun or kind == "bar"
            if past and kind in ("said", "step", "epoch"):
                continue
            if kind == "ended":
                del self.jobs[folder]
                return
            if kind in ("finished", "interrupted", "failed"):
                job.ended = True
                if kind != "finished":
                    self._drop_students(job)
                if kind == "interrupted" and not self.stopping:
                    kind, values = "died", ["another command has stopped it. The same command goes on from there"]
            yield Event(job.task, kind, tuple(values))
        if queue is None:
            return
        if job.id not in queue:
            del self.jobs[folder]
            if not job.ended:
                yield from self._of_lost(job)
            return
        state, reason = queue[job.id]
        if state == "PENDING" and reason not in (*USUAL, job.reason):
            job.reason = reason
            yield Event(job.task, "said", (f"waits in Slurm's queue: {reason}",))

    def _of_lost(self, job: Job) -> Iterator[Event]:
        """Give what has become of a run whose job is no longer there and has told nothing."""
        asked = slurm("squeue", "--noheader", "--states=all", f"--jobs={job.id}", "--format=%T|%r").stdout.strip()
        state, _, reason = asked.partition("|")
        teacher = job.task.run.teacher
        if not self.stopping and teacher is not None and teacher.finished and reason == "DependencyNeverSatisfied":
            self.left.append(job.task)  # its teacher's job has failed, but only after all was done
            return
        self._drop_students(job)
        if not self.stopping:
            log = SlurmJob(self.folder, job.id).paths.stdout
            end = f"its Slurm job {job.id} ended as {state or 'GONE'}; what it printed is in {log}"
            yield Event(job.task, "died", (f"{end}. The same command goes on from the last checkpoint",))
        elif job.begun:
            yield Event(job.task, "interrupted")

    def _drop_students(self, teacher: Job) -> None:
        for job in list(self.jobs.values()):
            if job.task.run.teacher is not None and job.task.run.teacher.folder == teacher.task.run.folder:
                del self.jobs[job.task.run.folder]
                slurm("scancel", "--quiet", job.id)  # Slurm would do it too, but not at once
                self._drop_students(job)

    def _cancel(self) -> None:
        """Cancel what waits; have what runs save and end. Told again and again: a job that has just begun heeds no signals yet."""
        ids = [job.id for job in self.jobs.values() if not job.ended]
        if ids:
            slurm("scancel", "--quiet", "--state=PENDING", *ids)
            slurm("scancel", "--quiet", f"--signal={STOP}", *ids)


def slurm(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm's, which the terminal's Ctrl-C does not reach."""
    return subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the terminal's Ctrl-C waiting, as a context manager, for this process and those that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
