"""Flow maps: networks that know where a path leads, so that pictures take one to four evaluations.

A SiT predicts the velocity v at x_t; many short steps follow it. A flow map predicts the mean of
the velocity on the path from x_t to an earlier time s (MeanFlow, Geng et al. 2025):

    u(x_t, s, t) = 1/(t - s) * integral from s to t of v dr,     x_s = x_t - (t - s) u         (1)

so that one evaluation takes a step of any length, and u(x_t, t, t) = v. Two identities teach it:

    u = v - (t - s) du/dt,    du/dt = v . grad_x u + d_t u      on the path                    (2)
    (t - s) u(x_t, s, t) = (integral from m to t of v dr) + (m - s) u(x_m, s, m)               (3)

for s < m < t. (2) is MeanFlow's, with s = 0 that of consistency models (sCM, FACM); (3), with m
next to t, that of consistency trajectories (Kim et al. 2024), without a derivative. What stands on
the right is computed by the network as it is and not differentiated.

v is either the guided velocity of a trained teacher, whose paths the student then draws, from like
noise like pictures; or that of the data, e - x_0, guided by the network itself (improved MeanFlow).
Guidance is an input of the network: it costs no second evaluation.

Straight lines x_t = (1 - t) x_0 + t e throughout: t = 0 data, t = 1 noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from softvq.errors import UserError
from softvq.generator.config import FewStepConfig, FlowMapConfig, SiTConfig, TransformerConfig
from softvq.generator.guidance import Guided
from softvq.generator.process import LINEAR, TIME_LAWS, drop_labels, per_sample
from softvq.generator.transformer import SiT, TokenTransformer
from softvq.layers import full_precision, timestep_embedding
from softvq.processes import ours, randn, whole


@dataclass
class SelfGuidance:
    """Guidance as a network is told it: scale and interval of times of each sample, [B] each."""

    scale: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def none(cls, like: Tensor) -> Self:
        """Scale 1 for as many samples, [B]."""
        return cls(torch.ones_like(like), torch.zeros_like(like), torch.ones_like(like))

    def __getitem__(self, rows: Any) -> "SelfGuidance":
        return SelfGuidance(self.scale[rows], self.low[rows], self.high[rows])

    def at(self, t: Tensor) -> Tensor:
        """The scale that acts at times t: 1 outside the interval."""
        return torch.where((self.low <= t) & (t <= self.high), self.scale, 1.0)

    def push(self, t: Tensor, s: Tensor) -> Tensor:
        """How much of the way from t to s <= t is guided, times 1 - 1 / scale: 0..1, [B]."""
        span = t - s
        inside = torch.minimum(t, self.high) - torch.maximum(s, self.low)
        here = (self.low <= t) & (t <= self.high)
        share = torch.where(span > 1e-4, inside.clamp(min=0) / span.clamp(min=1e-4), here.to(t))
        return (1 - 1 / self.scale) * share


STEEP = 12.0  # the highest frequency of guidance's codes


class SettingEmbedder(nn.Module):
    """Span and guidance as numbers [B, 4] in 0..1 -> conditioning vectors [B, width]; 0 at first.

    The span's code has no frequency above 1, as steep codes make steep derivatives. Those of
    guidance have, up to STEEP, as no derivative is taken of it, and flat codes, which differ by
    little between scales, leave little to learn from.
    """

    frequencies = 64  # of each number

    def __init__(self, width: int):
        super().__init__()
        first, last = nn.Linear(4 * self.frequencies, width), nn.Linear(width, width)
        nn.init.normal_(first.weight, std=0.05)
        for zero in (first.bias, last.weight, last.bias):
            nn.init.zeros_(zero)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, numbers: Tensor) -> Tensor:
        numbers = numbers * numbers.new_tensor([1.0, STEEP, STEEP, STEEP])
        code = timestep_embedding(numbers.flatten(), self.frequencies)
        code = code.unflatten(0, numbers.shape).flatten(1)
        return self.mlp(code.to(next(self.mlp.parameters()).dtype))


class FlowMap(TokenTransformer):
    """``network(x, t, y, s, guidance)``: the average velocity from time t to s <= t, like x.

    A SiT that is also told t - s and how it is guided. Without s the velocity itself, s = t: any
    sampler draws from it as from a SiT. Without guidance that of scale 1.

    s         times [B]
    guidance  see :class:`SelfGuidance`
    """

    config_class = FlowMapConfig
    config: FlowMapConfig

    def __init__(self, config: FlowMapConfig):
        super().__init__(config)
        self.setting_embedder = SettingEmbedder(config.width)
        # Guidance moves pictures of each class another way: what is added alike to all does not.
        self.label_push = nn.Linear(config.width, config.width, bias=False)
        nn.init.zeros_(self.label_push.weight)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        s: Tensor | None = None,
        guidance: SelfGuidance | None = None,
    ) -> Tensor:
        told = guidance or SelfGuidance.none(t)
        span = torch.zeros_like(t) if s is None else t - s
        # An interval means nothing to a scale of 1, and is then that of no guidance.
        low = torch.where(told.scale == 1, 0.0, told.low)
        high = torch.where(told.scale == 1, 1.0, told.high)
        numbers = (span, 1 - 1 / told.scale, low, high)
        setting = self.setting_embedder(torch.stack([z.to(span) for z in numbers], dim=1))
        if y is not None and self.config.num_classes:
            push = told.push(t, t - span).to(setting)
            label = F.layer_norm(self.y_embedder(y), (self.config.width,))
            setting = setting + push[:, None] * self.label_push(label)
        return self._predict(x, self._condition(x, t, y) + setting)

    def start_from(self, teacher: SiT) -> None:
        """Take a teacher's weights: the flow map is then its velocity, whatever s and guidance.

        Raises UserError for one of another shape, and for one that predicts no velocities on
        straight lines.
        """
        check_teacher(teacher, self.config)
        self.load_state_dict(teacher.state_dict(), strict=False)


def check_teacher(teacher: Any, config: TransformerConfig) -> None:
    """Raises UserError if a generator is no SiT of velocities on straight lines of this shape."""
    own = teacher.config
    if isinstance(own, FlowMapConfig):
        raise UserError(
            "few-step generators start from a SiT that predicts velocities on straight lines, and "
            "--init is a few-step generator already; give the SiT that it was made of, for "
            "'shipped' shipped-many-step"
        )
    if not isinstance(own, SiTConfig) or (own.interpolant, own.target) != ("linear", "v"):
        raise UserError(
            "few-step generators start from a SiT that predicts velocities on straight lines "
            "(interpolant linear, target v); --init is none"
        )
    for name in ("tokens", "channels", "num_classes", *SHAPE):
        if getattr(own, name) != getattr(config, name):
            raise UserError(
                f"--init has {name} {getattr(own, name)}, and {getattr(config, name)} is wanted; "
                "give a generator of these tokens and classes"
            )


# The fields of a config that say which weights there are.
SHAPE = ("width", "depth", "heads", "mlp_ratio", "qk_norm", "patch", "picture", "pyramid", "rows",
         "norm", "mlp", "rotary", "value_residual", "nested", "summary")  # fmt: skip


class Told:
    """A flow map whose guidance is set, called as any network is: what samplers draw from.

    Raises UserError for a scale that the network has not learned.
    """

    def __init__(
        self,
        network: FlowMap,
        scale: float | Tensor = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        low, high = interval
        if not 0 <= low <= high <= 1:
            raise UserError(f"guidance interval {low}..{high} is not within 0..1, low first")
        self.network, self.config = network, network.config
        self.scale = torch.as_tensor(scale, dtype=torch.float64)
        most = network.config.most_guidance
        if not ((self.scale >= 1) & (self.scale <= most)).all():
            raise UserError(f"guidance {scale}: this few-step generator has learned 1 to {most:g}")
        self.interval = interval

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return self.average(x, t, t, y)

    def average(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        """The guided average velocity from times t [B] to s [B]."""
        low, high = (torch.full_like(t, time) for time in self.interval)
        scale = self.scale.to(t).expand(t.shape)
        return self.network(x, t, y, s, SelfGuidance(scale, low, high))


def draw_times(
    count: int,
    objective: FewStepConfig,
    time: str,
    rng: torch.Generator | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Times s <= t, [count] each, of samples whose last ``anchors`` have s = t.

    Two draws of a law of TIME_LAWS in their order.
    """
    one, other = (TIME_LAWS[time](LINEAR, count, rng, device) for _ in range(2))
    s, t = torch.minimum(one, other), torch.maximum(one, other)
    u = ours(torch.rand(2, whole(count), generator=rng, device=device), dim=1)
    t = torch.where(u[0] < objective.whole, 1.0, t)
    s = torch.where(u[1] < objective.whole, 0.0, s)
    spans = torch.arange(count, device=device) < spans_of(count, objective)
    return torch.where(spans, s, one), torch.where(spans, t, one)


