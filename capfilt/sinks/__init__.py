"""Writers of the data set: one file per output format, and the data set's card."""
