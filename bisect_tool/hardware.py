"""What kind of machine made a number: processor, instruction sets and GPUs, with a name that tells kinds apart.

Libraries choose their code by these, so that errors of one kind say little about those of another.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bisect_tool.environments.snapshot import hardware


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of machine.

    Attributes:
        name: of letters, digits and hyphens; equal for equal facts, and different for different ones.
        machine: the processor's architecture (``x86_64``).
        processor: its model, as the system calls it.
        instruction_sets: those that libraries choose their code by, sorted.
        gpus: models with their compute capability, each once, sorted.
    """

    name: str
    machine: str
    processor: str
    instruction_sets: tuple[str, ...]
    gpus: tuple[str, ...]


@functools.cache
def this_hardware() -> Hardware:
    """The kind of the machine that this process runs on."""
    return hardware_of(hardware())


def hardware_of(facts: Mapping[str, Any]) -> Hardware:
    """A kind by its facts, as :func:`bisect_tool.environments.snapshot.hardware` gives them or a file kept them."""
    plain: dict[str, Any] = {
        "machine": str(facts["machine"]),
        "processor": str(facts["processor"]),
        "instruction_sets": tuple(sorted(map(str, facts["instruction_sets"]))),
        "gpus": tuple(sorted(map(str, facts["gpus"]))),
    }
    # The digest tells apart what the words do not: one processor with and without its widest instructions.
    digest = hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=3).hexdigest()
    words = re.sub(r"[^a-z0-9]+", "-", " ".join((plain["processor"] or plain["machine"], *plain["gpus"])).lower())
    return Hardware(name=f"{words[:60].strip('-') or 'machine'}-{digest}", **plain)


def hardware_facts(kind: Hardware) -> dict[str, Any]:
    """The facts alone, as plain JSON values; :func:`hardware_of` gives the kind back."""
    facts = asdict(kind)
    del facts["name"]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}
