"""Faults on purpose: runs that are killed, disks that are full, files that are damaged.

``tools/faults.py`` attacks a training of a toy detector, and the tests do the same with small
numbers. What it found is in docs/reliability.md.
"""
