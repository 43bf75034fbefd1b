"""A Phi-Mamba or hybrid, as published, for transformers: a Phi with other mixers in place of attention.

Written from the equations of MOHAWK (arXiv 2408.10189), in their quadratic form: the state never
appears, every output is a sum over all earlier inputs. All else is transformers' own Phi.
"""

import json

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F


class DiscreteMamba2(nn.Module):
    """The mixer where x, B and C have as many heads and the convolution no activation."""

    def __init__(self, d, heads, state, taps):
        super().__init__()
        self.heads, self.state, channels = heads, state, d + 2 * heads * state
        self.in_proj = nn.Linear(d, channels + d + heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, taps, groups=channels, padding=taps - 1)
        self.z_bias = nn.Parameter(torch.empty(d))
        self.D = nn.Parameter(torch.empty(heads))
        self.out_proj = nn.Linear(d, d, bias=False)

    def forward(self, hidden_states, **_):
        b, l, d = hidden_states.shape
        width = self.heads * self.state
        xbc, z, a = self.in_proj(hidden_states).split([d + 2 * width, d, self.heads], -1)
        xbc = self.conv1d(xbc.mT)[..., :l].mT
        heads = lambda t: t.reshape(b, l, self.heads, -1).transpose(1, 2)
        x, key, query = map(heads, xbc.split([d, width, width], -1))
        # Sums over thousands of tokens, whose differences matter.
        decay = -F.softplus(a.double()).cumsum(1).transpose(1, 2)
        decay = decay[..., :, None] - decay[..., None, :]
        past = torch.ones(l, l, dtype=torch.bool).tril()
        decay = decay.masked_fill(~past, -torch.inf).exp().float()
        y = (query @ key.mT * decay) @ x + self.D[:, None, None] * x
        y = y.transpose(1, 2).reshape(b, l, d) * F.silu(z + self.z_bias)
        return self.out_proj(y), None


def load(folder):
    """The model of a folder with the published `config.json`, in float32."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    size = config["MixerModel"]["input"]
    blocks = [block for name, block in config.items() if name.startswith("Block")]
    layers = [block for block in blocks for _ in range(block["n_layers"])]
    attention = [layer["core_input"] for layer in layers if "attention" in layer["CoreType"]]
    attention = attention[0] if attention else {}
    vocab_size, d = tensors["lm_head.weight"].shape
    model = transformers.PhiForCausalLM(
        transformers.PhiConfig(
            vocab_size=vocab_size,
            hidden_size=d,
            intermediate_size=len(tensors["backbone.layers.0.mlp.fc1.weight"]),
            num_hidden_layers=len(layers),
            num_attention_heads=attention.get("num_attention_heads", 1),
            max_position_embeddings=2048,
            layer_norm_eps=size.get("layer_norm_eps", 1e-5),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": attention.get("rope_theta", 10000.0),
                "partial_rotary_factor": attention.get("partial_rotary_factor", 0.5),
            },
        )
    )
    for i, layer in enumerate(layers):
        if "mamba" in layer["CoreType"]:
            core = layer["core_input"]
            assert core["n_v_heads"] == core["n_qk_heads"] and core["activation"] == "identity"
            mixer = DiscreteMamba2(d, core["n_v_heads"], core["d_state"], core["d_conv"])
            model.model.layers[i].self_attn = mixer
    model.load_state_dict({transformers_name(name): tensor for name, tensor in tensors.items()})
    return model.float().eval()


def transformers_name(name):
    name = name.replace("backbone.embedding.", "model.embed_tokens.").replace("backbone.", "model.")
    return name.replace(".mixer.self_attn.", ".self_attn.").replace(".mixer.", ".self_attn.")
