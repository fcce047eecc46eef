"""Runs every arm of a study from every seed: `python experiments/study.py experiments/learning_rate`.

A study is a folder with a study.yaml: `arms`, each a name with overrides of train.py; `common`, overrides of all; and
`seeds`. Every run is a process of its own, by default one thread each and as many at once as there are cores. When a
run is done its evaluations go to results.csv, a row each. What stands there is not run again, a run that was stopped
goes on from its last checkpoint, and `--merge FILE` brings in runs that another checkout made. `--again` runs what
stands there once more and tells where a number differs, as some may on another kind of processor.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path
from statistics import mean

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rhythm.cli import command_line
from rhythm.evaluation.studies import EVALUATED, FIELDS, OF_THE_MACHINE, TRAINED, Row, Run, Study, run_of

ROOT = Path(__file__).parents[1]


def command_of(study: Study, arm: str, seed: int, output_dir: Path) -> list[str]:
    resume = ["ckpt_path=last"] if (output_dir / "checkpoints" / "last.ckpt").exists() else []
    own = [f"seed={seed}", f"output_dir={output_dir}", *resume]
    return [sys.executable, str(ROOT / "train.py"), *study.common, *study.arms[arm], *own]


def run_once(
    study: Study, arm: str, seed: int, output_dir: Path, *, threads: int, children: list[subprocess.Popen]
) -> list[Row]:
    """Trains one arm from one seed, or ends what was begun. Returns its rows; raises RuntimeError where it fails.

    The process is put among the children while it runs, so that the caller can stop it.
    """
    command, constant = command_of(study, arm, seed, output_dir), {"credit": arm, "seed": str(seed)}
    if (output_dir / "metrics.json").exists():
        check_finished(output_dir, command)
        return measured(output_dir, constant)
    if not (output_dir / "checkpoints" / "last.ckpt").exists():
        shutil.rmtree(output_dir, ignore_errors=True)  # stopped before its first checkpoint
    output_dir.mkdir(parents=True, exist_ok=True)
    log = output_dir.with_name(f"{output_dir.name}.log")  # an arm's name may have a dot
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        children.append(process)
        _, status, usage = os.wait4(process.pid, 0)
        children.remove(process)
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise RuntimeError(f"{arm}, seed {seed}: exit code {code}; {log} says why, and the same command goes on")
    return measured(output_dir, constant | {"peak_mb": f"{peak_mb(usage):.0f}"})


def check_finished(output_dir: Path, command: list[str]) -> None:
    """Raises RuntimeError where a finished run was started by another command than the study's."""
    config = output_dir / "config.yaml"
    ran = yaml.safe_load(config.read_text(encoding="utf-8")).get("command") if config.exists() else None
    if ran != command_line("train.py", command[2:]):
        raise RuntimeError(f"{output_dir} is a run of other settings ({ran}): remove it, or name other --logs")


def measured(output_dir: Path, constant: Row) -> list[Row]:
    """The rows of a finished run. Raises RuntimeError where they cannot be read, such as pass@8 of fewer samples."""
    try:
        return evaluations(output_dir, constant)
    except (KeyError, OSError, ValueError) as error:
        raise RuntimeError(f"{output_dir}: its results cannot be read: {type(error).__name__} {error}") from error


def evaluations(output_dir: Path, constant: Row) -> list[Row]:
    """A row for each evaluation of a finished run, with the means of its training since the one before."""
    events = EventAccumulator(str(output_dir), size_guidance={"scalars": 0}).Reload()
    series = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in (*EVALUATED.values(), *TRAINED.values())
    }
    outcome = json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))
    constant = constant | {"run_seconds": f"{outcome['seconds']:.0f}"}  # of all its parts, where it was stopped
    ends = {outcome[at]["iteration"]: outcome[at] for at in ("first", "last")}
    rows = []
    evaluated = sorted(series["eval/pass@1"])
    for before, iteration in pairwise([None, *evaluated]):
        row = dict(constant, iteration=str(iteration))
        row |= {name: f"{series[tag][iteration]:.4f}" for name, tag in EVALUATED.items()}
        row["n"] = str(outcome["last"]["problems"] * outcome["last"]["samples"])
        if iteration in ends:
            row["low"], row["high"] = (f"{bound:.4f}" for bound in ends[iteration]["intervals"]["eval/pass@1"])
        if before is not None:
            since = range(before + 1, iteration + 1)
            row |= {name: f"{mean(series[tag][i] for i in since):.4f}" for name, tag in TRAINED.items()}
        rows.append({name: row.get(name, "") for name in FIELDS})
    return rows


