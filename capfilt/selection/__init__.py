"""Which texts are kept, and why: policies, calibration, accounting, provenance."""
