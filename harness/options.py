"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Executor(StrEnum):
    """Where cells are judged."""

    LOCAL = "local"
    RAY = "ray"


OpOption = Annotated[list[str] | None, typer.Option("--op", help="only this op (repeatable)")]
FileOption = Annotated[list[Path] | None, typer.Option("--provider", help="judge this .py file; it is code and runs")]
NameOption = Annotated[list[str] | None, typer.Option("--with", help="judge this built-in provider (repeatable)")]
VariantOption = Annotated[list[str] | None, typer.Option("--variant", help="only this code path (repeatable)")]
DeviceOption = Annotated[str, typer.Option(help="where the asked providers run: cpu, gpu or npu")]
PdbOption = Annotated[bool, typer.Option("--pdb", help="stop in the debugger before the call")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
ShardOption = Annotated[
    str, typer.Option("--shard", help="this part of the plan, as 2/8: for a CI matrix or a Slurm array")
]
ExecutorOption = Annotated[
    Executor, typer.Option(help="local, or ray: spread over the machines of a cluster by resource")
]
AddressOption = Annotated[str, typer.Option(envvar="RAY_ADDRESS", help="with --executor ray: the cluster")]
ResourceOption = Annotated[
    list[str] | None,
    typer.Option("--resource", help="with --executor ray: only machines with it, as cpu or gpu:sm_90 (repeatable)"),
]
