"""`Experts`: what a mixture of experts is made of, and how its router chooses."""

from __future__ import annotations

from dataclasses import dataclass

from interp.arguments import shown
from interp.config.checks import check_flag, settle_number, settle_whole
from interp.errors import ConfigError

ROUTERS = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of an MLP: a router sends each position to a few of many MLPs.

    The router's scores are x W_router [+ b_router]. The `experts_per_token` experts with the best scores are computed,
    and their outputs are added up, each times its weight. `router` says what the weights are:

    | router | what it does |
    |---|---|
    | `softmax` | weights are the probabilities of the chosen experts, out of all of them; with `normalize_weights` \
      out of the chosen ones, so that they sum to 1 (Shazeer et al. 2017, "Outrageously Large Neural Networks", \
      section 2; Jiang et al. 2024, "Mixtral of Experts", section 2) |
    | `sigmoid` | weights are the sigmoids of the scores; with `normalize_weights` divided by their sum. The choice \
      goes by sigmoids plus a learned bias; it is among the `groups_per_token` best of `n_groups` groups of \
      neighbouring experts, whose value is the sum of their two best (DeepSeek-AI 2024, "DeepSeek-V3", section 2.1.2) |

    Each expert is an MLP of `d_expert` neurons, gated and with the activation function as the model's MLPs are.
    `weight_factor` multiplies all weights; `router_bias` and `expert_bias` say which biases there are. With
    `swiglu_limit` experts clamp both branches, and compute (linear + 1) gate sigmoid(`swiglu_alpha` gate) (OpenAI 2025,
    "gpt-oss-120b & gpt-oss-20b Model Card", section 2.2).

    A shared expert of `d_shared` neurons is computed at every position beside the chosen ones; with `shared_gate` it is
    multiplied by the sigmoid of a score of its own (Qwen Team 2024, "Qwen1.5-MoE"). With `d_latent` experts, though
    neither router nor shared expert, read and write that many channels, which two linear maps connect with the stream,
    with biases where the model's MLPs have them (NVIDIA 2025, "Nemotron 3", section 2).
    """

    n_experts: int
    experts_per_token: int
    d_expert: int
    router: str = "softmax"
    normalize_weights: bool = True
    weight_factor: float = 1.0
    router_bias: bool = False
    expert_bias: bool = False
    n_groups: int = 1
    groups_per_token: int = 1
    swiglu_limit: float | None = None
    swiglu_alpha: float = 1.702
    d_shared: int | None = None
    shared_gate: bool = False
    d_latent: int | None = None

    def __post_init__(self) -> None:
        where = " of the experts"
        for name in ("n_experts", "experts_per_token", "d_expert", "n_groups", "groups_per_token"):
            settle_whole(self, name, 1, where)
        for name in ("d_shared", "d_latent"):
            if getattr(self, name) is not None:
                settle_whole(self, name, 1, where)
        for name in ("normalize_weights", "router_bias", "expert_bias", "shared_gate"):
            check_flag(self, name, where)
        for name in ("weight_factor", "swiglu_alpha", *(() if self.swiglu_limit is None else ("swiglu_limit",))):
            settle_number(self, name, where, above=0)
        if not isinstance(self.router, str) or self.router not in ROUTERS:
            raise ConfigError(f"router={shown(self.router)}{where} is not supported; choose from {', '.join(ROUTERS)}")
        self._check_choice()

    def _check_choice(self) -> None:
        """Refuse numbers of experts and groups that no router can choose."""
        if self.n_experts % self.n_groups:
            raise ConfigError(f"n_experts={self.n_experts} must be a multiple of n_groups={self.n_groups}")
        if self.groups_per_token > self.n_groups:
            raise ConfigError(
                f"groups_per_token={self.groups_per_token} must be at most n_groups={self.n_groups} of the experts"
            )
        among = self.n_experts // self.n_groups * self.groups_per_token
        if self.experts_per_token > among:
            raise ConfigError(f"experts_per_token={self.experts_per_token} must be at most {among}, which there are")
        if self.n_groups > 1 and self.router != "sigmoid":
            raise ConfigError(f"n_groups={self.n_groups} of the experts needs router='sigmoid', not {self.router!r}")
        if self.shared_gate and self.d_shared is None:
            raise ConfigError("shared_gate=True of the experts needs d_shared, the width of the shared expert")
