"""Random decoders, small and lively."""

import torch

from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig
from capfilt.models.blip.med import MED

VOCAB, SEP, DEC = 60, 3, 58
PROMPT = torch.tensor([DEC, 7, 8, 9])
CONFIG = MEDConfig(
    vision=VisionConfig(width=32, layers=1, heads=2, mlp_width=64, image_size=32, patch_size=16),
    text=TextConfig(VOCAB, 32, 2, 2, 64, max_positions=40, dec_id=DEC, sep_id=SEP),
    embed_dim=8,
    encoder=False,
)


def build(seed: int, sep_bias: float = 2.0) -> MED:
    """A random decoder whose captions differ by image and end at different lengths."""
    torch.manual_seed(seed)
    med = MED(CONFIG)
    for parameter in med.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for layer in med.text.layers:
        layer.cross_attention.attention.out.weight.data *= 10
    med.text.word.weight.data *= 3
    med.text.position.weight.data *= 8
    med.lm_head.bias.data[SEP] = sep_bias
    return med.eval()
