"""From a trained float model to a network on packed bits, and what belongs to it.

converter.py    convert(): the order of events
capture.py      a model as a graph of what it computes
examples.py     inputs for models that come without any
ir.py           the graph that the passes work on
passes/         from calls of torch to products of signs, thresholds and fused steps
chain.py        what stands between a layer and the next sign
thresholds.py   BatchNorm, activation and sign as one comparison per channel, exactly
lower.py        the graph as modules on packed bits
network.py      the converted network: nodes that run one after the other
reporting.py    what became of every layer
report.py       the report itself
verify.py       the converted network against the original
files.py        save and load
files_v1.py     files that earlier releases wrote
to_float.py     back to a plain torch network
summary.py      parameters, bytes and multiply-accumulates by bit width
tables.py       tables for people
"""

from bnn_ext.convert.converter import convert
from bnn_ext.convert.files import load, save
from bnn_ext.convert.network import PackedNetwork
from bnn_ext.convert.report import LayerReport, Report
from bnn_ext.convert.summary import Summary, summary
from bnn_ext.convert.to_float import to_float
from bnn_ext.convert.verify import LayerDifference, Verification, verify

__all__ = [
    "LayerDifference",
    "LayerReport",
    "PackedNetwork",
    "Report",
    "Summary",
    "Verification",
    "convert",
    "load",
    "save",
    "summary",
    "to_float",
    "verify",
]
