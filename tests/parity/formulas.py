"""The reference's arithmetic, written out for any sizes on tensors under their published names.

It shares nothing with the package and uses no model class. Sizes are read from the tensors; what leaves no trace in
them, such as numbers of heads, is an argument. Angles are fp32 as in the reference; everything else has the dtype of
the tensors, so that fp64 gives what exact arithmetic would. B batch, L tokens, Q queries, C channels of the features.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]

DIT = "model.dit.model."
EVA = "model.gen_vision_tower.vision_tower.model."
QUERIES = "model.latent_queries"


def count(weights: Weights, prefix: str) -> int:
    """How many numbered parts follow `prefix`."""
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def rms_norm(weight: Tensor, x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def standardize(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def layer_norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return standardize(x, eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def exact_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def heads_of(x: Tensor, head_dim: int) -> Tensor:
    """`[B, L, heads * head_dim]` to `[B, heads, L, head_dim]`."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax attention, `[B, heads, L, head_dim]`; consecutive query heads share a key-value head."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(-1) @ value


def rotate_halves(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate channel j with channel j + half by `angles` `[..., head_dim / 2]`."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate channel 2j with channel 2j + 1 by `angles` `[..., head_dim / 2]`."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def rope_frequencies(dim: int, theta: float) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


# Text backbone


def sequential_positions(batch: int, length: int) -> Tensor:
    """`[3, batch, length]`: all three axes count tokens, padding and image tokens included."""
    return torch.arange(length).expand(3, batch, length)


def spatial_positions(input_ids: Tensor, image_id: int, grids: Sequence[Sequence[int]]) -> Tensor:
    """`[3, 1, L]` of the answering path: an image occupies time, rows and columns of its merged grid."""
    positions, images = [], iter(grids)
    while len(positions) < len(input_ids):
        start = max((1 + max(position) for position in positions), default=0)
        if input_ids[len(positions)] == image_id:
            _, height, width = next(images)
            places = ((row, column) for row in range(height // 2) for column in range(width // 2))
            positions += [(start, start + row, start + column) for row, column in places]
        else:
            positions.append((start, start, start))
    return torch.tensor(positions).T[:, None]


def text_stack(
    weights: Weights,
    embeddings: Tensor,
    positions: Tensor,
    num_heads: int,
    sections: Sequence[int],
    mask: Tensor | None = None,
) -> list[Tensor]:
    """Hidden states `[B, L, hidden]`: the embeddings, after every layer, and for the last one after the final norm."""
    _, length, hidden = embeddings.shape
    head_dim = hidden // num_heads
    frequencies = rope_frequencies(head_dim, 1e6)
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(sections))
    angles = positions.float()[..., None] * frequencies
    angles = torch.stack([angles[axis[j], ..., j] for j in range(head_dim // 2)], dim=-1)[:, None]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    if mask is not None:
        allowed = allowed & mask[:, None, None].bool()

    x, states = embeddings, [embeddings]
    for layer in range(count(weights, "model.layers.")):
        prefix = f"model.layers.{layer}."
        y = rms_norm(weights[f"{prefix}input_layernorm.weight"], x, 1e-6)
        query, key, value = (
            heads_of(linear(weights, f"{prefix}self_attn.{name}_proj", y), head_dim) for name in ("q", "k", "v")
        )
        mixed = attend(rotate_halves(query, angles), rotate_halves(key, angles), value, allowed)
        x = x + linear(weights, f"{prefix}self_attn.o_proj", mixed.transpose(1, 2).flatten(2))
        y = rms_norm(weights[f"{prefix}post_attention_layernorm.weight"], x, 1e-6)
        gate, up = linear(weights, f"{prefix}mlp.gate_proj", y), linear(weights, f"{prefix}mlp.up_proj", y)
        x = x + linear(weights, f"{prefix}mlp.down_proj", silu(gate) * up)
        states.append(x)
    states[-1] = rms_norm(weights["model.norm.weight"], x, 1e-6)
    return states


def embed(weights: Weights, input_ids: Tensor, image_id: int = -1, image_features: Tensor | None = None) -> Tensor:
    """Token embeddings `[B, L, hidden]`, with image features in their places, in order."""
    embeddings = weights["model.embed_tokens.weight"][input_ids]
    if image_features is not None:
        embeddings = embeddings.clone()
        embeddings[input_ids == image_id] = image_features
    return embeddings


def query_states(
    weights: Weights,
    input_ids: Tensor,
    num_heads: int,
    sections: Sequence[int],
    image_id: int = -1,
    image_features: Tensor | None = None,
) -> Tensor:
    """Condition `[1, Q, hidden]` of one prompt `[L]` that ends with `[IMG]`."""
    prompt = embed(weights, input_ids[None], image_id, image_features)
    sequence = torch.cat([prompt, weights[QUERIES]], dim=1)
    positions = sequential_positions(1, sequence.shape[1])
    return text_stack(weights, sequence, positions, num_heads, sections)[-1][:, len(input_ids) :]


def logits(weights: Weights, hidden_states: Tensor) -> Tensor:
    output = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return hidden_states @ output.T


# Encoder of input images


def vision_places(grids: Sequence[Sequence[int]], window: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row, column, frame and window of every patch, in the order of merge groups: 2 x 2 patches, row-major."""
    places, frame, first_window = [], 0, 0
    for frames, height, width in grids:
        across, down = -(-width // (2 * window)), -(-height // (2 * window))
        for _ in range(frames):
            for top in range(0, height, 2):
                for left in range(0, width, 2):
                    own = first_window + top // (2 * window) * across + left // (2 * window)
                    places += [(top + i, left + j, frame, own) for i in range(2) for j in range(2)]
            frame += 1
            first_window += across * down
    return torch.tensor(places).unbind(1)


def vision_tower(
    weights: Weights,
    pixel_rows: Tensor,
    grids: Sequence[Sequence[int]],
    num_heads: int,
    full_blocks: Sequence[int],
    window: int = 4,
) -> tuple[Tensor, list[Tensor]]:
    """
    Image features `[sum(t * h * w) / 4, hidden]`, and the states after every block in the order of windows.

    Args:
        pixel_rows: `[sum(t * h * w), 3 * 2 * patch * patch]`.
        window: side of a window in merge groups.
    """
    row, column, frame, own_window = vision_places(grids, window)
    x = (
        pixel_rows.to(weights["visual.patch_embed.proj.weight"])
        @ weights["visual.patch_embed.proj.weight"].flatten(1).T
    )
    head_dim = x.shape[-1] // num_heads
    frequencies = rope_frequencies(head_dim // 2, 10000.0)
    angles = torch.cat([row.float()[:, None] * frequencies, column.float()[:, None] * frequencies], dim=-1)
    by_window = own_window.argsort(stable=True)

    states = []
    for block in range(count(weights, "visual.blocks.")):
        prefix = f"visual.blocks.{block}."
        together = frame if block in full_blocks else own_window
        y = rms_norm(weights[f"{prefix}norm1.weight"], x, 1e-6)
        query, key, value = (
            heads_of(part[None], head_dim) for part in linear(weights, f"{prefix}attn.qkv", y).chunk(3, dim=-1)
        )
        allowed = together[:, None] == together
        mixed = attend(rotate_halves(query, angles), rotate_halves(key, angles), value, allowed)
        x = x + linear(weights, f"{prefix}attn.proj", mixed[0].transpose(0, 1).flatten(1))
        y = rms_norm(weights[f"{prefix}norm2.weight"], x, 1e-6)
        gate, up = linear(weights, f"{prefix}mlp.gate_proj", y), linear(weights, f"{prefix}mlp.up_proj", y)
        x = x + linear(weights, f"{prefix}mlp.down_proj", silu(gate) * up)
        states.append(x[by_window])
    y = rms_norm(weights["visual.merger.ln_q.weight"], x, 1e-6).unflatten(0, (-1, 4)).flatten(1)
    y = exact_gelu(linear(weights, "visual.merger.mlp.0", y))
    return linear(weights, "visual.merger.mlp.2", y), states


# Diffusion transformer


def dit(weights: Weights, x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
    """Velocity `[B, C, h, w]` of noisy features at `timestep` `[B]`, 1000 for pure noise."""
    weights = {name.removeprefix(DIT): tensor for name, tensor in weights.items() if name.startswith(DIT)}
    height, width = x.shape[-2:]
    num_heads = len(weights["layers.0.gate"])
    head_dim = weights["layers.0.attn1.to_q.weight"].shape[0] // num_heads

    frequencies = rope_frequencies(head_dim // 2, 10000.0)
    row, column = torch.arange(height * width) // width, torch.arange(height * width) % width
    angles = torch.stack([row[:, None] * frequencies, column[:, None] * frequencies], dim=-1).flatten(1)

    waves = timestep.float()[:, None] * torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128)
    waves = torch.cat([waves.cos(), waves.sin()], dim=-1).to(x.dtype)
    time = linear(weights, "time_caption_embed.timestep_embedder.linear_1", waves)
    time = linear(weights, "time_caption_embed.timestep_embedder.linear_2", silu(time))
    context = linear(
        weights, "caption_projection.linear_2", tanh_gelu(linear(weights, "caption_projection.linear_1", condition))
    )
    pooled = layer_norm(weights, "time_caption_embed.caption_embedder.0", context.mean(1), 1e-5)
    temb = time + linear(weights, "time_caption_embed.caption_embedder.1", pooled)
    temb = silu(temb)

    x = linear(weights, "patch_embedder.proj", x.flatten(2).transpose(1, 2))
    for layer in range(count(weights, "layers.")):
        prefix = f"layers.{layer}."
        norms = {
            name: weights[f"{prefix}{name}.weight"]
            for name in ("norm1.norm", "norm2", "ffn_norm1", "ffn_norm2", "norm1_context")
        }
        modulation = linear(weights, f"{prefix}norm1.linear", temb)[:, None]
        scale_msa, gate_msa, scale_mlp, gate_mlp = modulation.chunk(4, dim=-1)
        y = rms_norm(norms["norm1.norm"], x, 1e-5) * (1 + scale_msa)
        mixed = 0
        for attention, source, share in (
            ("attn1", y, 1),
            ("attn2", rms_norm(norms["norm1_context"], context, 1e-5), weights[f"{prefix}gate"].tanh()[:, None, None]),
        ):
            name = f"{prefix}{attention}."
            query = layer_norm(weights, f"{name}norm_q", linear(weights, f"{name}to_q", y), 1e-5)
            key = layer_norm(weights, f"{name}norm_k", linear(weights, f"{name}to_k", source), 1e-5)
            query, key = rotate_pairs(heads_of(query, head_dim), angles), heads_of(key, head_dim)
            key = rotate_pairs(key, angles) if attention == "attn1" else key
            mixed = mixed + share * attend(query, key, heads_of(linear(weights, f"{name}to_v", source), head_dim))
        out = linear(weights, f"{prefix}attn2.to_out.0", mixed.transpose(1, 2).flatten(2))
        x = x + gate_msa.tanh() * rms_norm(norms["norm2"], out, 1e-5)
        y = rms_norm(norms["ffn_norm1"], x, 1e-5) * (1 + scale_mlp)
        gate, up = (linear(weights, f"{prefix}feed_forward.linear_{index}", y) for index in (1, 3))
        y = linear(weights, f"{prefix}feed_forward.linear_2", silu(gate) * up)
        x = x + gate_mlp.tanh() * rms_norm(norms["ffn_norm2"], y, 1e-5)
    scale = linear(weights, "norm_out.linear_1", temb)[:, None]
    x = linear(weights, "norm_out.linear_2", standardize(x, 1e-6) * (1 + scale))
    return x.transpose(1, 2).unflatten(2, (height, width))


def flow_sigmas(steps: int) -> Tensor:
    return torch.from_numpy(np.linspace(1.0, 1.0 / steps, steps).astype(np.float32))


def sample(weights: Weights, noise: Tensor, condition: Tensor, steps: int, guidance: float) -> list[Tensor]:
    """Features `[N, C, h, w]` after every step, from noise `[N, C, h, w]` and conditions `[N / n, Q, hidden]`."""
    condition = condition.repeat_interleave(len(noise) // len(condition), dim=0)
    conditions = torch.cat([torch.zeros_like(condition), condition])
    sigmas = flow_sigmas(steps)
    x, states = noise, []
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        timestep = (sigma * 1000).long().expand(2 * len(x))
        null, conditioned = dit(weights, torch.cat([x, x]), timestep, conditions).chunk(2)
        x = x + (following - sigma) * (null + guidance * (conditioned - null))
        states.append(x)
    return states


# Training


def training_condition(
    weights: Weights, prompts: Sequence[Tensor], num_heads: int, sections: Sequence[int], pad_id: int
) -> Tensor:
    """
    Conditions `[B, Q, hidden]` of prompts that end with `[IMG]`, in one batch.

    As in the reference the queries follow each prompt at once, rows are padded on the right after them, and positions
    count everything.
    """
    embeddings, queries = weights["model.embed_tokens.weight"], weights[QUERIES][0]
    longest = max(map(len, prompts)) + len(queries)
    rows, mask = [], torch.zeros(len(prompts), longest)
    for index, prompt in enumerate(prompts):
        length = len(prompt) + len(queries)
        rows.append(torch.cat([embeddings[prompt], queries, embeddings[[pad_id] * (longest - length)]]))
        mask[index, :length] = 1
    positions = sequential_positions(len(prompts), longest)
    states = text_stack(weights, torch.stack(rows), positions, num_heads, sections, mask)[-1]
    return torch.stack([state[len(row) : len(row) + len(queries)] for state, row in zip(states, prompts, strict=True)])


def training_timesteps(u: Tensor) -> Tensor:
    return 1000 - (1000 * u).floor()


def flow_loss(weights: Weights, condition: Tensor, target: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and the velocity `[B, C, h, w]` that it compares with noise - target."""
    timestep = training_timesteps(u)
    sigma = (timestep / 1000).to(target.dtype)[:, None, None, None]
    velocity = dit(weights, (1 - sigma) * target + sigma * noise, timestep, condition)
    return (velocity - (noise - target)).square().mean(), velocity


def adamw_steps(
    parameters: Sequence[Tensor],
    losses: Sequence[Callable[[], Tensor]],
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    clip: float = 1.0,
    weight_decay: float = 0.0,
) -> tuple[list[float], list[float]]:
    """AdamW, in place; the loss and the norm of all gradients before clipping, for every step."""
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    values, norms = [], []
    for step, loss in enumerate(losses, start=1):
        value = loss()
        gradients = torch.autograd.grad(value, parameters)
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        factor = min(1.0, clip / (norm.item() + 1e-6))
        with torch.no_grad():
            for parameter, gradient, mean, square in zip(parameters, gradients, first, second, strict=True):
                mean.mul_(betas[0]).add_((1 - betas[0]) * factor * gradient)
                square.mul_(betas[1]).add_((1 - betas[1]) * (factor * gradient).square())
                scale = (square / (1 - betas[1] ** step)).sqrt() + eps
                parameter *= 1 - learning_rate * weight_decay
                parameter -= learning_rate * mean / (1 - betas[0] ** step) / scale
        values.append(value.item())
        norms.append(norm.item())
    return values, norms


# Target encoder


def eva_tokens(weights: Weights, pixel_values: Tensor, num_heads: int) -> Tensor:
    """Patch tokens `[B, N, C]`, row-major, the class token left out."""
    weights = {name.removeprefix(EVA): tensor for name, tensor in weights.items() if name.startswith(EVA)}
    kernel = weights["patch_embed.proj.weight"]
    patches = F.unfold(pixel_values, kernel.shape[-1], stride=kernel.shape[-1]).transpose(1, 2)
    patches = patches @ kernel.flatten(1).T + weights["patch_embed.proj.bias"]
    x = torch.cat([weights["cls_token"].expand(len(patches), -1, -1), patches], dim=1) + weights["pos_embed"]
    head_dim = x.shape[-1] // num_heads
    for block in range(count(weights, "blocks.")):
        prefix = f"blocks.{block}."
        parts = linear(weights, f"{prefix}attn.qkv", x).chunk(3, dim=-1)
        mixed = attend(*(heads_of(part, head_dim) for part in parts)).transpose(1, 2).flatten(2)
        x = x + layer_norm(weights, f"{prefix}norm1", linear(weights, f"{prefix}attn.proj", mixed), 1e-6)
        inner = exact_gelu(linear(weights, f"{prefix}mlp.fc1", x))
        x = x + layer_norm(weights, f"{prefix}norm2", linear(weights, f"{prefix}mlp.fc2", inner), 1e-6)
    return x[:, 1:]


def pool(tokens: Tensor) -> Tensor:
    """`[B, N, C]` on a square grid to `[B, C, side / 4, side / 4]`: means of 4 x 4 tokens."""
    side = math.isqrt(tokens.shape[1])
    grid = tokens.reshape(len(tokens), side // 4, 4, side // 4, 4, -1)
    return grid.mean(dim=(2, 4)).permute(0, 3, 1, 2)


# Diffusion decoder


def decoder_schedule(steps: int) -> tuple[Tensor, Tensor]:
    """Timesteps `[steps]`, descending, and noise levels `[steps + 1]`, ending with 0."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    kept = (1 - betas).cumprod(0)
    timesteps = torch.arange(steps).flip(0) * (1000 // steps) + 1
    sigmas = ((1 - kept) / kept).sqrt()[timesteps]
    return timesteps, torch.cat([sigmas, torch.zeros(1)])


def decoder_latents(
    unet: Callable[..., Tensor], features: Tensor, null: Tensor, noise: Tensor, steps: int, guidance: float
) -> Tensor:
    """
    Latents `[B, 4, h, w]` from features and null features `[B, N, C]` and standard normal noise.

    Args:
        unet: called with latents, timestep, tokens, mean tokens and time ids.
    """
    timesteps, sigmas = decoder_schedule(steps)
    height, width = (8 * side for side in noise.shape[-2:])
    tokens = torch.cat([features, null]) if guidance > 1 else features
    time_ids = torch.tensor([1024, 1024, 0, 0, height, width]).repeat(len(tokens), 1)
    x = noise * (sigmas.max() ** 2 + 1).sqrt()
    for timestep, sigma, following in zip(timesteps, sigmas, sigmas[1:], strict=False):
        scaled = x / (sigma**2 + 1).sqrt()
        eps = unet(scaled.repeat(len(tokens) // len(x), 1, 1, 1), timestep, tokens, tokens.mean(1), time_ids)
        if guidance > 1:
            conditioned, unconditioned = eps.chunk(2)
            eps = unconditioned + guidance * (conditioned - unconditioned)
        x = x + (following - sigma) * eps
    return x


def decoder_images(vae, latents: Tensor) -> Tensor:
    """Images `[B, H, W, 3]` in [0, 1]."""
    images = vae.decode(latents / 0.13025).sample
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
