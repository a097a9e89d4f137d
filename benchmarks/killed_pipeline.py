"""The small pipeline that the benchmark of faults kills, in a folder of its own with its own caches."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MARK = "DISTILLERY_FAULTS"
"""Environment variable by which all processes of a run are found, with the folder."""
VARIANTS = ("fp32", "int8-qat", "pruned-50")
SETTINGS = (
    "data=folder",
    "data.path=images",
    "data.val=24",
    "data.test=24",
    "student.size=32",
    "teacher.size=32",
    "teacher.head.epochs=1",
    "teacher.head.batch_size=16",
    "teacher.full.phases=[]",
    "teacher.full.epochs=3",
    "teacher.full.batch_size=16",
    "distill.phases=[]",
    "distill.epochs=8",
    "distill.batch_size=16",
    "prune.shape=uniform",
    "prune.epochs=2",
    "prune.batch_size=16",
    "quantize.float_layers=[]",
    "quantize.epochs=2",
    "quantize.batch_size=16",
    "quantize.calibration=16",
    "evaluation.parity=8",
    "benchmark.sessions=2",
    "benchmark.seconds=0.2",
    "benchmark.processes=2",
    "benchmark.threads=[1]",
    "benchmark.batch_sizes=[1]",
    "probe.corrupted=2",
    "probe.attacked=2",
    "probe.steps=2",
    "probe.out_of_distribution_images=4",
    "explain.images=2",
    "explain.flips=2",
    "sensitivity.images=4",
    "sensitivity.size=32",
    "sensitivity.ratios=[0.5]",
    "gate.distill.max_drop=1.0",
    "gate.prune.max_drop=1.0",
    "gate.quantize.max_drop=1.0",
    "compute.workers=1",
)
COMPARED = (
    "data",
    "teacher",
    "labels",
    "models",
    "onnx",
    "metrics",
    "comparison.json",
    "robustness.json",
    "sensitivity.json",
    "explanations",
)
"""What must come out equal; what is left out contains seconds."""
STATE = ("artifacts", ".dvc/cache", ".dvc/tmp", "site", "dvc.lock", "mlflow.db", "mlruns", "mlartifacts")
ORPHAN_SECONDS, ORPHAN_SHARE = 40.0, 0.4
"""Seconds after which no process of a killed run may be left, and the same as a share of the time of the
undisturbed run, which is longer on a busy machine."""
RUN_SECONDS, RUN_SHARE = 600.0, 5.0
"""Seconds after which a run is given up, and the same as a share."""


@dataclass
class Kill:
    """A kill: planned, and what came of it."""

    run: int
    stage: str
    """The stage that it was planned in."""
    kind: str
    """In the ``stage``, in the writing of dvc.``lock``, or in the making of MLflow's ``database``."""
    victim: str
    """``dvc``, ``stage``, ``group`` or ``all``."""
    moment: float
    """Share of the stage's seconds, or seconds after the writing began."""
    hit: str = ""
    """The stage that ran when it struck; empty if it did not."""
    finished: bool = False
    equal: bool = False
    problems: list[str] = field(default_factory=list)


