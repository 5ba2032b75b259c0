"""What the converter did with every layer, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, get_type_hints

from bnn_ext.convert.tables import format_table

if TYPE_CHECKING:  # verify knows the network, which has a report
    from bnn_ext.convert.verify import Verification


@dataclass
class LayerReport:
    """One layer of the original model.

    Attributes:
        name: as in `model.named_modules()`.
        kind: the class of the layer.
        status: "fused" (its output never exists as floats in memory, or another layer's kernel
            gives it), "packed" (runs on bits, those of its weight at least, and gives floats) or
            "left" (computes real values, by torch or in one pass with its neighbours).
        reason: in words.
        bytes_before, bytes_after: of weights and other constants: those that the model's calls
            take, and those of the network in memory and in its file.
        macs: multiply-accumulates for one sample like the examples, None where unknown.
    """

    name: str
    kind: str
    status: str
    reason: str
    bytes_before: int = 0
    bytes_after: int = 0
    macs: int | None = None


@dataclass
class Report:
    """Layer by layer what `convert` did; `print` it or read `layers`.

    Attributes:
        layers: in the order of their first calls.
        notes: what the conversion takes for granted, in words.
        verification: the comparison with the model, if there was one.
    """

    layers: list[LayerReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verification: Verification | None = None

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the model file holds it (without the verification)."""
        return {"layers": [asdict(layer) for layer in self.layers], "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """What `to_dict` gave; a `TypeError` if it is something else."""
        layers = [LayerReport(**layer) for layer in data["layers"]]
        for layer in layers:
            for name, kind in get_type_hints(LayerReport).items():
                if not isinstance(getattr(layer, name), kind):
                    raise TypeError(f"{name} must be {kind}, found {getattr(layer, name)!r}")
        notes = data.get("notes", [])
        if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
            raise TypeError(f"notes must be a list of strings, found {notes!r}")
        return cls(layers, notes)

    def __str__(self) -> str:
        header = ("layer", "kind", "status", "bytes before", "after", "MACs", "why")
        rows = [
            (
                layer.name or "(model)",
                layer.kind,
                layer.status,
                f"{layer.bytes_before:,}",
                f"{layer.bytes_after:,}",
                "" if layer.macs is None else f"{layer.macs:,}",
                layer.reason,
            )
            for layer in self.layers
        ]
        macs = sum(layer.macs or 0 for layer in self.layers)
        total = f"{self.bytes_before:,}", f"{self.bytes_after:,}", f"{macs:,}" if macs else ""
        rows.append(("total", "", "", *total, ""))
        lines = [format_table(header, rows, right=(3, 4, 5)), *self.notes]
        if self.verification is not None:
            lines.append(str(self.verification))
        return "\n".join(lines)
