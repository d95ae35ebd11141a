"""The Hub card of a BLIP that capfilt trained, per kind of recipe."""

from capfilt.training.objectives.base import HubCard

_CARDS = {
    "pretrain": (
        "BLIP's MED after pre-training with ITC, ITM and LM: the start of captioner and filter.",
        "image-text-to-text",
    ),
    "captioner": ("The captioner of CapFilt: fine-tuned with LM on the human pairs.", "image-to-text"),
    "filter": (
        "The filter of CapFilt: fine-tuned with ITC and ITM on the human pairs.",
        "zero-shot-image-classification",
    ),
}


def hub_card(kind: str) -> HubCard:
    """The card of a model of that kind of recipe: pretrain, captioner or filter."""
    about, task = _CARDS[kind]
    return HubCard(about, ("blip",), pipeline_tag=task, library_name="transformers")
