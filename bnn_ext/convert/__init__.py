"""From a trained float model to a network on packed bits, and what belongs to it.

converter.py    convert(): the order of events
sequence.py     a model of nested Sequentials as a list of layers, with their shapes
fuse.py         layers -> nodes: which become packed, what goes into a threshold
layers.py       one binary layer on bits
chain.py        what stands between a layer and the next sign
thresholds.py   BatchNorm, activation and sign as one comparison per channel, exactly
network.py      the converted network: nodes that run one after the other
report.py       what happened to every layer, and why
verify.py       the converted network against the original
files.py        save and load
summary.py      parameters, bytes and multiply-accumulates by bit width
tables.py       tables for people
"""

from bnn_ext.convert.converter import convert
from bnn_ext.convert.files import load, save
from bnn_ext.convert.network import PackedNetwork
from bnn_ext.convert.report import LayerReport, Report
from bnn_ext.convert.summary import Summary, summary
from bnn_ext.convert.verify import Verification, verify

__all__ = [
    "LayerReport",
    "PackedNetwork",
    "Report",
    "Summary",
    "Verification",
    "convert",
    "load",
    "save",
    "summary",
    "verify",
]
