"""The predecessor's network out of a checkout of its repository.

python -m tests.predecessor CHECKOUT    records `tests/golden/paper.npz`
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.random_paper import SIZES, TEXT_WIDTH, draw, golden_inputs

GOLDEN = Path(__file__).parent / "golden" / "paper.npz"


class Predecessor(nn.Module):
    """Its `net_sound` and `net_synthesizer`, and of its CLAP what follows the text encoder.

    The names of the state dict are those of its checkpoints but for a `module.` in front.
    """

    def __init__(
        self,
        checkout: Path,
        *,
        width: int,
        downs: int,
        features: int,
        heads: int,
        joint_width: int,
        text_width: int,
    ):
        super().__init__()
        self.net_sound = _module(checkout, "cond_unet_attn").CondAttUNet(
            in_dim=1, out_dim=features, cond_dim=text_width, num_downs=downs, ngf=width,
            num_res_layers=1, num_cond_blocks=1, num_head=heads, cond_layer="sca",
        )  # fmt: skip
        self.net_synthesizer = _module(checkout, "synthesizer_net").InnerProd(features)
        text_branch, clap = nn.Module(), nn.Module()
        text_branch.pooler = nn.ModuleDict({"dense": nn.Linear(text_width, text_width)})
        clap.text_branch = text_branch
        clap.text_projection = nn.Sequential(
            nn.Linear(text_width, joint_width), nn.ReLU(), nn.Linear(joint_width, joint_width)
        )
        self.net_clap = nn.ModuleDict(
            {"model": nn.ModuleDict({"model": clap}), "fc": nn.Linear(joint_width, features)}
        )

    def forward(self, level_B1FN: torch.Tensor, text_BLC: torch.Tensor) -> torch.Tensor:
        """Logits [B, 1, F, N] of one prompt for each mixture."""
        clap = self.net_clap["model"]["model"]
        pooled = torch.tanh(clap.text_branch.pooler["dense"](text_BLC[:, 0]))
        joint = nn.functional.normalize(clap.text_projection(pooled), dim=-1)
        weight_BD = torch.sigmoid(self.net_clap["fc"](joint))
        return self.net_synthesizer(weight_BD, self.net_sound(level_B1FN, text_BLC))


def drawn(checkout: Path, **sizes: int) -> Predecessor:
    """The network with the weights of `random_paper`, in evaluation mode."""
    network = Predecessor(checkout, **sizes)
    tensors = {name: torch.as_tensor(value) for name, value in draw(**sizes).items()}
    network.load_state_dict(tensors)
    return network.eval()


def masks(network: Predecessor, level_BFN: np.ndarray, text_BPLC: np.ndarray) -> np.ndarray:
    """Logits [B, P, F, N], prompt by prompt as its code does."""
    level_B1FN = torch.as_tensor(level_BFN)[:, None]
    with torch.no_grad():
        logits = [network(level_B1FN, t) for t in torch.as_tensor(text_BPLC).unbind(1)]
    return torch.cat(logits, 1).numpy()


def _module(checkout: Path, name: str) -> types.ModuleType:
    """One file of its `models`, without the others and what they need."""
    sys.modules.setdefault("utils", types.ModuleType("utils"))  # imported there, never used
    spec = importlib.util.spec_from_file_location(name, checkout / "models" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    network = drawn(Path(sys.argv[1]), **SIZES, text_width=TEXT_WIDTH)
    np.savez_compressed(GOLDEN, logits=masks(network, *golden_inputs())[..., ::2, ::3])