def spans_of(count: int, objective: FewStepConfig) -> int:
    """How many samples of a batch, its first ones, learn averages."""
    return count - round(objective.anchors * count)


def draw_guidance(
    count: int, most: float, rng: torch.Generator | None, device: torch.device
) -> SelfGuidance:
    """Scales 1..most with a density of 1 / scale, and intervals: all times for half of them.

    The others have low in 0..0.5 and high in 0.5..1 (Geng et al. 2025b).
    """
    u = ours(torch.rand(4, whole(count), generator=rng, device=device), dim=1)
    everywhere = u[1] < 0.5
    low, high = torch.where(everywhere, 0.0, u[2] / 2), torch.where(everywhere, 1.0, 1 - u[3] / 2)
    return SelfGuidance(most ** u[0], low, high)


@dataclass
class Path:
    """What a rule knows: where samples are, on their way from t to s, and two networks to ask.

    x        states at t, t > s, [B]
    v        velocities there, as they are drawn; ``tangent``, as they are expected
    average  ``average(x, t, s)``: the network's average velocity
    velocity ``velocity(x, t)``: the expected velocity at any state
    """

    x: Tensor
    t: Tensor
    s: Tensor
    v: Tensor
    tangent: Tensor
    average: Callable[[Tensor, Tensor, Tensor], Tensor]
    velocity: Callable[[Tensor, Tensor], Tensor]


