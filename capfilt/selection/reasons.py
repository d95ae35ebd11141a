"""Every reason that a text can be rejected for: the values of `candidates.reason`."""

REASONS = {
    "quarantined:...": "the row cannot be processed: image_unreadable, bomb, killed_worker, ...",
    "rejected:...": "a rule of ingest rejected the row: image_too_small, text_empty, blocked, ...",
    "duplicate:...": "another row is kept instead of this one: key, exact, url_text, perceptual, semantic",
    "contaminated": "the row's image repeats an image of an evaluation set",
    "no_text": "the text is null or only white space",
    "caption_failed": "the row has no text of its own, and captioning it failed",
    "no_score": "the policy needs a score that is null",
    "score_failed": "the policy needs a score that is null because scoring the row failed",
    "below_itm_threshold": "the ITM score is below its threshold",
    "below_itc_threshold": "the ITC score is below its threshold",
    "below_both": "both scores are below their thresholds (policies both, either)",
    "not_top_k": "`top_k` other texts of the image rank higher (policy top_k)",
    "over_max_texts": "the policy accepts the text, but `max_texts_per_image` accepted texts of the image rank higher",
}
"""Reason -> its meaning; `...` stands for the one word after the colon."""
