"""Model systems behind small protocols: a `System` and its roles (`protocols.py`)."""
