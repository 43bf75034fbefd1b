"""A distilled student as a Hugging Face model, in plain PyTorch.

Written beside the weights of an exported student, so that

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

opens it, in versions 4 and 5 of transformers. It reads both formats of students: the nested `config.json` of a
Phi-Mamba, whose layers are Phi's, and the flat one of a student of a Llama-like teacher, with the mixer of every layer
in `layers`.

Letters in shapes: b sequences, l tokens, h heads, g groups of heads that share B and C (or keys and values), p
dimensions of a head, n numbers of state, q tokens of a chunk.

A Discrete Mamba-2 layer computes, for each head, the recurrence

    S_t = a_t S_(t-1) + x_t B_t^T      y_t = S_t C_t + D x_t      a_t = sigmoid(-A_log_t)

in chunks: as a masked matrix product inside a chunk, and by the state from chunk to chunk. For decoding, the cache of
a layer holds the last inputs of its convolution and its state; that of attention the keys and values.
"""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

CHUNK = 64


class MohawkConfig(PretrainedConfig):
    """All members of the student's `config.json`, as they are."""

    model_type = "mohawk_student"

    def network(self):
        """The network that the file describes, whichever format it has."""
        if getattr(self, "LanguageModel", None) is not None:
            return _phi_mamba(self.to_dict())
        return _llama_mamba(self.to_dict())


SSM_KEYS = {
    "d_state", "n_v_heads", "n_qk_heads", "head_dim", "d_conv", "conv_bias", "expand", "chunk_size", "activation",
    "bias", "z_bias", "a_log_bias", "bc_norm", "feature_map", "b_gate", "rotary", "norm",
}  # fmt: skip
ATTENTION_KEYS = {
    "n_heads", "n_kv_heads", "head_dim", "qkv_bias", "o_bias", "qk_norm", "window", "sinks", "rotary_dim", "theta",
    "scaling", "o_name", "heads",
}  # fmt: skip
KINDS = {"ssm", "attention", "ssm_and_heads_adapter", "ssm_and_heads_sum"}


def _check(layers):
    """That nothing is passed over that would change what a layer computes."""
    for i, layer in enumerate(layers):
        if layer["kind"] not in KINDS:
            raise ValueError(f"layer {i} is of the kind {layer['kind']!r}, which this module does not know")
        for name, known in [("ssm", SSM_KEYS), ("attention", ATTENTION_KEYS)]:
            unknown = set(layer.get(name) or ()) - known
            if unknown:
                raise ValueError(f"layer {i}: `{name}` has {sorted(unknown)}, which this module does not know")
    return layers


