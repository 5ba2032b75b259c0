"""Files of version 1, which earlier releases wrote: they load, and damaged ones do not.

Beside every file in `files_v1` lie an input and the output that the network gave when it was saved.
Weights and inputs are multiples of 1/8 and the like, so that sums are exact in any order.
"""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import bnn_ext
from bnn_ext.convert import PackedNetwork, files, files_v1

# torch's remarks on even kernels with padding="same", and on layers without features, as damaged
# files describe them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
]

FOLDER = Path(__file__).with_name("files_v1")
NAMES = sorted(path.stem for path in FOLDER.glob("*.bnn"))
# What Python and torch raise about arguments that do not fit.
CLEAN = (ValueError, TypeError, RuntimeError, IndexError, AttributeError)
NONSENSE = (None, True, -1, 2, 10**12, 2**63, 10**30, 1.5, float("nan"), "x", {}, [], [1], [-1, -1])


def content(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    data = (FOLDER / f"{name}.bnn").read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return json.loads(metadata["bnn_ext"]), safetensors.torch.load(data)


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """With a correct checksum."""
    header.pop("sha256", None)
    header["sha256"] = files._digest(header, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {"bnn_ext": json.dumps(header)}))


def example(name: str) -> tuple[Tensor, Tensor]:
    tensors = safetensors.torch.load_file(FOLDER / f"{name}.safetensors")
    return tensors["input"], tensors["output"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_outputs(name):
    input, output = example(name)
    network = bnn_ext.load(FOLDER / f"{name}.bnn")
    found = network(input)
    if name == "rounding":  # exp and the like differ in their last bits from processor to processor
        torch.testing.assert_close(found, output, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, output)
    assert not any(module.training for module in network.modules())
    assert len({node.name for node in network.nodes}) == len(network.steps)
    print(network, network.report)


def test_files_hold_every_kind():
    kinds = {node["kind"] for name in NAMES for node in content(name)[0]["nodes"]}
    assert kinds == {*files_v1._PACKED, *files_v1._TORCH}


def test_memory_format():
    """That of real weights comes back, since torch's sums round in another order for another."""
    network = bnn_ext.load(FOLDER / "maps.bnn")
    weights = [step.weight for step in network.steps if type(step) is torch.nn.Conv2d]
    assert [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights] == [
        True
    ] * 3


def test_packed_layers_can_be_saved_again(tmp_path):
    """Modules of torch cannot: networks are made of calls now."""
    network = bnn_ext.load(FOLDER / "packed_kinds.bnn")
    with pytest.raises(ValueError, match="found BatchNorm1d at 9"):
        bnn_ext.save(network, tmp_path / "again.bnn")
    kept = network.nodes[:7]
    part = PackedNetwork(kept, network.inputs, kept[-1].outputs[0], network.report, True)
    bnn_ext.save(part, tmp_path / "again.bnn")
    input, _ = example("packed_kinds")
    assert torch.equal(bnn_ext.load(tmp_path / "again.bnn")(input), part(input))


@pytest.mark.parametrize("name", NAMES)
def test_damaged(name, tmp_path):
    """Any attribute of another value, and no checksum to tell: an exception of Python, no more."""
    path = tmp_path / "model.bnn"
    input, _ = example(name)
    draw = random.Random(0)
    header, _ = content(name)
    refused = tried = 0
    for index, node in enumerate(header["nodes"]):
        for key in ("x", *node["attributes"]):
            for value in draw.sample(NONSENSE, 4):
                changed, tensors = content(name)
                changed["nodes"][index]["attributes"][key] = value
                write(path, changed, tensors)
                tried += 1
                try:
                    network = bnn_ext.load(path)
                except ValueError as error:
                    assert str(path) in str(error)
                    refused += 1
                    continue
                with contextlib.suppress(*CLEAN):
                    network(input)
    assert refused > tried / 3


def test_damaged_wiring(tmp_path):
    path = tmp_path / "model.bnn"
    for key, value in (
        ("inputs", ["9"]),
        ("inputs", ["3", "3"]),
        ("inputs", None),
        ("name", "2"),
        ("name", ""),
        ("name", 3),
        ("kind", "TorchCall"),
        ("kind", "os.system"),
        ("channels_last", ["x"]),
        ("channels_last", None),
    ):
        header, tensors = content("packed_kinds")
        next(node for node in header["nodes"] if node["name"] == "3")[key] = value
        write(path, header, tensors)
        with pytest.raises(ValueError, match="is damaged"):
            bnn_ext.load(path)


def test_altered(tmp_path):
    """The checksum of version 1 is still looked at."""
    path = tmp_path / "model.bnn"
    data = bytearray((FOLDER / "rows.bnn").read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="its checksum does not match"):
        bnn_ext.load(path)


def test_quantizers(tmp_path):
    path = tmp_path / "model.bnn"
    for value in ("sign", "os.system", 1, [], {}, True):
        header, tensors = content("rows")
        header["nodes"][0]["attributes"]["input_quantizer"] = value
        write(path, header, tensors)
        with pytest.raises(ValueError, match="node 0: input_quantizer"):
            bnn_ext.load(path)


def test_claims_allocate_nothing(tmp_path):
    """Sizes are compared with the tensors before anything of that size is made."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "model.bnn"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for key in ("in_features", "out_features"):
        for size in (10**7, 10**12):
            header, tensors = content("packed_kinds")
            next(n for n in header["nodes"] if n["kind"] == "Linear")["attributes"][key] = size
            write(path, header, tensors)
            with pytest.raises(ValueError, match="is damaged"):
                bnn_ext.load(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak  # KiB on Linux
    assert grown < 100_000
