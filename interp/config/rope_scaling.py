"""`RopeScaling`: how rotary frequencies are stretched to longer prompts than a model was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from interp.arguments import is_several, real_number, shown
from interp.config.checks import check_flag, settle_number, settle_whole
from interp.errors import ConfigError

ROPE_SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context of `original_n_ctx` positions.

    | kind | what it does |
    |---|---|
    | `linear` | divides every frequency by `factor` (Chen et al. 2023, "Extending Context Window ...", section 2.3) |
    | `dynamic` | raises the base for prompts longer than the trained context ("NTK-aware"; Peng et al. 2023, "YaRN", \
      section 3.3 and appendix B.1) |
    | `llama3` | divides the low frequencies and blends between `low_freq_factor` and `high_freq_factor` turns \
      (Grattafiori et al. 2024, "The Llama 3 Herd of Models", section 3.2, and its released code) |
    | `yarn` | divides the low frequencies and blends between `beta_slow` and `beta_fast` turns, rounded outwards to \
      whole channels if `truncate`; scores grow by the square of `attention_factor` (Peng et al. 2023, section 3.4) |
    | `longrope` | divides each frequency by a number of its own, `short_factor` within the trained context and \
      `long_factor` beyond it; `attention_factor` as in `yarn` (Ding et al. 2024, "LongRoPE", section 3) |

    `attention_factor` multiplies rotated queries and keys; None takes what the paper recommends for `factor`.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_n_ctx: int = 8192
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in ROPE_SCALINGS:
            raise ConfigError(f"rope scaling {self.kind!r} is not supported; choose from {', '.join(ROPE_SCALINGS)}")
        where = " of the rope scaling"
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            settle_number(self, name, where, above=0)
        settle_whole(self, "original_n_ctx", 1, where)
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor={self.low_freq_factor} of the rope scaling must be below high_freq_factor="
                f"{self.high_freq_factor}"
            )
        check_flag(self, "truncate", where)
        if self.attention_factor is not None:
            settle_number(self, "attention_factor", where, above=0)
        for name in ("short_factor", "long_factor"):
            self._settle_factors(name)
        if self.attention_factor is None:
            object.__setattr__(self, "attention_factor", self._recommended())

    def _settle_factors(self, name: str) -> None:
        given = getattr(self, name)
        if (given is not None) != (self.kind == "longrope"):
            raise ConfigError(
                f"{name} belongs to a rope scaling of kind 'longrope', which needs it, not {shown(given)}"
            )
        if given is None:
            return
        if not is_several(given):
            raise ConfigError(f"{name} of the rope scaling must be a number for each frequency, not {shown(given)}")
        factors = tuple(real_number(f"each {name} of the rope scaling", one, above=0) for one in given)
        object.__setattr__(self, name, factors)

    def _recommended(self) -> float:
        """The factor of queries and keys that a paper recommends for its scaling."""
        if self.factor <= 1:
            return 1.0
        if self.kind == "yarn":
            return 0.1 * math.log(self.factor) + 1.0
        if self.kind == "longrope" and self.original_n_ctx > 1:
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_n_ctx))
        return 1.0
