"""CapFilt closed into a loop: the dataset of a round trains the captioner and the filter of the next (paper, fig. 3).

RUN/loop.json                  what was asked, and per round fingerprints, counts, metrics
RUN/pairs                      ingested once; every round reads it (RUN/round-K/pairs is a link to it)
RUN/round-K/                   an ordinary run: sidecars, dataset, report; and after `emit`:
    training-<fp>/             pairs.parquet, one row an image, texts by source; heldout.parquet
    pretrain-<fp>/, finetune_captioner-<fp>/, finetune_filter-<fp>/    as `capfilt train` leaves them
    evaluate.json              metrics on held-out pairs
    models/                    pretrained, captioner, filter: hub layout with cards
RUN/report.html                the rounds beside each other
"""