def peak_mb(usage: resource.struct_rusage) -> float:
    """ru_maxrss is in KiB on Linux and in bytes on macOS."""
    return usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


@contextmanager
def stopping(children: list[subprocess.Popen]) -> Iterator[None]:
    """What ends early within stops the children too, which save themselves first; the pool around it waits for them."""
    try:
        yield
    except BaseException:
        for process in list(children):  # a run that ends meanwhile leaves the list
            process.terminate()
        raise


def run_all(study: Study, runs: Iterable[Run], logs: Path, workers: int, threads: int) -> None:
    """Runs what is missing, `workers` at a time. An interruption stops the runs, which save themselves first.

    Raises:
        RuntimeError: runs failed; the others were made all the same.
    """
    done = set(map(run_of, study.rows()))
    missing = [run for run in runs if run not in done]
    print(f"{study.folder}: {len(missing)} runs, {workers} at a time", flush=True)
    failed = []
    children: list[subprocess.Popen] = []
    with ThreadPoolExecutor(workers) as pool, stopping(children):
        running = {}
        try:
            for arm, seed in missing:
                folder = (logs / f"{arm}-{seed}").resolve()
                future = pool.submit(run_once, study, arm, seed, folder, threads=threads, children=children)
                running[future] = (arm, seed)
            for number, future in enumerate(as_completed(running), 1):
                arm, seed = running[future]
                told = f"{number}/{len(missing)}  {arm}, seed {seed}"
                if isinstance(error := future.exception(), RuntimeError):
                    failed.append(str(error))
                    print(f"{told}: failed", flush=True)
                    continue
                rows = future.result()
                study.add(rows)
                first, last = rows[0]["pass@1"], rows[-1]["pass@1"]
                print(f"{told}: {first} -> {last}  {rows[-1]['run_seconds']} s", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        raise RuntimeError("; ".join(failed))


def run_again(study: Study, runs: Iterable[Run], logs: Path, threads: int) -> int:
    """Trains runs once more from the start, prints their rows, and returns how many numbers differ from results.csv."""
    stand = {(*run_of(row), row["iteration"]): row for row in study.rows()}
    differ = 0
    for arm, seed in runs:
        folder = (logs / f"again-{arm}-{seed}").resolve()
        shutil.rmtree(folder, ignore_errors=True)
        children: list[subprocess.Popen] = []
        with ThreadPoolExecutor(1) as pool, stopping(children):
            rows = pool.submit(run_once, study, arm, seed, folder, threads=threads, children=children).result()
        for row in rows:
            print("  ".join(f"{name} {value}" for name, value in row.items() if value), flush=True)
            before = stand.get((arm, seed, row["iteration"]))
            if before is None:
                raise RuntimeError(
                    f"{arm}, seed {seed}: {study.results} has no iteration {row['iteration']} to compare"
                )
            others = [name for name in FIELDS if name not in OF_THE_MACHINE and row[name] != before.get(name, "")]
            differ += len(others)
            for name in others:
                print(f"  {name} was {before.get(name)} in {study.results}", flush=True)
    return differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study.yaml")
    parser.add_argument("--arms", nargs="+", help="these alone")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of study.yaml")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--logs", type=Path, help="where the runs themselves go; default logs/<study>")
    parser.add_argument("--merge", type=Path, nargs="+", default=[], help="take in these results.csv, and run nothing")
    parser.add_argument("--again", action="store_true", help="run these once more and compare with results.csv")
    args = parser.parse_args()
    try:
        run(args)
    except (OSError, RuntimeError, ValueError, yaml.YAMLError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def run(args: argparse.Namespace) -> None:
    study = Study.load(args.study)
    for path in args.merge:
        new, known = study.merge(path)
        print(f"{path}: {new} runs are new, {known} stood in {study.results}")
    if args.merge:
        return
    arms = args.arms or list(study.arms)
    study.check("--arms", arms)
    runs = [(arm, seed) for seed, arm in product(args.seeds or study.seeds, arms)]  # seed by seed: stopped early,
    # every arm still has the same seeds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logs = args.logs or ROOT / "logs" / study.folder.resolve().name
    if not args.again:
        run_all(study, runs, logs, args.workers, args.threads)
    elif differ := run_again(study, runs, logs, args.threads):
        sys.exit(f"{differ} numbers differ: the code, the libraries or the kind of processor may be another")


if __name__ == "__main__":
    main()
