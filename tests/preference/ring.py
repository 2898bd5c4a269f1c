"""A flow in the plane: eight points on a ring, and four prompts, each of which asks for two of them."""

import math

import torch
from torch import Tensor, nn

from blip3o_hf.preference.losses import mean_square

NUM_MODES, NUM_PROMPTS, RADIUS, WIDTH = 8, 4, 2.0, 0.15
LEVELS = torch.linspace(1, 0, 11)


class RingFlow(nn.Module):
    """Velocity of points `[B, 2]` at noise levels `[B]`, given numbers of prompts `[B]`."""

    def __init__(self, dim: int = 96):
        super().__init__()
        self.prompt = nn.Embedding(NUM_PROMPTS, dim)
        self.inner = nn.Linear(2 + 8, dim)
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.outer = nn.Linear(dim, 2)

    def forward(self, points: Tensor, sigma: Tensor, prompts: Tensor) -> Tensor:
        waves = sigma[:, None] * math.pi * torch.arange(1, 5)
        hidden = self.inner(torch.cat([points, waves.sin(), waves.cos()], dim=1)) + self.prompt(prompts)
        return self.outer(self.layers(hidden))


def data(number: int, generator: torch.Generator) -> Tensor:
    """Points near the modes, all of them alike for every prompt."""
    angle = torch.randint(NUM_MODES, (number,), generator=generator) * 2 * math.pi / NUM_MODES
    centres = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centres + WIDTH * torch.randn(number, 2, generator=generator)


def pretrained(steps: int = 500, batch_size: int = 512) -> RingFlow:
    """A flow that draws all modes for every prompt."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    flow = RingFlow()
    optimizer = torch.optim.AdamW(flow.parameters(), lr=3e-3, weight_decay=0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        clean, noise = data(batch_size, generator), torch.randn(batch_size, 2, generator=generator)
        sigma = torch.rand(batch_size, generator=generator)
        prompts = torch.randint(NUM_PROMPTS, (batch_size,), generator=generator)
        noisy = (1 - sigma[:, None]) * clean + sigma[:, None] * noise
        loss = mean_square(flow(noisy, sigma, prompts) - (noise - clean)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return flow


@torch.no_grad()
def drawn(flow: RingFlow, prompts: Tensor, generator: torch.Generator) -> Tensor:
    """Points by ten steps of Euler."""
    points = torch.randn(len(prompts), 2, generator=generator)
    for sigma, after in zip(LEVELS[:-1].tolist(), LEVELS[1:].tolist(), strict=True):
        velocity = flow(points, torch.full((len(points),), sigma), prompts)
        points = points + (after - sigma) * velocity
    return points


def judged(points: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each point is at a mode that its prompt asks for, and whether it is on the ring at all."""
    angle = torch.atan2(points[:, 1], points[:, 0])
    mode = (angle / (2 * math.pi / NUM_MODES)).round().long() % NUM_MODES
    is_on_ring = (points.norm(dim=1) - RADIUS).abs() < 4 * WIDTH
    return is_on_ring & (mode // (NUM_MODES // NUM_PROMPTS) == prompts), is_on_ring
