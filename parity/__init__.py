"""Proof that the pure functions equal the modules they port: `python -m parity`."""
