"""Model systems behind four small protocols (`protocols.py`)."""
