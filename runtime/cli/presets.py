"""`--preset`: three sets of defaults of vicort-run. An option that is given wins over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from vicort.runtime.memory.budget import SHARE
from vicort.runtime.policies.system import System, load_system


@dataclass(frozen=True)
class Preset:
    """What a preset sets. `docs/systems.md` says what each value is paid with."""

    system: str = "distinct"
    # values that replace those in the system's file, by section
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fps: Fraction | None = None  # None: the rate that the model was trained with
    memory_share: float = SHARE  # of the machine's memory, for automatic budgets

    def load(self, name: str) -> System:
        """The system with its changed values, named after the preset."""
        return load_system(self.system).with_(
            name=f"{self.system} (preset {name})",
            **{section: dict(values) for section, values in self.changes.items()},
        )


PRESETS: Mapping[str, Preset] = {
    # threshold: the highest of ViCoStream's public scripts. units: three chunks
    # of distinct's five.
    "fast": Preset(
        changes={"drop": {"threshold": 0.5}, "retrieval": {"units": 24}},
        fps=Fraction(1),
        memory_share=SHARE / 2,
    ),
    "balanced": Preset(),
    # threshold: ours, what stands still and nothing else. chunks: ViCoStream's public script for
    # RVS-Ego. units: eight chunks.
    "best": Preset(
        changes={
            "drop": {"threshold": 0.95},
            "ingest": {"chunks": 16},
            "retrieval": {"units": 64},
        },
        memory_share=2 * SHARE,
    ),
}


def preset_text(name: str, given: Mapping[str, str]) -> str:
    """What a preset sets. given: for `fps`, `system` and `memory`, the option or the value of a
    system that sets it instead, or ""."""
    preset = PRESETS[name]
    values = [
        f"{section}.{key} {value}"
        for section, change in preset.changes.items()
        for key, value in change.items()
    ]
    rate = f"--fps {preset.fps}" if preset.fps else "the model's frame rate"
    parts = {
        "fps": rate,
        "system": f"system {preset.system}{' with ' * bool(values)}{', '.join(values)}",
        "memory": f"at most {preset.memory_share:g} of the machine's memory",
    }
    kept = [text for key, text in parts.items() if not given[key]]
    instead = [given[key] for key in parts if given[key]]
    return (
        f"{name}: {'; '.join(kept) or 'nothing'}"
        f"{'; given instead: ' * bool(instead)}{', '.join(instead)}"
    )
