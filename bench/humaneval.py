"""HumanEval's own 164 solutions: what executing them in the sandbox costs, and what the usual way costs.

The usual way is one interpreter for each program: `python -I`, the prompt, the solution and the test in one file, a
time limit, the exit status as the verdict. It confines nothing and believes what the program says. It runs on as many
threads as the sandbox has workers. Both ways take turns in one run, and the table gives medians and ratios.

    python bench/humaneval.py --rounds 5
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from keystone.evaluation import Verdict
from keystone.evaluation.candidates import run_sources
from keystone.evaluation.opening import SANDBOXES, open_sandbox
from keystone.evaluation.suite_format import CodeItem
from keystone.evaluation.suites import load_suite

LIMIT_SECONDS = 10.0


def usual(items: Sequence[CodeItem], workers: int) -> int:
    """How many pass, each in an interpreter of its own."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(partial(passes, Path(folder)), range(len(items)), items))


def passes(folder: Path, number: int, item: CodeItem) -> bool:
    path = folder / f"{number}.py"
    path.write_text(f"{item.prompt}{item.solution}\n{item.test}\ncheck({item.entry_point})\n", encoding="utf-8")
    command = [sys.executable, "-I", str(path)]
    done = subprocess.run(command, env={}, capture_output=True, timeout=LIMIT_SECONDS, check=False)
    return done.returncode == 0


def confined(name: str, items: Sequence[CodeItem], workers: int) -> int:
    """How many pass in a sandbox, its start and its end included."""
    with open_sandbox(name, workers=workers) as sandbox:
        judged = run_sources(items, [f"{item.prompt}{item.solution}" for item in items], sandbox)
    return sum(each.verdict is Verdict.PASSED for each in judged)


def timed(way: Callable[[], int]) -> tuple[float, int]:
    started = time.perf_counter()
    passed = way()
    return time.perf_counter() - started, passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    asked = parser.parse_args()
    items = load_suite("humaneval").code_items
    ways: dict[str, Callable[[], int]] = {"an interpreter each": partial(usual, items, asked.workers)}
    ways |= {f"sandbox {name}": partial(confined, name, items, asked.workers) for name in SANDBOXES}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    passed: dict[str, int] = {}
    for _ in range(asked.rounds):
        for name, way in ways.items():
            took, passed[name] = timed(way)
            seconds[name].append(took)
    base = statistics.median(seconds["an interpreter each"])
    print(
        f"{len(items)} solutions, {asked.workers} at once, median of {asked.rounds} rounds; "
        f"Python {sys.version.split()[0]}"
    )
    print(f"{platform.machine()}, {os.cpu_count()} cores\n")
    print("| way | passed | seconds | ms per program | against an interpreter each |")
    print("|---|---|---|---|---|")
    for name, took in seconds.items():
        middle = statistics.median(took)
        each = 1000 * middle / len(items)
        print(f"| {name} | {passed[name]} of {len(items)} | {middle:.2f} | {each:.1f} | {middle / base:.2f} x |")


if __name__ == "__main__":
    main()
