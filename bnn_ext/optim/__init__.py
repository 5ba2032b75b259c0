"""How binarized networks learn: optimizers, hooks and measures, each a part of any loop.

    model = models.vgg_small_binary()
    binary, others = optim.split_parameters(model)
    optimizer = optim.Combined(optim.Bop(binary), torch.optim.Adam(others, lr=1e-2))

| method                  | parts                                                                  |
| ----------------------- | ---------------------------------------------------------------------- |
| BNN, STE                | `ste_sign` or `stochastic_sign` layers, `bnn.clip_weights`             |
| BinaryConnect           | `glorot_groups`, `bnn.clip_weights`, `weights_as`, `mean_of_draws`     |
| XNOR-Net                | `xnor_sign` layers or `LatentWeights`; `project`, `scale_gradients`    |
| Bi-Real Net, ReActNet   | `bnn.set_weight_quantizer` between the steps                           |
| BNEW                    | `bnn.clip_weights` on real weights, then `Bnew`                        |
| mirror descent          | `MirrorDescent`, or `quantizers.TanhSign` under any optimizer          |
| Bop                     | `Bop`                                                                  |
| schedules of BinaryNet  | `Regime`, `RegimeOptimizer`                                            |

The optimizers are those of torch: groups, closures, schedules, state_dict. The hooks act on
parameters between the backward pass and the end of a step, alike in every process of DDP. Objects
with a `state_dict` belong in a checkpoint with the model and the optimizer. The losses are in
`bnn_ext.losses`.
"""

from bnn_ext.optim.bnew import Bnew
from bnn_ext.optim.bop import Bop
from bnn_ext.optim.combined import Combined
from bnn_ext.optim.evaluation import FlipRatio, distance_to_binary, mean_of_draws, weights_as
from bnn_ext.optim.latent import LatentWeights
from bnn_ext.optim.mirror_descent import MirrorDescent
from bnn_ext.optim.parameters import (
    centered,
    glorot_groups,
    project,
    scale_gradients,
    split_parameters,
    xnor_gradient_factor,
)
from bnn_ext.optim.regime import Regime, RegimeOptimizer

__all__ = [
    "Bnew",
    "Bop",
    "Combined",
    "FlipRatio",
    "LatentWeights",
    "MirrorDescent",
    "Regime",
    "RegimeOptimizer",
    "centered",
    "distance_to_binary",
    "glorot_groups",
    "mean_of_draws",
    "project",
    "scale_gradients",
    "split_parameters",
    "weights_as",
    "xnor_gradient_factor",
]
