# SPDX-License-Identifier: MIT
"""The benchmark behind scripts/bench: what is measured (cells), on what (places), how it is told (report)."""
