"""CapFilt as a loop: the dataset of a round trains the captioner and the filter of the next round (paper, figure 3).

RUN/loop.json                  the pipeline, and per round fingerprints, counts and metrics
RUN/pairs                      ingested once; RUN/round-K/pairs links to it
RUN/round-K/                   an ordinary run: sidecars, dataset, report; and after `emit`:
    training-<fp>/             pairs.parquet: one row per image, its texts by origin; heldout.parquet
    pretrain-<fp>/, finetune_captioner-<fp>/, finetune_filter-<fp>/    training runs, as `capfilt train` writes them
    evaluate.json              metrics on held-out pairs
    models/                    pretrained, captioner, filter: hub layout with cards
RUN/report.html                a comparison of the rounds
"""
