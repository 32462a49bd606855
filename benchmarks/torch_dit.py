"""DiT in PyTorch as its users train it today: the other side of a training benchmark.

The model and the work of a step are those of `dit_jax.models.dit` under configs/dit_xl.py: learned
positions, dropped labels, eps and variance logits, the mean squared error plus the variational
bound, AdamW, an average of the weights. Written from the papers (DiT, arXiv 2212.09748; iDDPM,
arXiv 2102.09672); torch is imported inside the functions, so that a table without it can be made.

Precision is autocast's: on CUDA matrices multiply in bfloat16 while the residual stream stays in
float32; on a CPU everything is float32.
"""

import math

TIMESTEPS = 1000
FREQUENCIES = 128
LABEL_DROP = 0.1
EMA_DECAY = 0.9999


def make(
  *,
  depth: int,
  width: int,
  num_heads: int,
  patch: int,
  grid: int,
  channels: int,
  num_classes: int,
  batch: int,
  device: str,
  compile: bool,
  lr: float = 1e-4,
) -> "Training":
  """A training step on random latents and labels, made once; call it without arguments.

  Args:
    depth, width, num_heads, patch: of the model, as in `dit_jax.models.dit.decode_variant`.
    grid: cells of the latent on each side.
    channels: of a latent; the output has twice as many.
    num_classes: labels are 0 .. num_classes, the last one meaning "no class".
    batch: images a step.
    device: "cuda" or "cpu".
    compile: whether forward and loss go through torch.compile, which needs a C++ compiler on a CPU.
    lr: learning rate.
  """
  import torch

  torch.manual_seed(0)
  if torch.device(device).type == "cuda":
    torch.set_float32_matmul_precision("high")
  net = network(depth, width, patch, grid, channels, num_classes).to(device)
  x0 = torch.randn(batch, channels, grid, grid, device=device)
  label = torch.randint(num_classes, (batch,), device=device)
  return Training(net, num_heads, x0, label, compile, lr)


class Training:
  """One optimizer step a call: returns the loss, a tensor on the device, and waits for nothing.

  Attributes:
    net: the modules of `network`.
    ema: averages of net.parameters(), in their order.
  """

  def __init__(self, net, num_heads: int, x0, label, compile: bool, lr: float):
    import torch

    self.net, self.ema = net, [p.detach().clone() for p in net.parameters()]
    self._args = num_heads, x0, label, chain(x0.device)
    self._loss = torch.compile(loss, fullgraph=True) if compile else loss
    self._autocast = dict(device_type=x0.device.type, dtype=torch.bfloat16, enabled=x0.is_cuda)
    self._optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0, fused=True)

  def __call__(self):
    import torch

    self._optimizer.zero_grad(set_to_none=True)
    with torch.autocast(**self._autocast):
      value = self._loss(self.net, *self._args)
    value.backward()
    self._optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(self.ema, list(self.net.parameters()), 1 - EMA_DECAY)
    return value.detach()


def parameters(*, num_heads: int, **sizes: int) -> int:
  """Number of parameters of a model with the sizes of `network`, without memory for them."""
  import torch

  del num_heads  # heads share the width
  with torch.device("meta"):
    net = network(**sizes)
  return sum(p.numel() for p in net.parameters())