def _phi_mamba(root):
    model = root["MixerModel"]["input"]
    d_model, epsilon = model["d_model"], model.get("layer_norm_eps", 1e-5)
    language = root["LanguageModel"]["input"]
    multiple = language["pad_vocab_size_multiple"]
    # Those who write the file again may sort its keys as text.
    names = sorted((name for name in root if name.startswith("Block")), key=lambda name: int(name[5:] or 0))
    blocks = [root[name] for name in names]
    mamba = [b["core_input"] for b in blocks if b["CoreType"].endswith("discrete_mamba2")]
    default_heads = mamba[0].get("n_v_heads", 32) if mamba else 32
    layers = []
    for block in blocks:
        core = block.get("core_input", {})
        if block["CoreType"].endswith("discrete_mamba2"):
            heads = core.get("n_v_heads", 32)
            bias = core.get("bias", False)
            ssm = {"head_dim": core.get("expand", 1) * d_model // heads, "z_bias": not bias, **core}
            layer = {"kind": "ssm", "ssm": ssm}
        elif not block["CoreType"].endswith("phi_attention"):
            layer = {"kind": block["CoreType"]}
        else:
            heads = core.get("num_attention_heads", default_heads)
            attention = {
                "n_heads": heads,
                "n_kv_heads": core.get("num_key_value_heads", heads),
                "head_dim": d_model // heads,
                "qkv_bias": True,
                "o_bias": True,
                "rotary_dim": int(core.get("partial_rotary_factor", 0.5) * (d_model // heads)),
                "theta": core.get("rope_theta", 10000.0),
                "o_name": "dense",
            }
            layer = {"kind": "attention", "attention": attention}
        layers += [layer] * block["n_layers"]
    return {
        "vocabulary": -(-language["vocab_size"] // multiple) * multiple,
        "d_model": d_model,
        "parallel": True,
        "norm": lambda: nn.LayerNorm(d_model, eps=epsilon),
        "mlp": lambda: PhiMlp(d_model, model.get("intermediate_size", 4 * d_model)),
        "tied": False,
        "head_bias": True,
        "layers": _check(layers),
    }


def _llama_mamba(root):
    d_model, epsilon, mlp, rope = root["d_model"], root["norm_epsilon"], root["mlp"], root["rope"]
    layers = []
    for layer in root["layers"]:
        layer = dict(layer)
        if layer.get("attention"):
            scaling = rope.get("scaling")
            more = {"rotary_dim": rope["head_dim"], "theta": rope["theta"], "scaling": scaling}
            layer["attention"] = dict(layer["attention"], o_name="o_proj", **more)
        layers.append(layer)
    return {
        "vocabulary": root.get("padded_vocab_size") or root["vocab_size"],
        "d_model": d_model,
        "parallel": False,
        "norm": lambda: RmsNorm(d_model, epsilon),
        "mlp": lambda: GatedMlp(d_model, mlp["hidden"], mlp.get("bias", False)),
        "tied": root["tie_embeddings"],
        "head_bias": root.get("lm_head_bias", False),
        "layers": _check(layers),
    }


class RmsNorm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x):
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


class PhiMlp(nn.Module):
    def __init__(self, d_model, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d_model, hidden), nn.Linear(hidden, d_model)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class GatedMlp(nn.Module):
    def __init__(self, d_model, hidden, bias):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, hidden, bias=bias)
        self.up_proj = nn.Linear(d_model, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, d_model, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _frequencies(dim, theta, scaling):
    """Radians a position, `[dim / 2]`."""
    f = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if not scaling:
        return f
    if scaling["rope_type"] == "linear":
        return f / scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * f / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - share) * f / scaling["factor"] + share * f


def _turned(x, positions, dim, theta, scaling):
    """The first `dim` dimensions of every head of `x [b, l, h, p]` turned, pairs `(i, i + dim / 2)`."""
    angles = positions.double()[..., None] * _frequencies(dim, theta, scaling).to(x.device)
    angles = angles[:, :, None, :]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    one, two, rest = x[..., : dim // 2], x[..., dim // 2 : dim], x[..., dim:]
    return torch.cat([one * cos - two * sin, two * cos + one * sin, rest], -1)


def _scan(x, a_log, b, c, state):
    """`x [b, l, h, p]`, `a_log [b, l, h]`, `b` and `c [b, l, h, n]` and the state before, `[b, h, p, n]`, to
    `y [b, l, h, p]` and the state after."""
    ys = []
    for start in range(0, x.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        xq, bq, cq = (t[:, part].transpose(1, 2) for t in (x, b, c))  # [b, h, q, ..]
        log_a = F.logsigmoid(-a_log[:, part]).transpose(1, 2)  # [b, h, q]
        since_start = log_a.cumsum(-1)
        between = since_start[..., :, None] - since_start[..., None, :]
        lower = torch.ones(between.shape[-2:], dtype=torch.bool, device=x.device).tril()
        decay = between.masked_fill(~lower, -math.inf).exp()
        inside = ((cq @ bq.transpose(-1, -2)) * decay) @ xq
        before = (cq @ state.transpose(-1, -2)) * since_start.exp()[..., None]
        ys.append((inside + before).transpose(1, 2))
        to_end = (since_start[..., -1:] - since_start).exp()[..., None]
        state = state * since_start[..., -1].exp()[..., None, None] + (xq * to_end).transpose(-1, -2) @ bq
    return torch.cat(ys, 1), state


def _wide(x):
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


FEATURE_MAPS = {
    "identity": lambda x: x,
    "exp": lambda x: _wide(x).exp().to(x.dtype),
    "softmax": lambda x: _wide(x).softmax(-1).to(x.dtype),
}


class DiscreteMamba2(nn.Module):
    def __init__(self, d_model, o):
        super().__init__()
        self.h, self.g = o["n_v_heads"], o["n_qk_heads"]
        self.p, self.n, self.w = o["head_dim"], o["d_state"], o.get("d_conv", 4)
        self.inner, self.bc = self.h * self.p, self.g * self.n
        channels = self.inner + 2 * self.bc
        bias = o.get("bias", False)
        self.gates = self.g if o.get("b_gate") else 0
        self.in_proj = nn.Linear(d_model, channels + self.inner + self.h + self.gates, bias=bias)
        self.conv1d = nn.Conv1d(channels, channels, self.w, groups=channels, bias=o.get("conv_bias", True))
        self.D = nn.Parameter(torch.ones(self.h))
        self.z_bias = nn.Parameter(torch.zeros(self.inner)) if o.get("z_bias") else None
        self.a_log_bias = nn.Parameter(torch.zeros(self.h)) if o.get("a_log_bias") else None
        epsilon = o.get("bc_norm")
        self.b_norm = RmsNorm(self.n, epsilon) if epsilon is not None else None
        self.c_norm = RmsNorm(self.n, epsilon) if epsilon is not None else None
        self.out_proj = nn.Linear(self.inner, d_model, bias=bias)
        self.silu = o.get("activation", "identity") in ("silu", "swish")
        self.rotary = o.get("rotary")
        self.feature_map = FEATURE_MAPS[o.get("feature_map", "identity")]

    def turned(self, name, x, positions):
        rotary = self.rotary
        if not rotary or name not in rotary["applied_to"]:
            return x
        return _turned(x, positions, rotary["head_dim"], rotary["theta"], rotary.get("scaling"))

    def forward(self, u, positions, cache):
        b, l, _ = u.shape
        widths = [self.inner + 2 * self.bc, self.inner, self.h, self.gates]
        xbc, z, a_log, gate = self.in_proj(u).split(widths, -1)
        conv, state = cache.get("conv"), cache.get("ssm")
        if conv is None:
            conv = xbc.new_zeros(b, self.w - 1, xbc.shape[-1])
        padded = torch.cat([conv, xbc], 1)
        cache["conv"] = padded[:, padded.shape[1] - (self.w - 1) :]
        xbc = self.conv1d(padded.transpose(1, 2)).transpose(1, 2)
        if self.silu:
            xbc = F.silu(xbc)
        x, bs, cs = xbc.split([self.inner, self.bc, self.bc], -1)
        x = self.turned("x", x.view(b, l, self.h, self.p), positions)
        bs, cs = bs.reshape(b, l, self.g, self.n), cs.reshape(b, l, self.g, self.n)
        if self.b_norm is not None:
            bs, cs = self.b_norm(bs), self.c_norm(cs)
        bs, cs = self.feature_map(bs), self.feature_map(cs)
        if self.gates:
            # 2 sigmoid(gate)
            bs = bs * (1 + torch.tanh(_wide(gate) / 2)).to(bs.dtype)[..., None]
        bs, cs = self.turned("B", bs, positions), self.turned("C", cs, positions)
        bs, cs = (t.repeat_interleave(self.h // self.g, 2) for t in (bs, cs))
        if self.a_log_bias is not None:
            a_log = a_log + self.a_log_bias
        # The state adds up over the whole sequence: in f32 at least.
        wide = torch.promote_types(x.dtype, torch.float32)
        if state is None:
            state = x.new_zeros(b, self.h, self.p, self.n, dtype=wide)
        y, cache["ssm"] = _scan(x.to(wide), a_log.to(wide), bs.to(wide), cs.to(wide), state)
        y = (y + self.D[:, None] * x).reshape(b, l, self.inner).to(u.dtype)
        z = z if self.z_bias is None else z + self.z_bias
        return self.out_proj(y * F.silu(z))


class Attention(nn.Module):
    def __init__(self, d_model, o):
        super().__init__()
        self.o = o
        h, g, p = o["n_heads"], o["n_kv_heads"], o["head_dim"]
        self.q_proj = nn.Linear(d_model, h * p, bias=o["qkv_bias"])
        self.k_proj = nn.Linear(d_model, g * p, bias=o["qkv_bias"])
        self.v_proj = nn.Linear(d_model, g * p, bias=o["qkv_bias"])
        self.add_module(o["o_name"], nn.Linear(h * p, d_model, bias=o["o_bias"]))
        epsilon = o.get("qk_norm")
        self.q_norm = RmsNorm(p, epsilon) if epsilon is not None else None
        self.k_norm = RmsNorm(p, epsilon) if epsilon is not None else None

    def forward(self, u, positions, cache):
        o, (b, l, _) = self.o, u.shape
        h, g, p = o["n_heads"], o["n_kv_heads"], o["head_dim"]
        q, k, v = self.q_proj(u), self.k_proj(u), self.v_proj(u)
        q, k, v = q.view(b, l, h, p), k.view(b, l, g, p), v.view(b, l, g, p)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        rotary = (positions, o["rotary_dim"], o["theta"], o.get("scaling"))
        q, k = _turned(q, *rotary), _turned(k, *rotary)
        at = positions
        if "k" in cache:
            k, v = torch.cat([cache["k"], k], 1), torch.cat([cache["v"], v], 1)
            at = torch.cat([cache["at"], at], 1)
        cache["k"], cache["v"], cache["at"] = k, v, at
        distance = positions[:, :, None] - at[:, None, :]
        seen = distance >= 0
        if o.get("window"):
            seen &= (distance < o["window"]) | (at[:, None, :] < o.get("sinks", 0))
        k, v = (t.repeat_interleave(h // g, 2).transpose(1, 2) for t in (k, v))
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=seen[:, None])
        return getattr(self, o["o_name"])(y.transpose(1, 2).reshape(b, l, h * p))


class SelfAttention(nn.Module):
    """Attention one name further down, as published."""

    def __init__(self, d_model, o):
        super().__init__()
        self.self_attn = Attention(d_model, o)

    def forward(self, u, positions, cache):
        return self.self_attn(u, positions, cache)


class Adapter(nn.Module):
    """The mean of the state-space mixer's output and a projection of attention's, whose tokens were given the mean
    and the deviation of the other's."""

    def __init__(self, d_model):
        super().__init__()
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, ssm, attention):
        def moments(x):
            return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)

        (mean, deviation), (mean_of_ssm, deviation_of_ssm) = moments(attention), moments(ssm)
        like_ssm = (attention - mean) / (deviation + 1e-5) * (deviation_of_ssm + 1e-5) + mean_of_ssm
        return (ssm + self.out_proj(like_ssm)) / 2


class Layer(nn.Module):
    def __init__(self, network, layer):
        super().__init__()
        d_model, kind = network["d_model"], layer["kind"]
        self.input_layernorm = network["norm"]()
        self.mixer2 = self.adapter = None
        if kind == "ssm":
            self.mixer = DiscreteMamba2(d_model, layer["ssm"])
        elif kind == "attention":
            self.mixer = SelfAttention(d_model, layer["attention"])
        else:
            self.mixer1 = DiscreteMamba2(d_model, layer["ssm"])
            if layer["attention"]["n_heads"] > 0:
                self.mixer2 = SelfAttention(d_model, layer["attention"])
                self.adapter = Adapter(d_model) if kind == "ssm_and_heads_adapter" else None
        if not network["parallel"]:
            self.post_attention_layernorm = network["norm"]()
        self.parallel = network["parallel"]
        self.mlp = network["mlp"]()

    def mix(self, u, positions, cache):
        if not hasattr(self, "mixer1"):
            return self.mixer(u, positions, cache)
        ssm = self.mixer1(u, positions, cache)
        if self.mixer2 is None:
            return ssm
        attention = self.mixer2(u, positions, cache)
        return ssm + attention if self.adapter is None else self.adapter(ssm, attention)

    def forward(self, x, positions, cache):
        u = self.input_layernorm(x)
        mixed = x + self.mix(u, positions, cache)
        return mixed + self.mlp(u if self.parallel else self.post_attention_layernorm(mixed))


class Backbone(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.embedding = nn.Embedding(network["vocabulary"], network["d_model"])
        self.layers = nn.ModuleList(Layer(network, layer) for layer in network["layers"])
        self.final_layernorm = network["norm"]()


class StudentCache:
    """What each layer carries from one token to the next, and how many tokens were read."""

    is_compileable = False

    def __init__(self, layers):
        self.layers, self.length = [{} for _ in range(layers)], 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beams):
        """For beam search: the rows of every tensor in a new order."""
        for layer in self.layers:
            for name, value in layer.items():
                layer[name] = value.index_select(0, beams)


class MohawkForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = MohawkConfig
    _is_stateful = True
    _supports_cache_class = False

    def __init__(self, config):
        super().__init__(config)
        network = config.network()
        self.backbone = Backbone(network)
        # A tied head is the embedding's weight, which has no second name in the file.
        own = not network["tied"]
        self.lm_head = nn.Linear(network["d_model"], network["vocabulary"], bias=network["head_bias"]) if own else None
        self.post_init()

    def _init_weights(self, module):
        """Weights come from a file."""

    def get_input_embeddings(self):
        return self.backbone.embedding

    def get_output_embeddings(self):
        return self.lm_head

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def forward(
        self,
        input_ids,
        attention_mask: Optional[torch.Tensor] = None,
        past_key_values: Optional[StudentCache] = None,
        labels: Optional[torch.Tensor] = None,
        use_cache: Optional[bool] = None,
        logits_to_keep: int = 0,
        **_,
    ):
        if attention_mask is not None and (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
            # A token that only fills up would enter the state.
            raise ValueError("the student's state has no mask: pad sequences on the right, not on the left")
        cache = past_key_values if past_key_values is not None else StudentCache(len(self.backbone.layers))
        b, l = input_ids.shape
        positions = torch.arange(cache.length, cache.length + l, device=input_ids.device).expand(b, l)
        x = self.backbone.embedding(input_ids)
        for layer, state in zip(self.backbone.layers, cache.layers):
            x = layer(x, positions, state)
        cache.length += l
        x = self.backbone.final_layernorm(x[:, -logits_to_keep:])
        logits = F.linear(x, self.backbone.embedding.weight) if self.lm_head is None else self.lm_head(x)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache if use_cache else None)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        if not isinstance(past_key_values, StudentCache):
            past_key_values = StudentCache(len(self.backbone.layers))
        return {
            "input_ids": input_ids[:, past_key_values.length :],
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": True,
            "logits_to_keep": 1,
        }
