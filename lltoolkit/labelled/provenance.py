"""Where a result came from: the attributes that every kind carries. Torch-free."""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import lltoolkit
from lltoolkit.labelled.schema import SCHEMA_VERSION


def provenance(
    kind: str, *, config: Mapping[str, object], model: str, n_params: int, device: str, torch_version: str
) -> dict[str, str | int | float]:
    """Give the attributes that every result carries, all of them str, int or float.

    Parameters
    ----------
    kind : str
        One of ``schema.KINDS``.
    config : mapping
        All that decides the values, JSON-able; it is stored whole and hashed.
    model : str
        The model's name.
    n_params : int
        Number of parameters, each tied weight once.
    device, torch_version : str
        Where the values were computed and by which torch.

    Returns
    -------
    dict
        ``schema.REQUIRED_ATTRS`` with their values.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "lltoolkit_version": lltoolkit.__version__,
        "torch_version": torch_version,
        "device": device,
        "config": _as_text(config),
        "config_sha256": hash_config(config),
        "model": model,
        "n_params": n_params,
        "command": command(),
        "git_commit": git_commit(),
    }


def hash_config(config: Mapping[str, object]) -> str:
    """Hash a configuration: 64 hexadecimal digits, the same for equal values in any order."""
    return hashlib.sha256(_as_text(config).encode()).hexdigest()


def _as_text(config: Mapping[str, object]) -> str:
    return json.dumps(config, sort_keys=True)


def command() -> str:
    """Return the command line of this process; its first word without the folder, which is nobody's business."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if name == "ipykernel_launcher.py":
        return "jupyter"  # its arguments name a temporary file
    return shlex.join([name, *sys.argv[1:]])


def git_commit() -> str:
    """Return the commit of the working directory's repository, ``-dirty`` where files differ, or ``"none"``."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "none"  # no git, no repository: a result is a result all the same
    return answer.stdout.strip() or "none"