def network(depth: int, width: int, patch: int, grid: int, channels: int, num_classes: int):
  """The modules of a DiT; at the start every block is the identity and the output is zero.

  Dictionaries of layers, because a class of modules needs torch when this file is imported.
  """
  from torch import nn

  linear = nn.Linear
  net = nn.ModuleDict(
    {
      "patch": nn.Conv2d(channels, width, patch, stride=patch),
      "position": nn.Embedding((grid // patch) ** 2, width),
      "time": nn.Sequential(linear(2 * FREQUENCIES, width), nn.SiLU(), linear(width, width)),
      "label": nn.Embedding(num_classes + 1, width),
      "blocks": nn.ModuleList(
        nn.ModuleDict(
          {
            "adaln": linear(width, 6 * width),
            "qkv": linear(width, 3 * width),
            "proj": linear(width, width),
            "mlp_in": linear(width, 4 * width),
            "mlp_out": linear(4 * width, width),
          }
        )
        for _ in range(depth)
      ),
      "final_adaln": linear(width, 2 * width),
      "final": linear(width, patch * patch * 2 * channels),
    }
  )
  for name, p in net.named_parameters():
    if name.endswith("bias") or "adaln" in name or name.startswith("final"):
      nn.init.zeros_(p)
    elif name.split(".")[0] in ("position", "time", "label"):
      nn.init.normal_(p, std=0.02)
    else:
      nn.init.xavier_uniform_(p.flatten(1))  # a view: a convolution starts as a linear map does
  return net


def forward(net, z, t, label, num_heads: int):
  """Predicted noise, then variance logits: [b, 2 c, h, w], float32.

  Args:
    net: of `network`.
    z: latents with noise, [b, c, h, w].
    t: model time, [b], 0 .. 999.
    label: [b], 0 .. num_classes.
    num_heads: of every block.
  """
  import torch
  from torch.nn import functional as F

  rows, patch = z.shape[2] // net["patch"].stride[0], net["patch"].stride[0]
  x = net["patch"](z).flatten(2).transpose(1, 2) + net["position"].weight
  places = torch.arange(FREQUENCIES, device=z.device) / FREQUENCIES
  angles = t.float()[:, None] * torch.exp(-math.log(10_000) * places)
  c = net["time"](torch.cat([angles.cos(), angles.sin()], -1)) + net["label"](label)
  c = F.silu(c)
  for block in net["blocks"]:
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block["adaln"](c)[:, None].chunk(6, -1)
    qkv = block["qkv"](modulated(x, shift_a, scale_a)).unflatten(-1, (3, num_heads, -1))
    q, k, v = qkv.transpose(1, 3).unbind(2)
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + gate_a * block["proj"](out)
    h = F.gelu(block["mlp_in"](modulated(x, shift_m, scale_m)), approximate="tanh")
    x = x + gate_m * block["mlp_out"](h)
  shift, scale = net["final_adaln"](c)[:, None].chunk(2, -1)
  x = net["final"](modulated(x, shift, scale)).float()
  x = x.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, -1))
  return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def modulated(x, shift, scale):
  """Layer norm without affine, then x (1 + scale) + shift."""
  from torch.nn import functional as F

  return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def chain(device) -> dict:
  """What a step of the linear-beta chain needs, [1000] each, from the first step to the last.

  z_t = alpha x0 + sigma eps; the posterior's mean is from_x0 x0 + from_z z_t; `low` and `high` are
  the log variances of the posterior and of the forward step. The posterior of the first step has
  no variance and borrows the second step's.
  """
  import torch

  beta = torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64)
  kept = (1 - beta).cumprod(0)
  before = torch.cat([torch.ones(1), kept[:-1]])
  low = beta * (1 - before) / (1 - kept)
  low[0] = low[1]
  tables = {
    "alpha": kept.sqrt(),
    "sigma": (1 - kept).sqrt(),
    "from_x0": before.sqrt() * beta / (1 - kept),
    "from_z": (1 - beta).sqrt() * (1 - before) / (1 - kept),
    "low": low.log(),
    "high": beta.log(),
  }
  return {name: table.to(device, torch.float32) for name, table in tables.items()}


def loss(net, num_heads: int, x0, label, tables: dict):
  """The objective of one batch, at random times, with random noise and dropped labels."""
  import torch

  b = x0.shape[0]
  step = torch.randint(TIMESTEPS, (b,), device=x0.device)
  eps = torch.randn_like(x0)
  drop = torch.rand(b, device=x0.device) < LABEL_DROP
  label = torch.where(drop, net["label"].num_embeddings - 1, label)
  now = {name: table[step][:, None, None, None] for name, table in tables.items()}
  z = now["alpha"] * x0 + now["sigma"] * eps
  mse, vlb = objective(forward(net, z, step, label, num_heads), x0, z, eps, step, now)
  return mse.mean() + vlb.mean()


def objective(raw, x0, z, eps, step, now: dict):
  """Squared error of the noise, and the bound in bits that trains the variance alone (iDDPM).

  Args:
    raw: of `forward`.
    x0, z, eps: the data, the data with noise, the noise, [b, c, h, w].
    step: 0 is the first of the chain, whose bound is a likelihood over bins of 2 / 255.
    now: the tables of `chain` at `step`, [b, 1, 1, 1].

  Returns:
    Both terms, [b, c, h, w].
  """
  import torch

  pred, logits = raw.chunk(2, 1)
  x0_hat = (z - now["sigma"] * pred.detach()) / now["alpha"]
  mean = now["from_z"] * z + now["from_x0"] * x0_hat
  log_var = now["low"] + 0.5 * (logits + 1) * (now["high"] - now["low"])

  gap = (now["from_x0"] * (x0 - x0_hat)).square() * torch.exp(-log_var)
  behind = now["low"] - log_var
  kl = 0.5 * (torch.exp(behind) - behind - 1 + gap)

  cdf = lambda x: 0.5 * torch.erfc(-math.sqrt(0.5) * x)  # keeps its digits in the tail
  inv_std, far = torch.exp(-0.5 * log_var), (x0 - mean).abs()
  inner = cdf((1 / 255 - far) * inv_std) - cdf((-1 / 255 - far) * inv_std)
  below, above = x0 - mean - 1 / 255, x0 - mean + 1 / 255
  outer = torch.where(x0 < 0, cdf(above * inv_std), cdf(-below * inv_std))
  nll = -torch.log(torch.where(x0.abs() > 0.999, outer, inner).clamp(min=1e-12))
  nats = torch.where(step[:, None, None, None] == 0, nll, kl)
  return (pred - eps).square(), nats / math.log(2)