NEAR = 0.01  # of finite differences, in time
SHORT = 1 / 16  # of a short step


def by_jvp(path: Path) -> Tensor:
    """Equation (2) by forward-mode differentiation, which no fused attention knows."""
    x, t, s = path.x, path.t, path.s
    with full_precision(x), sdpa_kernel(SDPBackend.MATH):
        moves = (path.tangent, torch.ones_like(t))
        rate = torch.func.jvp(lambda x, t: path.average(x, t, s), (x, t), moves)[1]
    return path.v - per_sample(t - s, x) * rate


def by_difference(path: Path) -> Tensor:
    """Equation (2) by differences around t, between s and 1 (Wang et al. 2025)."""
    x, t, s = path.x, path.t, path.s
    late, early = (t + NEAR).clamp(max=1.0), torch.maximum(t - NEAR, s)
    with full_precision(x):
        after = path.average(x + per_sample(late - t, x) * path.tangent, late, s)
        before = path.average(x + per_sample(early - t, x) * path.tangent, early, s)
    rate = (after - before) / per_sample((late - early).clamp(min=1e-6), x)
    return path.v - per_sample(t - s, x) * rate


def by_step(path: Path) -> Tensor:
    """Equation (3): a short step by the midpoint method, and the network for the rest.

    No difference of nearly equal numbers: bfloat16 does.
    """
    x, t, s = path.x, path.t, path.s
    short = (t - s).clamp(max=SHORT)
    middle = path.velocity(x - per_sample(short / 2, x) * path.tangent, t - short / 2)
    m = t - short
    rest = path.average(x - per_sample(short, x) * middle, m, s)
    share = per_sample(short / (t - s).clamp(min=1e-6), x)
    return share * (path.v + middle - path.tangent) + (1 - share) * rest


RULES: dict[str, Callable[[Path], Tensor]] = {
    "jvp": by_jvp, "difference": by_difference, "step": by_step,
}  # fmt: skip


def flow_map_loss(
    network: Callable[..., Tensor],
    x0: Tensor,
    y: Tensor | None,
    config: FlowMapConfig,
    time: str,
    rng: torch.Generator | None = None,
    objective: FewStepConfig | None = None,
    teacher: Any = None,
) -> Tensor:
    """Squared error of u per sample, [B], at drawn times, noise and guidance.

    ``teacher``: a SiT for ``objective.velocity`` = "teacher"; without one the velocities are the
    data's.

    The gradient is that of the error over itself, w = 1 / (error + 0.01), as hard samples would
    drown the others (Geng et al. 2025).
    """
    objective = objective or FewStepConfig()
    count, device = x0.shape[0], rng.device if rng else x0.device
    s, t = (z.to(x0) for z in draw_times(count, objective, time, rng, device))
    noise = randn(x0.shape, rng, device).to(x0)
    told = draw_guidance(count, config.most_guidance, rng, device)
    told = SelfGuidance(told.scale.to(x0), told.low.to(x0), told.high.to(x0))
    null = torch.full((count,), config.num_classes, device=x0.device)
    y = null if y is None else drop_labels(y, config.num_classes, config.label_dropout, rng)
    told.scale = torch.where(y == null, 1.0, told.scale)
    x = LINEAR.interpolate(x0, noise, t)
    n = spans_of(count, objective)
    spans = slice(n)

    def velocity(x: Tensor, t: Tensor, rows: slice) -> Tensor:
        """The expected one: the teacher's or the network's own, guided."""
        if teacher is None:
            return network(x, t, y[rows], None, told[rows]).to(x0)
        return Guided(teacher, told[rows].at(t))(x, t, y[rows]).to(x0)

    def average(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return network(x, t, y[spans], s, told[spans]).to(x0)

    with torch.no_grad():
        v = tangent = velocity(x, t, slice(count))
        if teacher is None:
            # Guided = conditional + (1 - 1 / scale) (guided - unconditional), of which the first
            # is the sample's own and the others are the network's.
            pushed = tangent - network(x, t, null).to(x0)
            v = noise - x0 + per_sample(1 - 1 / told.at(t), x) * pushed
        target = v
        if n:
            path = Path(x[:n], t[:n], s[:n], v[:n], tangent[:n], average,
                        lambda x, t: velocity(x, t, spans))  # fmt: skip
            target = torch.cat([RULES[objective.rule](path), v[n:]])
    error = (network(x, t, y, s, told).float() - target).square().flatten(1).mean(1)
    weighted = error / (error.detach() + 0.01)
    return weighted + (error - weighted).detach()
