"""An independent transcription of DiT's parts in float64 numpy, read off the papers."""

import jax
import numpy as np


def random_params(variables, seed=0, scale=0.3):
  """Weights of the same shapes, none of them zero: zero-init layers hide mistakes."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jax.numpy.asarray(rng.normal(size=x.shape) * scale, x.dtype), variables
  )


def as_float64(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def dense(p, x):
  return x @ p["kernel"] + p["bias"]


def silu(x):
  return x / (1 + np.exp(-x))


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm(x):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def rms(p, x):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def attention(q, k, v):
  """One head of one image, [n, d]."""
  return softmax(q @ k.T / np.sqrt(q.shape[-1])) @ v


def self_attention(p, x, heads):
  """One image, [n, d], head after head."""
  d = x.shape[-1]
  q, k, v = (dense(p["qkv"], x)[:, i * d : (i + 1) * d] for i in range(3))
  out = []
  for h in range(heads):
    part = slice(h * d // heads, (h + 1) * d // heads)
    qh, kh, vh = q[:, part], k[:, part], v[:, part]
    if "q_norm" in p:
      qh, kh = rms(p["q_norm"], qh), rms(p["k_norm"], kh)
    out.append(attention(qh, kh, vh))
  return dense(p["proj"], np.concatenate(out, -1))


def block(p, h, c, heads):
  """One DiT block on one image: h [n, d], c [d]."""
  s1, g1, a1, s2, g2, a2 = np.split(dense(p["adaln"]["proj"], silu(c)), 6)
  h = h + a1 * self_attention(p["attn"], norm(h) * (1 + g1) + s1, heads)
  mlp = dense(p["mlp"]["out"], gelu(dense(p["mlp"]["in"], norm(h) * (1 + g2) + s2)))
  return h + a2 * mlp


def blocks(p, h, c, heads):
  for name in sorted(p):
    h = block(p[name], h, c, heads)
  return h


def final(p, h, c):
  shift, scale = np.split(dense(p["adaln"]["proj"], silu(c)), 2)
  return dense(p["linear"], norm(h) * (1 + scale) + shift)


def condition(p, t, label):
  """The condition vector of one image at model time t."""
  angles = [t / 10_000 ** (i / 128) for i in range(128)]
  x = np.array([np.cos(a) for a in angles] + [np.sin(a) for a in angles])
  x = dense(p["time"]["out"], silu(dense(p["time"]["in"], x)))
  return x + p["label"]["table"]["embedding"][label]


def patch_tokens(p, z, patch):
  """Linear patch embedding of one image, [h, w, c] -> [n, d]."""
  h, w, _ = z.shape
  pieces = [
    z[i : i + patch, j : j + patch].ravel() for i in range(0, h, patch) for j in range(0, w, patch)
  ]
  return dense(p["patch_embed"]["proj"], np.stack(pieces))