class Pipeline:
    """A small pipeline in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))
        }
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.environment |= {
            MARK: str(folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "DISTILLERY_CACHE": str(folder / "machine"),
        }
        self.leftovers: list[tuple[float, list[psutil.Process]]] = []
        """Processes that outlived a kill, with the time at which they must be gone."""
        self.patience = ORPHAN_SECONDS
        """Seconds that such processes are given."""
        for process in self._processes():  # of a benchmark that was itself killed
            process.kill()

    def reference(self) -> dict[str, dict]:
        """Contents and seconds of each stage of an undisturbed run, which takes place unless it did."""
        code = f"{_digest(sorted(_code()))} {SETTINGS} {VARIANTS}"
        file = self.folder / "reference.json"
        if file.exists() and (stored := json.loads(file.read_text()))["code"] == code:
            return stored
        shutil.rmtree(self.folder, ignore_errors=True)
        self._set_up()
        began = time.monotonic()
        process, log = self._start()
        starts: list[tuple[str, float]] = []
        while process.poll() is None:
            starts += [(stage, time.monotonic()) for stage in log.stages()]
            time.sleep(0.005)
        if process.returncode:
            raise SystemExit(f"the undisturbed run failed:\n{log.tail()}")
        starts += [(stage, time.monotonic()) for stage in log.stages()] + [("", time.monotonic())]
        seconds = {stage: starts[i + 1][1] - at for i, (stage, at) in enumerate(starts[:-1])}
        print(f"the undisturbed run: {len(seconds)} stages in {time.monotonic() - began:.0f} s", flush=True)
        result = {"code": code, "seconds": seconds, "contents": self._contents()}
        file.write_text(json.dumps(result, indent=1))
        return result

    def disturbed(self, run: int, kills: list[Kill], reference: dict[str, dict]) -> list[Kill]:
        """Run from the beginning to the end, killed on the way; returns the kills that struck."""
        for name in STATE:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        waiting, struck, problems = list(kills), [], []
        for attempt in range(2 * len(kills) + 2):
            if attempt:
                check = subprocess.run(
                    [sys.executable, "-m", "pipeline.stages.check"],
                    cwd=self.folder,
                    env=self.environment,
                    capture_output=True,
                    text=True,
                )
                if check.returncode:
                    problems.append(f"check ended with {check.returncode}: {check.stderr[-1000:]}")
                    break
                if check.stderr:
                    print(f"  {check.stderr.strip()}", flush=True)
            kill, code, log = self._until_killed(waiting, reference["seconds"])
            if kill is None:
                if code:
                    problems.append(f"dvc repro ended with {code}: {log.tail()}")
                break
            struck.append(kill)
            print(
                f"  {time.strftime('%H:%M:%S')} run {run}, kill {len(struck)} of {len(kills)}: "
                f"{kill.victim} in {kill.hit} ({kill.kind})",
                flush=True,
            )
        finished = not problems
        contents = self._contents() if finished else {}
        differing = sorted(
            name
            for name in contents.keys() | reference["contents"].keys()
            if contents.get(name) != reference["contents"].get(name)
        )
        if finished and differing:
            problems.append(f"{len(differing)} files differ: {', '.join(differing[:5])}")
        problems += self._orphans(wait=True)
        if problems:
            shutil.rmtree(self.folder / f"failed-{run}", ignore_errors=True)
            (self.folder / f"failed-{run}").mkdir()
            for name in ("dvc.lock", "log.txt", ".dvc/tmp/rwlock", ".dvc/tmp/dvc.lock.copy", "mlflow.db"):
                if (self.folder / name).exists():
                    shutil.copy(self.folder / name, self.folder / f"failed-{run}")
            print("\n".join(problems), flush=True)
        for kill in struck:
            kill.finished, kill.equal = finished, finished and not differing
            kill.problems = problems
        return struck

    def _until_killed(
        self, waiting: list[Kill], seconds: dict[str, float]
    ) -> "tuple[Kill | None, int | None, Log]":
        """Run `dvc repro` until the next kill strikes or it ends by itself. Kills that come too late go."""
        process, log = self._start()
        whole = sum(seconds.values())
        self.patience = max(ORPHAN_SECONDS, ORPHAN_SHARE * whole)
        order, current, since, strikes = list(seconds), "", 0.0, float("inf")
        written: tuple[int, int] | None = None
        began = time.monotonic()
        while process.poll() is None:
            now = time.monotonic()
            if now - began > max(RUN_SECONDS, RUN_SHARE * whole):
                self._kill(process, "all")
                return None, 124, log
            for stage in log.stages():
                current, since, strikes, written = stage, now, float("inf"), self._lock_state()
                while waiting and order.index(waiting[0].stage) < order.index(stage):
                    waiting.pop(0)
            kill = waiting[0] if waiting else None
            if kill is not None and kill.stage == current:
                if strikes == float("inf") and self._due(kill, written):
                    delay = kill.moment * (seconds[current] if kill.kind == "stage" else 1)
                    strikes = (since if kill.kind == "stage" else now) + delay
                if now >= strikes:
                    waiting.pop(0)
                    kill.hit = current
                    self._kill(process, kill.victim)
                    return kill, None, log
            time.sleep(0.001)
        if waiting and waiting[0].stage == current and process.returncode == 0:
            waiting.pop(0)
        return None, process.returncode, log

    def _due(self, kill: Kill, written: tuple[int, int] | None) -> bool:
        """Whether that after which a kill waits has begun."""
        if kill.kind == "lock":
            return self._lock_state() != written
        return kill.kind == "stage" or any(self.folder.glob("*mlflow.db*"))

    def _lock_state(self) -> tuple[int, int] | None:
        try:
            state = (self.folder / "dvc.lock").stat()
        except FileNotFoundError:
            return None
        return state.st_mtime_ns, state.st_size

    def _kill(self, process: subprocess.Popen[bytes], victim: str) -> None:
        """Kill DVC, the stage that it runs, their group or all of them; DVC ends when its stage is killed."""
        own = self._processes()
        if victim == "dvc":
            process.kill()
        elif victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            for one in own:
                if victim == "all" or _is_stage(one):
                    one.kill()
            if victim == "stage" and not any(_is_stage(one) for one in own):
                process.kill()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.leftovers.append((time.monotonic() + self.patience, own))

    def _orphans(self, wait: bool) -> list[str]:
        """Lines about processes that outlived a kill for too long."""
        lines = []
        for deadline, processes in self.leftovers:
            while wait and time.monotonic() < deadline and any(_alive(one) for one in processes):
                time.sleep(0.2)
            left = [one for one in processes if _alive(one)]
            lines += [f"process {one.pid} was left: {' '.join(one.cmdline())}" for one in left]
        self.leftovers = []
        return lines

    def _processes(self) -> list[psutil.Process]:
        """All processes of this folder's runs."""
        own = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder) and process.pid != os.getpid():
                    own.append(process)
            except psutil.Error:
                continue
        return own

    def _start(self) -> "tuple[subprocess.Popen[bytes], Log]":
        file = self.folder / "log.txt"
        with file.open("wb") as output:
            process = subprocess.Popen(
                [str(Path(sys.executable).parent / "dvc"), "repro"],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return process, Log(file)

    def _set_up(self) -> None:
        """Copy the code, make the images and compose the parameters."""
        from dvc.utils.hydra import compose_and_dump

        for name in _code():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, self.folder / name)
        (self.folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
        _draw(self.folder / "images")
        file = self.folder / "params.yaml"
        compose_and_dump(str(file), str(self.folder / "configs"), None, "config", "", list(SETTINGS))
        values = yaml.safe_load(file.read_text())
        values["variants"] = {name: values["variants"][name] for name in VARIANTS}
        file.write_text(yaml.safe_dump(values, sort_keys=False))

    def _contents(self) -> dict[str, str]:
        """Path to SHA-256 of everything that must come out equal."""
        artifacts = self.folder / "artifacts"
        found = [file for name in COMPARED for file in ((artifacts / name), *(artifacts / name).rglob("*"))]
        return {str(file.relative_to(artifacts)): _digest([file]) for file in sorted(found) if file.is_file()}


class Log:
    """The output of a `dvc repro`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._read = 0

    def stages(self) -> Iterator[str]:
        """Stages that have begun since the last call."""
        with self.file.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._read += len(complete)
        for line in complete.decode(errors="replace").splitlines():
            if line.startswith("Running stage '"):
                yield line.split("'")[1]

    def tail(self) -> str:
        """The last lines."""
        return self.file.read_text(errors="replace")[-1500:]


def _is_stage(process: psutil.Process) -> bool:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "-m pipeline.stages." in command and "follow" not in command


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _code() -> list[str]:
    """Files of the checkout that a run needs."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wanted = (".dvc", "configs", "dvc.yaml", "pipeline", "requirements.lock", "students", "teachers")
    return [
        name for name in listed.stdout.splitlines() if name.startswith(wanted) and (ROOT / name).is_file()
    ]


def _digest(files: Sequence[Path | str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update((ROOT / file).read_bytes())
    return digest.hexdigest()


def _draw(folder: Path) -> None:
    """Write 3 classes of 40 JPEGs; the class is the colour of a disc."""
    source = np.random.default_rng(0)
    ys, xs = np.mgrid[:40, :40]
    for name, colour in {"blue": (40, 60, 210), "green": (50, 200, 60), "red": (210, 40, 50)}.items():
        (folder / name).mkdir(parents=True)
        for number in range(40):
            centre, radius = source.uniform(12, 28, 2), source.uniform(8, 16)
            disc = (ys - centre[0]) ** 2 + (xs - centre[1]) ** 2 < radius**2
            pixels = np.where(disc[..., None], colour, source.uniform(60, 190, 3))
            pixels = np.clip(pixels + source.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.jpg", quality=95)
