"""What is written: the machine by name, JSON, and Markdown tables."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import lltoolkit
from lltoolkit.files import write_atomically


def describe_machine(n_threads: int) -> dict[str, Any]:
    """Name the machine and the software that measured.

    Parameters
    ----------
    n_threads : int
        Threads that every contestant has.

    Returns
    -------
    dict
        JSON-able; no names of users, hosts or folders.
    """
    return {
        "cpu": _cpu(),
        "n_cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lltoolkit": lltoolkit.__version__,
        "commit": _commit(),
        "n_threads": n_threads,
        "load_before": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Give the commit of the code that is measured, which need not be that of the working directory."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "none"
    return answer.stdout.strip() or "none"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text))


def machine_line(machine: Mapping[str, Any]) -> str:
    """Give the sentence under a table that says where it was measured."""
    threads = "1 thread" if machine["n_threads"] == 1 else f"{machine['n_threads']} threads"
    return (
        f"{machine['cpu']}, {machine['n_cores']} cores, {threads} for all; torch {machine['torch']}, commit "
        f"{machine['commit']}, {machine['date'][:10]}; load average before: {machine['load_before']}."
    )


def cells_report(content: Mapping[str, Any]) -> str:
    """Draw the tables of `compare_cells`'s results.

    Parameters
    ----------
    content : mapping
        ``machine``, ``cases`` and ``bars``.

    Returns
    -------
    str
        Markdown.
    """
    parts = []
    for result in content["cases"]:
        limit = result["limit"]
        rows = [
            [
                f"{one['name']} {one['version']}".strip(),
                _time(one["wall_s"]),
                f"{one['ms_per_image']:.3g}",
                f"{one['ratio_wall']:.2f}",
                f"{one['ratio_cpu']:.2f}",
                f"{one['error']:.0e}",
                one["gives"],
                one["note"],
            ]
            for one in result["contestants"]
        ]
        rows.append(
            [
                "limit: its layers alone",
                _time(limit["ms_per_image"] * result["n_examples"] / 1e3),
                f"{limit['ms_per_image']:.3g}",
                f"{limit['share']:.2f}",
                f"{limit['share_cpu']:.2f}",
                "",
                "",
                f"{limit['gflop_per_s']:.0f} GFLOP/s, {result['mflop_per_image']:.3g} MFLOP an image",
            ]
        )
        rows += [[name, "", "", "", "", "", "", reason] for name, reason in result["missing"].items()]
        head = ["", "per cell", "ms per image", "ratio (wall)", "ratio (CPU)", "error", "gives", "note"]
        about = f"{result['n_examples']} examples a cell; {result['about']}; engine {result['engine']}"
        parts += [f"### {result['label']}", f"{about}.", table(head, rows)]
    parts.append(bars_table(content["bars"]))
    parts.append(machine_line(content["machine"]))
    parts.append(
        "Times are medians over the rounds of one process, in which the contestants took turns; ratios are to "
        "lltoolkit, above 1 is slower. The error is the largest of the checked cells, relative to a float64 loop at "
        "the same weights. What a tool does once per grid is not in the time of a cell."
    )
    return "\n\n".join(parts) + "\n"


def bars_table(bars: Iterable[Mapping[str, Any]]) -> str:
    """Draw the bars as a Markdown table."""
    rows = [
        [bar["what"], f"{bar['wanted']:g}", f"{bar['found']:.3g}", "met" if bar["met"] else "**missed**"]
        for bar in bars
    ]
    return table(["bar", "wanted", "found", ""], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Draw a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
