"""How published vision transformers (DINO, DINOv2) name their tensors, and how they saw pixels."""

import re

import torch
from torch import Tensor

# Pixels in [0, 1] as DINOv2 saw them: (pixel - mean) / standard deviation, by colour.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Names in the Hugging Face layout -> names in the layout of timm and of the authors.
HUGGING_FACE = {
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^embeddings\.": "",
    r"^layernorm\.": "norm.",
    r"^encoder\.layer\.": "blocks.",
    r"\.attention\.attention\.(query|key|value)\.": r".attn.\1.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
    # The older ViT, in which DINO is kept.
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"\.intermediate\.dense\.": ".mlp.fc1.",
    r"\.output\.dense\.": ".mlp.fc2.",
}
# timm -> ours.
OURS = {"cls_token": "grid.cls_token", "pos_embed": "grid.pos_embed"}


def timm_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in timm's layout, from that or from the Hugging Face layout."""
    if "embeddings.cls_token" not in state:
        return state
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in HUGGING_FACE.items():
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    fused = {}
    for key, value in renamed.items():
        if ".attn.query." in key:
            parts = [renamed.get(key.replace("query", part)) for part in ("key", "value")]
            rows = [value, *(part for part in parts if part is not None)]
            fused[key.replace("query", "qkv")] = torch.cat(rows)
        elif not re.search(r"\.attn\.(key|value)\.", key):
            fused[key] = value
    return fused
